import io
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from pathlens.attribution.picture import draw_heatmap, draw_overlay
from pathlens.attribution.reduction import reduce_channels
from pathlens.attribution.rendering import MAX_SIDE
from pathlens.classifier.preprocessing import Preprocessing
from pathlens.explanation import Reduction

WARPED = Preprocessing(8, 8, mean=(0.0,) * 3, std=(1.0,) * 3)
CROPPED = Preprocessing(8, 8, mean=(0.0,) * 3, std=(1.0,) * 3, resize_shorter_side=8)


def gradient() -> NDArray[np.float32]:
    return np.random.default_rng(3).normal(size=(3, 8, 8)).astype(np.float32)


def values_of(reduction: Reduction) -> NDArray[np.float32]:
    reduced: NDArray[np.float32] = reduce_channels(torch.from_numpy(gradient()), reduction).numpy()
    return reduced


def photograph(height: int, width: int) -> NDArray[np.uint8]:
    return np.random.default_rng(4).integers(0, 256, (height, width, 3), dtype=np.uint8)


def picture(png: bytes) -> NDArray[Any]:
    with Image.open(io.BytesIO(png)) as image:
        assert image.format == "PNG"
        return np.array(image)


@pytest.mark.parametrize("reduction", Reduction)
class TestSize:
    @pytest.mark.parametrize(("height", "width"), [(8, 8), (30, 50), (5, 3), (1, 1)])
    def test_is_that_of_the_image(self, reduction: Reduction, height: int, width: int) -> None:
        values, pixels = values_of(reduction), photograph(height, width)
        for draw in (draw_heatmap, draw_overlay):
            assert picture(draw(values, reduction, WARPED, pixels)).shape == (height, width, 3)

    def test_is_that_of_the_classifiers_input_without_an_image(self, reduction: Reduction) -> None:
        assert picture(draw_heatmap(values_of(reduction), reduction, WARPED, None)).shape == (8, 8, 3)

    def test_is_limited_for_a_huge_image(self, reduction: Reduction) -> None:
        pixels = np.zeros((10, 2 * MAX_SIDE, 3), dtype=np.uint8)
        for draw in (draw_heatmap, draw_overlay):
            assert picture(draw(values_of(reduction), reduction, WARPED, pixels)).shape == (5, MAX_SIDE, 3)


class TestContent:
    @pytest.mark.parametrize("draw", [draw_heatmap, draw_overlay])
    def test_all_channels_are_drawn_as_their_signed_maximum(self, draw: Any) -> None:
        pixels = photograph(20, 30)
        single = draw(values_of(Reduction.SIGNED_MAXIMUM), Reduction.SIGNED_MAXIMUM, WARPED, pixels)
        assert draw(values_of(Reduction.NONE), Reduction.NONE, WARPED, pixels) == single

    @pytest.mark.parametrize("draw", [draw_heatmap, draw_overlay])
    def test_magnitudes_have_colours_of_their_own(self, draw: Any) -> None:
        values, pixels = np.abs(values_of(Reduction.SIGNED_MAXIMUM)), photograph(20, 30)
        signed, magnitudes = (
            draw(values, kind, WARPED, pixels) for kind in (Reduction.SIGNED_MAXIMUM, Reduction.MAGNITUDE_SUM)
        )
        assert signed != magnitudes

    def test_the_sign_is_visible(self) -> None:
        values = values_of(Reduction.SIGNED_MAXIMUM)
        one, other = (picture(draw_heatmap(v, Reduction.SIGNED_MAXIMUM, WARPED, None)) for v in (values, -values))
        assert not np.array_equal(one, other)

    def test_what_the_classifier_does_not_see_is_drawn_as_zero(self) -> None:
        zero = picture(draw_heatmap(np.zeros((8, 8), np.float32), Reduction.SIGNED_MAXIMUM, CROPPED, None))[0, 0]
        drawn = picture(draw_heatmap(np.ones((8, 8), np.float32), Reduction.SIGNED_MAXIMUM, CROPPED, photograph(8, 24)))
        assert (drawn[:, :8] == zero).all()
        assert (drawn[:, 16:] == zero).all()
        assert not (drawn[:, 8:16] == zero).all(2).any()

    def test_a_silent_map_lets_the_image_through_and_a_strong_one_covers_it(self) -> None:
        pixels = photograph(8, 8)
        silent = picture(draw_overlay(np.zeros((8, 8), np.float32), Reduction.SIGNED_MAXIMUM, WARPED, pixels))
        strong = picture(draw_overlay(np.ones((8, 8), np.float32), Reduction.SIGNED_MAXIMUM, WARPED, pixels))
        assert silent.astype(float).std() > 3 * strong.astype(float).std(axis=(0, 1)).mean()
