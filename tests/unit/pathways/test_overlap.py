import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pathlens.classifier.taps import Tap
from pathlens.explanation import Granularity
from pathlens.pathways.overlap import measure_overlap
from pathlens.pathways.pathway import from_flat

TAPS = (Tap("a#1", "relu", (2, 2, 2), 0, "a"), Tap("b#1", "relu", (3,), 0, "b"))
NEURONS = {Granularity.CHANNEL: 5, Granularity.UNIT: 11}


@pytest.mark.parametrize("granularity", Granularity)
@given(data=st.data())
def test_overlaps_are_the_means_over_all_pairs_of_images(granularity: Granularity, data: st.DataObject) -> None:
    neurons = NEURONS[granularity]
    mask = st.lists(st.booleans(), min_size=neurons, max_size=neurons)
    rows = data.draw(st.lists(st.tuples(st.integers(0, 3), mask), min_size=1, max_size=9))
    predicted = [label for label, _ in rows]
    kept = [{neuron for neuron, chosen in enumerate(mask) if chosen} for _, mask in rows]
    flat = torch.tensor([mask for _, mask in rows], dtype=torch.bool)
    found = measure_overlap(torch.tensor(predicted), from_flat(flat, TAPS, granularity))

    assert list(found) == sorted(set(predicted))
    for label, overlap in found.items():
        within: list[float] = []
        cross: list[float] = []
        for one, own in enumerate(kept):
            for other, theirs in enumerate(kept):
                if predicted[one] != label or one == other:
                    continue
                share = len(own & theirs) / len(own | theirs) if own | theirs else 1.0
                (within if predicted[other] == label else cross).append(share)
        assert overlap.within == (pytest.approx(sum(within) / len(within)) if within else None)
        assert overlap.cross == (pytest.approx(sum(cross) / len(cross)) if cross else None)


def test_pathways_of_one_class_that_are_the_same_overlap_wholly() -> None:
    flat = torch.tensor([[1, 0, 1, 0, 1]] * 3 + [[0, 1, 0, 1, 0]]) > 0
    found = measure_overlap(torch.tensor([2, 2, 2, 0]), from_flat(flat, TAPS, Granularity.CHANNEL))
    assert (found[2].within, found[2].cross, found[0].within, found[0].cross) == (1, 0, None, 0)


def test_more_neurons_than_one_product_counts_are_counted_exactly() -> None:
    # More than 2¹⁶ neurons at one tap.
    tap = Tap("large#1", "relu", (1, 300, 300), 0, "large")
    flat = torch.rand(3, tap.units, generator=torch.Generator().manual_seed(0)) < 0.5
    pathway = from_flat(flat, (tap,), Granularity.UNIT)
    found = measure_overlap(torch.tensor([0, 0, 1]), pathway)
    assert found[0].within == pytest.approx(float(pathway[[0]].iou(pathway[[1]])), abs=1e-7)
    assert found[1].cross == pytest.approx(float(pathway[[0, 1]].iou(pathway[[2]]).mean()), abs=1e-7)
