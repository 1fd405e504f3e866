from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pathlens.generator.price import FULL_STEP, HIGHEST, LOWEST, SearchedPrice

STEPS = 60
FIRST = st.floats(LOWEST, HIGHEST)
ENOUGH = torch.tensor([FULL_STEP])

OUTCOMES = st.lists(st.tuples(st.booleans(), st.booleans(), st.floats(0, 1)), min_size=1, max_size=STEPS)
"""Whether images keep their class, whether others are forced, and how sparse their masks are."""


def search(first: float = 1.0, agreement: float = 0.9, forcing: float = 0.2) -> SearchedPrice:
    return SearchedPrice(1, first, STEPS, agreement, forcing)


def show(found: SearchedPrice, kept: float, forced: float, sparsity: float) -> float:
    """Take a step after which these shares keep their class and are forced; returns the price."""
    found.judge(torch.tensor([kept]), torch.tensor([forced]), 1)
    found.follow(ENOUGH, torch.tensor([sparsity]))
    return float(found.prices[0])


def prices_of(found: SearchedPrice, outcomes: list[tuple[bool, bool, float]]) -> list[float]:
    return [show(found, float(kept), float(forced), sparsity) for kept, forced, sparsity in outcomes]


class TestAPrice:
    @given(FIRST)
    def test_rises_while_every_image_keeps_its_class_none_is_forced_and_masks_stay_dense(self, first: float) -> None:
        prices = [first, *prices_of(search(first), [(True, False, 0.0)] * STEPS)]
        assert all(after >= before * 0.9999 for before, after in pairwise(prices))
        assert prices[-1] > prices[0] or prices[0] > 0.99 * HIGHEST

    @pytest.mark.parametrize(("kept", "forced"), [(False, False), (True, True), (False, True)])
    @given(FIRST)
    def test_falls_while_agreement_or_forcing_is_violated_and_masks_stay_sparse(
        self, kept: bool, forced: bool, first: float
    ) -> None:
        prices = prices_of(search(first), [(kept, forced, 0.9)] * STEPS)[STEPS // 2 :]
        assert all(after <= before * 1.0001 for before, after in pairwise(prices))
        assert prices[-1] < prices[0] or prices[0] < 1.01 * LOWEST

    @given(FIRST, OUTCOMES)
    def test_stays_within_its_bounds(self, first: float, outcomes: list[tuple[bool, bool, float]]) -> None:
        for price in prices_of(search(first), outcomes):
            assert LOWEST * 0.9999 <= price <= HIGHEST * 1.0001

    def test_of_a_class_without_images_in_a_batch_stays_where_it_is(self) -> None:
        found = SearchedPrice(2, 1.0, STEPS, 0.9, 0.2)
        for _ in range(STEPS):
            found.judge(torch.zeros(2), torch.zeros(2), 1)
            found.follow(torch.tensor([FULL_STEP, 0]), torch.full((2,), 0.9))
        lost, unseen = found.prices.tolist()
        assert lost < 1 == unseen

    def test_of_a_class_with_few_images_in_each_batch_moves_more_slowly(self) -> None:
        moved = []
        for images in (1, FULL_STEP):
            found = search()
            for _ in range(STEPS):
                found.judge(torch.zeros(1), torch.zeros(1), 1)
                found.follow(torch.tensor([images]), torch.full((1,), 0.9))
            moved.append(1 - float(found.prices[0]))
        assert 0 < moved[0] < moved[1]

    @given(FIRST)
    def test_is_charged_whole_while_there_is_room_and_not_at_all_beyond_a_bound(self, first: float) -> None:
        found = search(first)
        before = float(found.charged[0])
        found.judge(torch.tensor([0.89]), torch.tensor([0.0]), 1)
        assert (before, float(found.charged[0])) == (float(found.prices[0]), 0)

    def test_begins_at_the_sparsity_of_the_first_masks(self) -> None:
        # Masks that are sparse already must not become dense first.
        found = search()
        assert show(found, 1.0, 0.0, 0.9) >= 1


class TestWeights:
    @given(OUTCOMES, st.integers(1, 6))
    def test_have_the_mean_one_over_a_class_and_the_others(
        self, outcomes: list[tuple[bool, bool, float]], members: int
    ) -> None:
        found = search()
        prices_of(found, outcomes)
        weights = found.weights(torch.zeros(2 * members, dtype=torch.int64), members)
        assert bool((weights > 0).all())
        assert float(weights.mean()) == pytest.approx(1)

    @pytest.mark.parametrize(("kept", "forced", "sign"), [(False, False, 1), (True, True, -1)])
    def test_are_greater_for_what_is_further_from_its_bound(self, kept: bool, forced: bool, sign: int) -> None:
        found = search()
        prices_of(found, [(kept, forced, 0.5)] * STEPS)
        member, other = found.weights(torch.zeros(2, dtype=torch.int64), 1).tolist()
        assert sign * (member - other) > 0


@given(OUTCOMES, OUTCOMES)
def test_a_search_that_is_stored_and_taken_up_again_finds_the_same(
    before: list[tuple[bool, bool, float]], after: list[tuple[bool, bool, float]]
) -> None:
    whole, resumed = search(), search()
    prices_of(whole, before)
    resumed.load_state_dict(whole.state_dict())
    assert prices_of(whole, after) == prices_of(resumed, after)
    assert torch.equal(whole.balance, resumed.balance)
