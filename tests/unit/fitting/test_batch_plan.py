import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pathlens.fitting.batch_plan import BatchPlan

POSITIONS = st.sets(st.integers(0, 10_000), min_size=1, max_size=40).map(sorted)
SIZE, STEPS, SEED = st.integers(1, 50), st.integers(1, 30), st.integers(0, 2**31)


@given(POSITIONS, SIZE, STEPS, SEED)
def test_a_round_holds_each_image_at_most_once_and_none_twice_before_the_next(
    positions: list[int], size: int, steps: int, seed: int
) -> None:
    plan = BatchPlan(positions, size, steps, seed)
    per_round = len(positions) // min(size, len(positions))
    for start in range(0, steps, per_round):
        seen = [position for batch in plan[start : start + per_round] for position in batch]
        assert len(set(seen)) == len(seen)
        assert set(seen) <= set(positions)
        if per_round * min(size, len(positions)) == len(positions) and start + per_round <= steps:
            assert sorted(seen) == positions


@given(POSITIONS, SIZE, STEPS, SEED)
def test_all_batches_are_of_the_asked_size_or_of_all_images(
    positions: list[int], size: int, steps: int, seed: int
) -> None:
    plan = BatchPlan(positions, size, steps, seed)
    assert len(plan) == steps
    assert {len(batch) for batch in plan} == {min(size, len(positions))}


@given(POSITIONS, SIZE, STEPS, SEED, st.data())
def test_the_rest_of_a_plan_does_not_depend_on_where_it_is_taken_up(
    positions: list[int], size: int, steps: int, seed: int, data: st.DataObject
) -> None:
    whole = list(BatchPlan(positions, size, steps, seed))
    first = data.draw(st.integers(0, steps))
    resumed = BatchPlan(positions, size, steps, seed)
    assert resumed[first:] == whole[first:]
    if first < steps:
        assert resumed[first] == whole[first]


@given(POSITIONS, SIZE, STEPS, SEED)
def test_a_longer_plan_begins_like_a_shorter_one(positions: list[int], size: int, steps: int, seed: int) -> None:
    assert list(BatchPlan(positions, size, steps, seed)) == BatchPlan(positions, size, 2 * steps, seed)[:steps]


def test_rounds_and_seeds_differ_in_their_order() -> None:
    one, other = (BatchPlan(range(100), 100, 2, seed) for seed in (0, 1))
    assert len({tuple(batch) for batch in (*one, *other)}) == 4


def test_images_that_fill_no_batch_have_their_turn_in_another_round() -> None:
    plan = BatchPlan(range(10), 4, 40, 0)
    assert {position for batch in plan for position in batch} == set(range(10))


def test_a_step_beyond_the_plan_is_refused() -> None:
    with pytest.raises(IndexError, match="step 3 of 3"):
        BatchPlan([1, 2], 1, 3, 0)[3]


def test_the_global_random_numbers_are_left_alone() -> None:
    before = torch.get_rng_state()
    list(BatchPlan(range(10), 3, 9, 0))
    assert torch.equal(torch.get_rng_state(), before)
