"""What is read of the logits of a batch is what each row gives alone."""

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from pathlens.explainer.decision import decide

# Whole numbers of a small range: many are equal.
LOGITS = st.tuples(st.integers(1, 4), st.integers(1, 40), st.integers(0, 999)).map(
    lambda drawn: torch.randint(-3, 4, drawn[:2], generator=torch.Generator().manual_seed(drawn[2])).float()
)


@given(LOGITS, st.integers(1, 50))
def test_classes_are_ranked_as_argmax_ranks_them_as_deep_as_asked(logits: Tensor, depth: int) -> None:
    for decision, row in zip(decide(logits, depth), logits, strict=True):
        assert decision.ranking == sorted(range(len(row)), key=lambda index: (-float(row[index]), index))[:depth]


@given(LOGITS)
def test_a_decision_has_the_numbers_of_its_row_alone(logits: Tensor) -> None:
    for decision, row in zip(decide(logits, 1), logits, strict=True):
        np.testing.assert_array_equal(decision.logits, row.numpy())
        np.testing.assert_array_equal(decision.probabilities, row.softmax(0).numpy())


def test_what_is_not_finite_in_one_row_leaves_the_others_as_they_are() -> None:
    spoilt = torch.tensor([[float("nan"), float("inf"), 1.0], [1.0, 3.0, 2.0]])
    assert decide(spoilt, 3)[1].ranking == [1, 2, 0]
