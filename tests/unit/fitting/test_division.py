from itertools import pairwise

import torch
from hypothesis import given
from hypothesis import strategies as st

from pathlens.fitting.division import hold_out, set_apart, thin_out

SHARES = st.floats(0.01, 0.5)
CLASSES = st.lists(st.integers(-1, 4), min_size=1, max_size=300)


@given(st.integers(1, 500), SHARES, st.integers(1, 100))
def test_every_image_either_builds_or_is_held_out(total: int, share: float, largest: int) -> None:
    building, held_out = hold_out(total, share, largest)
    assert sorted(building + held_out) == list(range(total))
    assert 1 <= len(held_out) <= largest


@given(st.integers(0, 500), st.integers(1, 100))
def test_some_of_many_positions_are_spread_evenly(total: int, largest: int) -> None:
    taken = thin_out(range(total), largest)
    assert len(taken) <= largest
    assert len(taken) == total or len(taken) * 2 > min(total, largest)
    assert len({later - earlier for earlier, later in pairwise(taken)}) <= 1


@given(CLASSES, SHARES, st.integers(1, 100))
def test_every_image_either_trains_or_validates(predicted: list[int], share: float, largest: int) -> None:
    positions = [position for position, label in enumerate(predicted) if label >= 0]
    training, validation = set_apart(positions, torch.tensor(predicted), share, largest)
    assert sorted(training + validation) == positions
    assert training == sorted(training)
    assert len(validation) <= min(largest, len(positions) * share * 1.5)


@given(CLASSES)
def test_each_class_has_its_share_of_the_validation_images(predicted: list[int]) -> None:
    labels = torch.tensor(predicted)
    positions = torch.nonzero(labels >= 0)[:, 0].tolist()
    _, validation = set_apart(positions, labels, 0.2, 1000)
    for label in range(5):
        share = sum(predicted[position] == label for position in validation)
        assert abs(share - predicted.count(label) / 5) < 1
