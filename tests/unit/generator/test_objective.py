import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from pathlens.generator.objective import detection, distillation, odds

CLASSES = 4
LOGITS = st.lists(st.lists(st.floats(-9, 9), min_size=CLASSES, max_size=CLASSES), min_size=1, max_size=5).map(
    lambda rows: torch.tensor(rows, dtype=torch.float64)
)


def classes_of(logits: Tensor) -> Tensor:
    return torch.arange(len(logits)) % CLASSES


class TestDistillation:
    @given(LOGITS)
    def test_of_equal_distributions_is_nothing(self, logits: Tensor) -> None:
        # Logits that differ by a constant give the same distribution.
        assert float(distillation(logits, logits + 3)) == pytest.approx(0, abs=1e-12)

    @given(LOGITS, st.integers(0, 9))
    def test_is_the_divergence_of_the_taught_from_the_classifiers_distribution(self, logits: Tensor, seed: int) -> None:
        taught = torch.randn(logits.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        p, q = logits.softmax(1), taught.softmax(1)
        expected = (p * (p / q).log()).sum(1).mean()
        assert float(distillation(logits, taught)) == pytest.approx(float(expected), abs=1e-10)
        assert float(F.kl_div(q.log(), p, reduction="batchmean")) == pytest.approx(float(expected), abs=1e-10)

    def test_of_a_certain_classifier_is_finite(self) -> None:
        assert bool(distillation(torch.tensor([[1e4, 0.0]]), torch.tensor([[0.0, 1e2]])).isfinite())


class TestOdds:
    @given(LOGITS)
    def test_are_the_logit_of_the_probability_of_the_class(self, logits: Tensor) -> None:
        classes = classes_of(logits)
        probability = logits.softmax(1).gather(1, classes[:, None])[:, 0]
        assert torch.allclose(odds(logits, classes), torch.logit(probability), atol=1e-6)

    def test_of_a_certain_class_are_finite_where_its_probability_rounds_to_one(self) -> None:
        assert odds(torch.tensor([[300.0, 0.0, 0.0]]), torch.tensor([0])).tolist() == pytest.approx(
            [299.3069], abs=1e-3
        )


class TestDetection:
    @given(LOGITS, st.floats(-4, 4))
    def test_is_least_where_the_odds_are_those_of_the_classifier(self, logits: Tensor, shift: float) -> None:
        classes = classes_of(logits)
        moved = logits.scatter_add(1, classes[:, None], torch.full_like(logits[:, :1], shift))
        least = detection(logits, logits, classes)
        assert bool((detection(logits, moved, classes) >= least - 1e-12).all())
        p = odds(logits, classes).sigmoid()
        assert torch.allclose(least, F.binary_cross_entropy(p, p, reduction="none"), atol=1e-9)

    @given(LOGITS)
    def test_has_no_slope_where_the_odds_are_those_of_the_classifier(self, logits: Tensor) -> None:
        alone = logits.clone().requires_grad_()
        (slope,) = torch.autograd.grad(detection(logits, alone, classes_of(logits)).sum(), alone)
        assert torch.allclose(slope, torch.zeros_like(slope), atol=1e-9)

    def test_knows_no_other_class(self) -> None:
        logits = torch.randn(3, CLASSES, generator=torch.Generator().manual_seed(0))
        order = torch.tensor([0, 3, 1, 2])
        classes = torch.zeros(3, dtype=torch.int64)
        assert torch.allclose(detection(logits, logits, classes), detection(logits, logits[:, order], classes))
