"""Rows of one batch of pathways have the pathways that they would have alone."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pathlens.classifier.taps import Tap
from pathlens.explainer.item import Item, Row, join_pathways
from pathlens.explanation import ExplanationOptions, ExplanationRequest, Granularity, Output
from pathlens.pathways.pathway import from_flat, overlap
from tiny_bundle import pixels, tiny_explainer

TAPS = (Tap("a", "relu", (3, 2, 2), 0, "a"), Tap("b", "relu", (4,), 0, "b"))


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 3)), min_size=1, max_size=8))
def test_joined_pathways_are_those_of_the_rows_in_order(chosen: list[tuple[int, int]]) -> None:
    generator = torch.Generator().manual_seed(0)
    flat = [torch.rand(4, 7, generator=generator) > 0.5 for _ in range(3)]
    sources = [from_flat(masks, TAPS, Granularity.CHANNEL) for masks in flat]
    item = Item(ExplanationRequest(pixels()))
    rows = [Row(item, 0, sources[source], position=position) for source, position in chosen]
    expected = torch.stack([flat[source][position] for source, position in chosen])
    assert torch.equal(join_pathways(rows).flat(), expected)
    assert torch.equal(torch.cat([row.pathway.flat() for row in rows]), expected)


@given(st.integers(0, 999))
def test_overlap_is_that_of_the_sets(seed: int) -> None:
    one, other = torch.rand((2, 3, 6), generator=torch.Generator().manual_seed(seed)) > 0.6
    for row, share in enumerate(overlap(one, other).tolist()):
        a, b = ({index for index, kept in enumerate(mask[row].tolist()) if kept} for mask in (one, other))
        assert share == (len(a & b) / len(a | b) if a | b else 1.0)


def test_nobody_can_change_a_stored_pathway_through_an_answer() -> None:
    options = ExplanationOptions(outputs=frozenset({Output.PATHWAY}))
    (answer,) = tiny_explainer().explain([pixels()], options)
    with pytest.raises(ValueError, match="read-only"):
        answer.explanations[0].pathway[0].mask[0] = np.True_
