import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from pathlens.pathways.selection import rank, select_ranked, select_top

SPARSITY = st.floats(0, 1, exclude_max=True)
# Few different values, so that ties and zeros are the rule.
ROWS = st.integers(1, 40).flatmap(
    lambda neurons: st.lists(
        st.lists(st.sampled_from([0.0, 0.25, 1.0, 1.5, 2.0**-140, 3e38]), min_size=neurons, max_size=neurons),
        min_size=1,
        max_size=4,
    )
)


def naive(row: list[float], sparsity: float) -> list[bool]:
    count = round((1 - sparsity) * len(row))
    best = sorted(range(len(row)), key=lambda index: (-row[index], index))[:count]
    return [index in best and row[index] > 0 for index in range(len(row))]


class TestSelectTop:
    @given(ROWS, SPARSITY)
    def test_keeps_the_highest_scores_the_lowest_index_first_and_no_zero(
        self, rows: list[list[float]], sparsity: float
    ) -> None:
        assert select_top(torch.tensor(rows), sparsity).tolist() == [naive(row, sparsity) for row in rows]

    @given(st.integers(1, 3000), SPARSITY)
    def test_keeps_exactly_the_count_where_all_contribute(self, neurons: int, sparsity: float) -> None:
        scores = torch.rand(2, neurons, generator=torch.Generator().manual_seed(neurons)) + 0.1
        assert select_top(scores, sparsity).sum(1).tolist() == [round((1 - sparsity) * neurons)] * 2

    @pytest.mark.parametrize("shape", ["spread", "mostly zero", "few values", "periodic", "sorted"])
    @pytest.mark.parametrize("sparsity", [0.0, 1e-5, 0.3, 0.9, 0.99999])
    def test_of_very_many_scores_keeps_the_same(self, shape: str, sparsity: float) -> None:
        scores = torch.rand(2, 200_000, generator=torch.Generator().manual_seed(3))
        scores = {
            "spread": scores,
            "mostly zero": (scores - 0.8).relu(),
            "few values": (scores * 5).floor(),
            # The sample sees one of these places alone.
            "periodic": scores + (torch.arange(200_000) % 12 == 0),
            "sorted": scores.sort(1).values,
        }[shape]
        count = round((1 - sparsity) * 200_000)
        best = scores.argsort(dim=1, descending=True, stable=True)[:, :count]
        expected = torch.zeros_like(scores, dtype=torch.bool).scatter_(1, best, True) & (scores > 0)
        assert torch.equal(select_top(scores, sparsity), expected)

    @given(ROWS, SPARSITY)
    def test_treats_each_row_as_if_it_were_alone(self, rows: list[list[float]], sparsity: float) -> None:
        together = select_top(torch.tensor(rows), sparsity)
        alone = [select_top(torch.tensor([row]), sparsity) for row in rows]
        assert torch.equal(together, torch.cat(alone))

    @given(ROWS)
    def test_keeps_a_subset_at_a_higher_sparsity(self, rows: list[list[float]]) -> None:
        dense, sparse = (select_top(torch.tensor(rows), sparsity) for sparsity in (0.3, 0.7))
        assert not (sparse & ~dense).any()

    @pytest.mark.parametrize("sparsity", [-0.01, 1.0, 2.0, math.nan, math.inf, -math.inf])
    def test_refuses_a_sparsity_outside_its_range(self, sparsity: float) -> None:
        with pytest.raises(ValueError, match=rf"sparsity is {sparsity}; expected a number in \[0, 1\)"):
            select_top(torch.ones(1, 4), sparsity)

    @pytest.mark.parametrize("scores", [torch.zeros(2, 9), torch.zeros(0, 9)])
    def test_keeps_nothing_where_nothing_contributes(self, scores: Tensor) -> None:
        assert not select_top(scores, 0.0).any()


class TestSelectRanked:
    @given(ROWS, st.data())
    def test_keeps_the_due_number_of_each_row_the_lowest_index_first_and_no_zero(
        self, rows: list[list[float]], data: st.DataObject
    ) -> None:
        counts = [data.draw(st.integers(0, len(row))) for row in rows]
        expected = [naive(row, 1 - count / len(row)) for row, count in zip(rows, counts, strict=True)]
        assert select_ranked(torch.tensor(rows), torch.tensor(counts)).tolist() == expected

    @given(ROWS, SPARSITY)
    def test_keeps_what_selection_by_sparsity_keeps_for_the_same_count(
        self, rows: list[list[float]], sparsity: float
    ) -> None:
        scores = torch.tensor(rows)
        counts = torch.full((len(rows),), round((1 - sparsity) * scores.shape[1]))
        assert torch.equal(select_ranked(scores, counts), select_top(scores, sparsity))


class TestRank:
    @given(ROWS)
    def test_gives_every_place_once_the_highest_score_first(self, rows: list[list[float]]) -> None:
        for row, places in zip(rows, rank(torch.tensor(rows)).tolist(), strict=True):
            order = sorted(range(len(row)), key=lambda index: (-row[index], index))
            assert [order[place] for place in places] == list(range(len(row)))
