import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from pathlens.generator.distance_aware_quantizer import NEAREST, SHARPNESS, quantize

TYPES = (torch.bfloat16, torch.float32, torch.float64)
FLOATS = st.lists(st.floats(width=32, allow_nan=False), min_size=1, max_size=40)
AWAY = st.floats(NEAREST + 0.02, 0.99).flatmap(lambda distance: st.sampled_from([distance, -distance]))
"""Signed distances 2x - 1 of importances from the boundary, for which the clamp does nothing."""


def gradient(scores: Tensor) -> Tensor:
    scores = scores.clone().requires_grad_()
    (found,) = torch.autograd.grad(quantize(scores).sum(), scores)
    return found


def score_of(distance: float) -> float:
    """The score whose importance is that far from ½, as 2x - 1."""
    return math.log((1 + distance) / (1 - distance))


class TestValues:
    @pytest.mark.parametrize("dtype", TYPES)
    @given(FLOATS)
    def test_are_exactly_one_above_zero_and_exactly_zero_elsewhere(
        self, dtype: torch.dtype, values: list[float]
    ) -> None:
        scores = torch.tensor(values, dtype=dtype)
        assert torch.equal(quantize(scores), (scores > 0).to(dtype))

    @pytest.mark.parametrize("dtype", TYPES)
    def test_are_exact_however_the_soft_assignment_rounds(self, dtype: torch.dtype) -> None:
        scores = torch.linspace(-12, 12, 20001).to(dtype)
        assert torch.equal(quantize(scores), (scores > 0).to(dtype))

    def test_of_the_boundary_are_zero_on_both_sides_of_it(self) -> None:
        assert quantize(torch.tensor([0.0, -0.0, 1e-45, -1e-45])).tolist() == [0, 0, 1, 0]


class TestGradient:
    @pytest.mark.parametrize("dtype", TYPES)
    @given(FLOATS)
    def test_is_finite_everywhere(self, dtype: torch.dtype, values: list[float]) -> None:
        found = gradient(torch.tensor(values, dtype=dtype))
        assert bool(found.isfinite().all())
        assert found.dtype == dtype

    @given(st.lists(st.floats(-8, 8), min_size=2, max_size=20))
    def test_never_points_the_other_way(self, values: list[float]) -> None:
        assert bool((gradient(torch.tensor(values)) > 0).all())

    @given(AWAY, AWAY)
    def test_is_the_greater_the_nearer_the_score_lies_to_the_boundary(self, one: float, other: float) -> None:
        nearer, further = sorted((one, other), key=abs)
        found = gradient(torch.tensor([score_of(nearer), score_of(further)], dtype=torch.float64))
        assert found[0] >= found[1] - 1e-12

    def test_is_the_same_on_both_sides(self) -> None:
        scores = torch.linspace(0, 9, 100, dtype=torch.float64)
        assert torch.allclose(gradient(scores), gradient(-scores))

    @given(AWAY)
    def test_is_that_of_the_soft_assignment_with_its_temperature_held(self, distance: float) -> None:
        score = score_of(distance)
        temperature = SHARPNESS / abs(distance)

        def soft(at: float) -> float:
            low, high = (1 / (1 + math.exp(-sign * SHARPNESS)) for sign in (-1, 1))
            importance = 1 / (1 + math.exp(-at))
            assigned = 1 / (1 + math.exp(-temperature * (abs(importance) - abs(importance - 1))))
            return (assigned - low) / (high - low)

        # The soft assignment itself is 0 or 1 wherever the clamp does nothing.
        assert soft(score) == pytest.approx(float(score > 0), abs=1e-9)
        step = 1e-5
        expected = (soft(score + step) - soft(score - step)) / (2 * step)
        assert float(gradient(torch.tensor([score], dtype=torch.float64))) == pytest.approx(expected, rel=1e-5)
