from dataclasses import astuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from pathlens.classifier.preprocessing import Preprocessing
from pathlens.errors import ImagesError
from pathlens.evaluation.batch import Box, Subject
from pathlens.evaluation.localisation import Localisation, is_hard, localise, object_mask, without_map

SAME = Preprocessing(8, 8, mean=(0.0,) * 3, std=(1.0,) * 3)
CROPPED = Preprocessing(8, 8, mean=(0.0,) * 3, std=(1.0,) * 3, resize_shorter_side=8)


def subject(*boxes: Box, height: int = 8, width: int = 8) -> Subject:
    return Subject(5, height, width, boxes=boxes)


def noise(seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).random((8, 8), dtype=np.float32)


def peak(row: int, column: int) -> NDArray[np.float32]:
    values = np.zeros((8, 8), dtype=np.float32)
    values[row, column] = 1
    return values


class TestLocalise:
    def test_a_peak_inside_the_box_scores_fully(self) -> None:
        assert localise(peak(2, 3), subject((3, 2, 4, 3)), SAME) == Localisation(1, 1)

    def test_a_peak_outside_the_box_scores_nothing(self) -> None:
        assert localise(peak(3, 2), subject((3, 2, 4, 3)), SAME) == Localisation(0, 0)

    def test_energy_is_the_share_of_the_values_inside(self) -> None:
        values = noise()
        expected = values[1:5, 2:7].sum() / values.sum()
        assert localise(values, subject((2, 1, 7, 5)), SAME).energy == pytest.approx(expected)

    def test_the_largest_value_points_however_much_lies_elsewhere(self) -> None:
        values = 0.9 + 0.2 * peak(6, 6)
        result = localise(values, subject((6, 6, 7, 7)), SAME)
        assert result.pointing == 1
        assert result.energy < 0.05

    def test_overlapping_boxes_count_once(self) -> None:
        values = noise()
        both = localise(values, subject((0, 0, 5, 8), (3, 0, 8, 8)), SAME)
        assert both.energy == pytest.approx(1)
        assert both == localise(values, subject((0, 0, 8, 8)), SAME)

    @settings(max_examples=40)
    @given(st.integers(1, 7), st.integers(0, 3), st.sampled_from([(8, 8), (20, 30), (5, 9)]))
    def test_the_energies_of_two_parts_sum_to_one(self, share: int, seed: int, size: tuple[int, int]) -> None:
        height, width = size
        edge = share * width / 8
        parts = [(0.0, 0.0, edge, float(height)), (edge, 0.0, float(width), float(height))]
        energies = [localise(noise(seed), subject(part, height=height, width=width), SAME).energy for part in parts]
        assert sum(energies) == pytest.approx(1)

    def test_the_map_is_laid_onto_an_image_of_another_size(self) -> None:
        # Row 6 of 8 and column 1 of 8 are rows 24 to 28 of 32 and columns 2 to 4 of 16.
        result = localise(peak(6, 1), subject((2, 24, 4, 28), height=32, width=16), SAME)
        assert result.pointing == 1
        assert 0.2 < result.energy < 1

    def test_the_map_is_laid_onto_what_the_classifier_sees(self) -> None:
        # Of 8 rows and 24 columns the classifier sees columns 8 to 15.
        seen, unseen = (subject(box, height=8, width=24) for box in ((8, 0, 16, 8), (0, 0, 8, 8)))
        assert astuple(localise(noise(), seen, CROPPED)) == pytest.approx((1, 1))
        assert astuple(localise(noise(), unseen, CROPPED)) == (0, 0)

    @pytest.mark.parametrize("value", [0.0, 1.0])
    def test_a_map_without_differences_scores_the_share_of_the_boxes(self, value: float) -> None:
        values = np.full((8, 8), value, dtype=np.float32)
        result = localise(values, subject((0, 0, 4, 8), height=8, width=8), SAME)
        assert astuple(result) == pytest.approx((0.5, 0.5))

    def test_several_largest_values_score_by_how_many_are_inside(self) -> None:
        values = peak(1, 1) + peak(6, 6) + peak(1, 6) + peak(6, 1)
        assert localise(values, subject((0, 0, 4, 4)), SAME).pointing == 0.25

    def test_a_map_of_another_size_is_refused(self) -> None:
        with pytest.raises(ValueError, match=r"expected \[8, 8\]"):
            localise(noise()[:4], subject((0, 0, 8, 8)), SAME)


class TestWithoutMap:
    @pytest.mark.parametrize(("box", "hit"), [((3, 3, 6, 6), 1), ((0, 0, 4, 4), 0), ((5, 0, 8, 8), 0)])
    def test_points_at_the_centre(self, box: Box, hit: int) -> None:
        assert without_map(subject(box)).pointing == hit

    def test_energy_is_the_share_of_the_image_that_the_boxes_cover(self) -> None:
        assert without_map(subject((0, 0, 4, 4), (2, 2, 6, 6))).energy == 28 / 64


class TestHard:
    def test_is_an_image_whose_centre_misses_every_box(self) -> None:
        assert is_hard(subject((0, 0, 3, 8), (5, 0, 8, 8)))

    def test_is_an_image_whose_boxes_are_small(self) -> None:
        assert is_hard(subject((2, 2, 6, 6)))

    def test_is_not_an_image_filled_by_its_object(self) -> None:
        assert not is_hard(subject((1, 1, 7, 7)))

    def test_is_not_an_image_of_which_exactly_a_third_is_covered(self) -> None:
        assert not is_hard(subject((3, 0, 6, 9), height=9, width=9))


class TestMask:
    def test_holds_the_pixels_whose_centre_is_in_the_box(self) -> None:
        expected = np.zeros((8, 8), dtype=bool)
        expected[3:6, 2:4] = True
        assert np.array_equal(object_mask(subject((1.6, 2.6, 4.4, 5.6))), expected)

    def test_ends_where_the_image_ends(self) -> None:
        assert object_mask(subject((-5, -5, 100, 100))).all()

    @pytest.mark.parametrize("measure", [without_map, is_hard, object_mask])
    def test_of_an_image_without_boxes_is_refused(self, measure: object) -> None:
        with pytest.raises(ValueError, match="image 5 has no boxes"):
            measure(subject())  # type: ignore[operator]

    def test_of_boxes_beside_the_image_is_refused(self) -> None:
        with pytest.raises(
            ImagesError, match=r"boxes \[\(8, 0, 12, 4\)\] of image 5 cover no pixel of its 8 rows and 8"
        ):
            localise(noise(), subject((8, 0, 12, 4)), SAME)
