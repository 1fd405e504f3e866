from collections import defaultdict
from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from pathlens.classifier.taps import Tap
from pathlens.errors import FailedPreconditionError
from pathlens.explanation import Ablation, Granularity
from pathlens.pathways.bank import ClassCounts, ClassPathwayBank, count_pathways
from pathlens.pathways.pathway import ZERO, Pathway, from_flat
from pathlens.pathways.replacement import Replacement

TAPS = (Tap("a#1", "relu", (3, 2, 2), 0, "a"), Tap("b#1", "relu", (4,), 0, "b"))
NEURONS = 7
CHANNEL = Granularity.CHANNEL

Batches = list[list[tuple[int, list[bool]]]]
MASK = st.lists(st.booleans(), min_size=NEURONS, max_size=NEURONS)
BATCHES = st.lists(st.lists(st.tuples(st.integers(0, 3), MASK), min_size=1, max_size=6), min_size=1, max_size=5)
HUNDREDTHS = st.integers(1, 100)


def counted(batches: Batches) -> dict[int, ClassCounts]:
    def pathways() -> list[tuple[Tensor, Pathway]]:
        return [
            (
                torch.tensor([label for label, _ in batch]),
                from_flat(torch.tensor([mask for _, mask in batch], dtype=torch.bool), TAPS, CHANNEL),
            )
            for batch in batches
        ]

    return count_pathways(pathways())


def bank_of(kept: list[int], images: int, threshold: float) -> ClassPathwayBank:
    counts = ClassCounts(torch.tensor(kept, dtype=torch.int32), images, 0.5 * images)
    return ClassPathwayBank(TAPS, CHANNEL, threshold, {2: counts})


class TestCounting:
    @given(BATCHES)
    def test_counts_how_often_the_images_of_each_class_keep_each_neuron(self, batches: Batches) -> None:
        rows: dict[int, list[list[bool]]] = defaultdict(list)
        for batch in batches:
            for label, mask in batch:
                rows[label].append(mask)
        counts = counted(batches)
        assert {label: (total.images, total.kept.tolist()) for label, total in counts.items()} == {
            label: (len(masks), [sum(column) for column in zip(*masks, strict=True)]) for label, masks in rows.items()
        }

    @given(BATCHES)
    def test_sums_the_sparsities_of_each_class(self, batches: Batches) -> None:
        for label, total in counted(batches).items():
            masks = [mask for batch in batches for other, mask in batch if other == label]
            assert total.sparsity_sum == pytest.approx(sum(1 - sum(mask) / NEURONS for mask in masks))

    @given(BATCHES)
    def test_does_not_depend_on_how_the_images_are_batched(self, batches: Batches) -> None:
        one_by_one = counted([[item] for batch in batches for item in batch])
        for label, total in counted(batches).items():
            assert torch.equal(total.kept, one_by_one[label].kept)

    def test_frequency_is_a_share_of_the_images(self) -> None:
        assert ClassCounts(torch.tensor([0, 1, 4]), 4, 0.0).frequency.tolist() == [0.0, 0.25, 1.0]


class TestThreshold:
    @given(st.lists(st.integers(0, 200), min_size=NEURONS, max_size=NEURONS), HUNDREDTHS)
    def test_keeps_a_neuron_of_at_least_that_share_counted_exactly(self, kept: list[int], hundredths: int) -> None:
        mask = bank_of(kept, 200, hundredths / 100).transfer([2]).flat()[0]
        assert mask.tolist() == [Fraction(count, 200) >= Fraction(hundredths, 100) for count in kept]

    @given(st.integers(1, 3000), HUNDREDTHS)
    def test_a_whole_number_of_images_is_not_rounded_up(self, images: int, hundredths: int) -> None:
        # 0.7 of 10 is 7, whatever 0.7 * 10 is in floating point.
        needed = -(-hundredths * images // 100)
        mask = bank_of([needed, needed - 1, 0, 0, 0, 0, 0], images, hundredths / 100).transfer([2]).flat()[0]
        assert mask.tolist() == [True] + [False] * 6

    def test_a_neuron_that_no_image_keeps_is_never_in(self) -> None:
        assert not bank_of([0] * NEURONS, 3, 1e-9).transfer([2]).flat().any()

    @pytest.mark.parametrize("threshold", [0.0, -0.1, 1.01, float("nan")])
    def test_outside_its_range_is_refused(self, threshold: float) -> None:
        with pytest.raises(ValueError, match=rf"threshold is {threshold}; expected a number in \(0, 1\]"):
            bank_of([1] * NEURONS, 1, threshold)


class TestTransfer:
    @given(BATCHES, HUNDREDTHS)
    def test_gives_each_image_the_pathway_of_its_class(self, batches: Batches, hundredths: int) -> None:
        bank = ClassPathwayBank(TAPS, CHANNEL, hundredths / 100, counted(batches))
        classes = [label for batch in batches for label, _ in batch]
        together = bank.transfer(classes)
        assert len(together) == len(classes)
        assert torch.equal(together.flat(), torch.cat([bank.transfer([label]).flat() for label in classes]))

    def test_knows_its_classes(self) -> None:
        bank = bank_of([1] * NEURONS, 1, 0.5)
        assert (2 in bank, 0 in bank, len(bank)) == (True, False, 1)

    @pytest.mark.parametrize("classes", [[0], [2, 5], [-1]])
    def test_of_a_class_without_a_pathway_says_which_and_what_to_do(self, classes: list[int]) -> None:
        with pytest.raises(FailedPreconditionError, match="NEURON_MCT") as refusal:
            bank_of([1] * NEURONS, 1, 0.5).transfer(classes)
        assert refusal.value.reason == "CLASS_PATHWAY_MISSING"
        missing = str(next(label for label in classes if label != 2))
        assert refusal.value.metadata == {"class_index": missing, "images": "0"}

    def test_of_a_class_with_too_few_images_says_how_many_there_were(self) -> None:
        bank = ClassPathwayBank(TAPS, CHANNEL, 0.7, {}, too_few={3: 4, 1: 2})
        with pytest.raises(
            FailedPreconditionError, match="Class 3 has no stored pathway: only 4 of the images"
        ) as refusal:
            bank.transfer([3])
        assert refusal.value.metadata == {"class_index": "3", "images": "4"}

    def test_from_an_empty_bank_is_refused(self) -> None:
        with pytest.raises(FailedPreconditionError):
            ClassPathwayBank(TAPS, CHANNEL, 0.7, {}).transfer([0])

    def test_of_a_class_whose_images_share_no_neuron_is_an_empty_pathway(self) -> None:
        pathway = bank_of([1] * NEURONS, 10, 0.7).transfer([2])
        assert pathway.kept.tolist() == [0]
        assert pathway.sparsity.tolist() == [1.0]


class TestLearnedMasks:
    """Class 1 has a mask of its own; class 2 has the one by frequency."""

    KEPT = torch.tensor([3, 3, 3, 0, 0, 1, 0], dtype=torch.int32)
    LEARNED = torch.tensor([0, 1, 0, 1, 0, 1, 0]) > 0
    FREQUENT = (KEPT >= 2).tolist()

    def bank(self, replacement: Replacement = ZERO) -> ClassPathwayBank:
        counts = {label: ClassCounts(self.KEPT, 3, 1.5) for label in (1, 2)}
        return ClassPathwayBank(TAPS, CHANNEL, 0.6, counts, masks={1: self.LEARNED}, replacement=replacement)

    def test_take_the_place_of_those_by_frequency_where_they_are_given(self) -> None:
        flat = self.bank().transfer([2, 1, 2]).flat().tolist()
        assert flat == [self.FREQUENT, self.LEARNED.tolist(), self.FREQUENT]

    @pytest.mark.parametrize("label", [1, 2])
    def test_are_ignored_where_the_frequency_is_asked_for(self, label: int) -> None:
        assert self.bank().by_frequency(label).flat().tolist() == [self.FREQUENT]

    def test_do_not_give_a_pathway_to_a_class_without_images(self) -> None:
        with pytest.raises(FailedPreconditionError, match="Class 0"):
            self.bank().by_frequency(0)

    def test_stay_with_a_bank_that_moves(self) -> None:
        bank = self.bank()
        moved = bank.to("meta")
        assert {mask.device.type for mask in moved.transfer([1]).masks} == {"meta"}
        assert moved.by_frequency(1).masks[0].device.type == "meta"
        assert torch.equal(bank.transfer([1]).flat()[0], self.LEARNED)


class TestReplacements:
    ROWS = Replacement(
        Ablation.OPTIMAL, tuple(tap.spread(torch.arange(4.0)[:, None].expand(4, tap.channels).clone()) for tap in TAPS)
    )
    """What stands in for the neurons of class c is c."""

    def bank(self, replacement: Replacement) -> ClassPathwayBank:
        counts = {label: ClassCounts(torch.ones(NEURONS, dtype=torch.int32), 1, 0.0) for label in (0, 2, 3)}
        return ClassPathwayBank(TAPS, CHANNEL, 0.7, counts, replacement=replacement)

    @given(st.lists(st.sampled_from([0, 2, 3]), min_size=1, max_size=6))
    def test_are_those_of_the_class_of_each_image(self, classes: list[int]) -> None:
        pathway = self.bank(self.ROWS).transfer(classes)
        for value in pathway.replacement.values:
            assert value.flatten(1)[:, 0].tolist() == classes
        assert pathway.ablation is Ablation.OPTIMAL
        assert self.bank(self.ROWS).by_frequency(3).replacement.values[0].flatten().tolist() == [3.0] * 3

    def test_are_known_for_classes_without_a_pathway(self) -> None:
        values = self.bank(self.ROWS).replacement_of(torch.tensor([1, 3])).values
        assert values[1].tolist() == [[1.0] * 4, [3.0] * 4]

    def test_that_are_the_same_for_all_classes_serve_every_image(self) -> None:
        means = Replacement(Ablation.MEAN, tuple(torch.rand(1, *tap.shape) for tap in TAPS))
        assert self.bank(means).transfer([3, 0, 2]).replacement is means

    def test_are_zero_where_none_are_given(self) -> None:
        assert self.bank(ZERO).transfer([0]).ablation is Ablation.ZERO
