from collections.abc import Sequence
from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from pathlens.classifier.capture import capture
from pathlens.classifier.captured import CapturedClassifier
from pathlens.evaluation.degradation import (
    FRACTIONS,
    Order,
    area,
    area_between,
    degradation_curves,
    pixel_relevance,
)
from small_networks import SIDE, captured, images

PIXELS = 9
TARGET = torch.tensor([0, 1, 2])
INTEGERS = st.lists(st.integers(0, 3), min_size=PIXELS, max_size=PIXELS)


class Telling(nn.Module):
    """The margin of class 0 over class 1 is a binary number that tells which pixels of a 3 x 3 image are not zero."""

    def __init__(self) -> None:
        super().__init__()
        self.digits = nn.Buffer(2.0 ** torch.arange(PIXELS) / 64)

    def forward(self, x: Tensor) -> Tensor:
        margin = torch.relu(x.mean(1).flatten(1) * self.digits).sum(1)
        return torch.stack([margin, torch.zeros_like(margin)], 1)


@cache
def telling() -> CapturedClassifier:
    return capture(Telling(), torch.rand(2, 3, 3, 3))


def removed(relevance: Sequence[float], order: Order, count: int, seed: int = 0) -> set[int]:
    """Which pixels of a white image are gone when `count` of them should be."""
    curve = degradation_curves(
        telling(),
        torch.ones(1, 3, 3, 3),
        torch.zeros(1, dtype=torch.int64),
        torch.tensor(relevance).view(1, 3, 3),
        order,
        [count / PIXELS],
        seed,
    )
    left = round(64 * float(curve.double().logit()))
    return {pixel for pixel in range(PIXELS) if not left >> pixel & 1}


class TestRemovedPixels:
    @given(INTEGERS, st.sampled_from(Order), st.integers(0, PIXELS), st.integers(0, 5))
    @settings(max_examples=40)
    def test_are_as_many_as_asked_for_and_the_first_in_the_order(
        self, relevance: list[int], order: Order, count: int, seed: int
    ) -> None:
        gone = removed(relevance, order, count, seed)
        assert len(gone) == count
        sign = 1 if order is Order.LEAST_RELEVANT_FIRST else -1
        kept = set(range(PIXELS)) - gone
        assert all(sign * relevance[early] <= sign * relevance[late] for early in gone for late in kept)

    @given(INTEGERS, st.integers(0, PIXELS))
    @settings(max_examples=30)
    def test_of_one_order_are_those_of_the_other_for_the_opposite_relevance(
        self, relevance: list[int], count: int
    ) -> None:
        opposite = [-value for value in relevance]
        least = removed(relevance, Order.LEAST_RELEVANT_FIRST, count)
        assert least == removed(opposite, Order.MOST_RELEVANT_FIRST, count)

    @pytest.mark.parametrize("order", Order)
    def test_among_equals_are_random(self, order: Order) -> None:
        drawn = {frozenset(removed([1.0] * PIXELS, order, 4, seed)) for seed in range(8)}
        assert len(drawn) > 4

    def test_among_equals_are_the_same_in_both_orders(self) -> None:
        least, most = (removed([0.0] * PIXELS, order, 4) for order in Order)
        assert least == most


class TestCurves:
    @pytest.mark.parametrize("order", Order)
    def test_lead_from_the_image_to_the_mean_image(self, order: Order) -> None:
        classifier, x = captured("plain"), images(3)
        curves = degradation_curves(classifier, x, TARGET, x.abs().sum(1), order)
        whole, nothing = (classifier(batch).softmax(1).gather(1, TARGET[:, None])[:, 0] for batch in (x, 0 * x))
        assert curves.shape == (3, len(FRACTIONS))
        assert torch.allclose(curves[:, 0], whole)
        assert torch.allclose(curves[:, -1], nothing)

    @pytest.mark.parametrize("order", Order)
    def test_are_those_of_images_with_pixels_set_to_zero(self, order: Order) -> None:
        classifier, x = captured("residual"), images(3)
        relevance = torch.rand(3, SIDE, SIDE, generator=torch.Generator().manual_seed(4))
        curves = degradation_curves(classifier, x, TARGET, relevance, order, [0.25, 0.7])
        for column, count in enumerate([16, 45]):
            for row in range(3):
                ranked = relevance[row].flatten().sort(descending=order is Order.MOST_RELEVANT_FIRST).indices
                degraded = x[row].clone().flatten(1)
                degraded[:, ranked[:count]] = 0
                expected = classifier(degraded.view(1, 3, SIDE, SIDE)).softmax(1)[0, TARGET[row]]
                assert float(curves[row, column]) == pytest.approx(float(expected), abs=1e-6)

    def test_of_a_batch_are_those_of_its_images_alone(self) -> None:
        classifier, x = captured("plain"), images(3)
        relevance = x.abs().sum(1).round()
        together = degradation_curves(classifier, x, TARGET, relevance, Order.MOST_RELEVANT_FIRST)
        for row in range(3):
            part = slice(row, row + 1)
            alone = degradation_curves(classifier, x[part], TARGET[part], relevance[part], Order.MOST_RELEVANT_FIRST)
            assert torch.allclose(together[part], alone, atol=1e-6)

    @pytest.mark.parametrize("fraction", [-0.1, 1.1, float("nan")])
    def test_of_a_fraction_out_of_range_are_refused(self, fraction: float) -> None:
        with pytest.raises(ValueError, match=r"each must be in \[0, 1\]"):
            degradation_curves(
                captured("plain"), images(3), TARGET, images(3)[:, 0], Order.LEAST_RELEVANT_FIRST, [0, fraction]
            )

    def test_of_a_map_of_another_size_are_refused(self) -> None:
        with pytest.raises(ValueError, match=r"\[3, 4, 8\]; expected \[3, 8, 8\]"):
            degradation_curves(captured("plain"), images(3), TARGET, torch.rand(3, 4, SIDE), Order.LEAST_RELEVANT_FIRST)

    def test_of_a_class_out_of_range_are_refused(self) -> None:
        with pytest.raises(ValueError, match="outside 0 to 3"):
            degradation_curves(captured("plain"), images(3), TARGET + 2, images(3)[:, 0], Order.LEAST_RELEVANT_FIRST)


class TestArea:
    def test_of_a_straight_line_is_that_of_its_triangle(self) -> None:
        assert area(1 - torch.tensor([FRACTIONS])).tolist() == [pytest.approx(0.5)]

    def test_counts_uneven_fractions_by_their_width(self) -> None:
        assert area(torch.tensor([[1.0, 0.0, 0.0]]), [0, 0.1, 1]).tolist() == [pytest.approx(0.05)]

    @settings(max_examples=30)
    @given(st.lists(st.floats(0, 1, width=32), min_size=len(FRACTIONS), max_size=len(FRACTIONS)))
    def test_of_probabilities_is_in_the_unit_interval(self, curve: list[float]) -> None:
        assert -1e-9 <= float(area(torch.tensor([curve]))) <= 1 + 1e-9

    def test_between_is_positive_where_the_least_relevant_first_keeps_the_target(self) -> None:
        high, low = torch.full((1, len(FRACTIONS)), 0.9), torch.full((1, len(FRACTIONS)), 0.2)
        assert area_between(high, low).tolist() == [pytest.approx(0.7)]

    def test_between_the_orders_of_a_constant_map_is_exactly_zero(self) -> None:
        least, most = (
            degradation_curves(captured("plain"), images(3), TARGET, torch.ones(3, SIDE, SIDE), order)
            for order in Order
        )
        assert area_between(least, most).tolist() == [0, 0, 0]

    def test_between_is_largest_for_the_map_that_knows_the_network(self) -> None:
        x, target = torch.ones(1, 3, 3, 3), torch.zeros(1, dtype=torch.int64)
        knowing = torch.arange(PIXELS).view(1, 3, 3)

        def between(relevance: Tensor) -> float:
            least, most = (degradation_curves(telling(), x, target, relevance, order) for order in Order)
            return float(area_between(least, most))

        assert between(knowing) > 0.1
        assert between(knowing) == pytest.approx(-between(-knowing))
        assert between(knowing) > between(knowing.flip(1))


def test_pixel_relevance_sums_magnitudes_over_the_colour_channels() -> None:
    attribution = torch.tensor([1.0, -2.0, 3.0]).view(1, 3, 1, 1).expand(2, 3, 4, 5)
    assert torch.equal(pixel_relevance(attribution), torch.full((2, 4, 5), 6.0))
