import math
from functools import cache

import pytest
import torch
from torch import Tensor, nn

from fixture_data import cifar, needs_fixtures, networks
from pathlens.attribution.linearity import linearity_error
from pathlens.attribution.pathway_gradient import pathway_gradient
from pathlens.classifier.capture import capture
from pathlens.classifier.captured import CapturedClassifier
from pathlens.explanation import Granularity
from pathlens.pathways.neuron_mct import neuron_mct
from pathlens.pathways.pathway import Pathway
from random_networks import drawn_pathway
from real_captures import real
from small_networks import NETWORKS, captured, images, seeded

SIDE = 4
SIZE = 3 * SIDE * SIDE
TARGET = torch.tensor([0, 1, 2])


class Quadratic(nn.Module):
    """Classes: the sum of the squares, a linear function, a constant, and one to hold the activation function."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(SIZE, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1)
        return torch.stack([(x * x).sum(1), self.linear(x)[:, 0], 0 * x[:, 0] + 2, x.relu().sum(1)], 1)


@cache
def quadratic() -> CapturedClassifier:
    return capture(seeded(Quadratic), torch.zeros(2, 3, SIDE, SIDE))


def whole(classifier: CapturedClassifier, count: int) -> Pathway:
    masks = tuple(torch.ones(count, *tap.shape, dtype=torch.bool) for tap in classifier.taps)
    return Pathway(classifier.taps, masks, Granularity.UNIT)


def error(
    classifier: CapturedClassifier, batch: Tensor, target: Tensor, radius: float, pathway: Pathway | None = None
) -> Tensor:
    pathway = pathway or whole(classifier, len(batch))
    return linearity_error(
        classifier, batch, target, pathway, pathway_gradient(classifier, batch, target, pathway), radius
    )


class TestByHand:
    @pytest.mark.parametrize(("start", "radius"), [(0.25, 0.5), (0.1, 2.0), (2.0, 0.5)])
    def test_the_sum_of_squares_is_as_curved_as_the_moments_of_the_ball_say(self, start: float, radius: float) -> None:
        # f(x₀ + d) - f(x₀) = 2 x₀·d + |d|². In a ball of n dimensions E|d|⁴ = n/(n + 4) R⁴ and
        # E(x₀·d)² = |x₀|² R²/(n + 2); the product of both has the mean 0.
        curved = SIZE / (SIZE + 4) * radius**4
        straight = 4 * start**2 * SIZE / (SIZE + 2) * radius**2
        batch, target = torch.full((1, 3, SIDE, SIDE), start), torch.tensor([0])
        gradient = 2 * batch
        actual = linearity_error(quadratic(), batch, target, whole(quadratic(), 1), gradient, radius, points=2000)
        assert float(actual) == pytest.approx(math.sqrt(curved / (straight + curved)), rel=0.05)

    def test_no_first_order_change_at_all_is_an_error_of_one(self) -> None:
        assert float(error(quadratic(), torch.zeros(1, 3, SIDE, SIDE), torch.tensor([0]), 0.7)) == pytest.approx(1)

    @pytest.mark.parametrize("share", [0.0, 0.5, 0.99, 1.25])
    def test_a_gradient_that_is_off_by_a_share_is_wrong_by_that_share(self, share: float) -> None:
        gradient = quadratic().weights["linear.weight"].view(1, 3, SIDE, SIDE) * share
        batch, target = images(1, side=SIDE), torch.tensor([1])
        actual = linearity_error(quadratic(), batch, target, whole(quadratic(), 1), gradient, 0.3)
        assert float(actual) == pytest.approx(abs(1 - share), abs=1e-6)

    def test_a_constant_is_exactly_linear(self) -> None:
        assert error(quadratic(), images(2, side=SIDE), torch.tensor([2, 2]), 3.0).tolist() == [0, 0]


class TestLinearFunctions:
    @pytest.mark.parametrize("radius", [1e-3, 1.0, 100.0])
    def test_a_linear_classifier_has_no_error(self, radius: float) -> None:
        assert float(error(quadratic(), images(3, side=SIDE), torch.tensor([1, 1, 1]), radius).max()) < 1e-6

    def test_a_relu_network_has_none_within_its_linear_region_and_some_beyond(self) -> None:
        classifier = captured("dense")
        pathway = drawn_pathway(classifier, Granularity.UNIT, 3)
        distance = distance_to_the_nearest_kink(classifier, images(3), pathway)
        for row in range(3):
            one = slice(row, row + 1)
            start, target, part = images(3)[one], TARGET[one], pathway[one]
            assert float(error(classifier, start, target, 0.99 * distance[row], part)) < 1e-6
            assert float(error(classifier, start, target, 100 * distance[row], part)) > 1e-3


def distance_to_the_nearest_kink(classifier: CapturedClassifier, batch: Tensor, pathway: Pathway) -> list[float]:
    """How far each image of the perceptron is from where one of its units switches, if those before it stay linear."""
    weights = classifier.weights
    first, second = weights["body.1.weight"], weights["body.3.weight"]
    before = batch.flatten(1) @ first.T + weights["body.1.bias"]
    distances = []
    for row, mask in enumerate(pathway.masks[0]):
        active = (before[row] > 0) & mask
        slopes = torch.cat([first, second[:, active] @ first[active]])
        values = torch.cat([before[row], (before[row] * active) @ second.T + weights["body.3.bias"]])
        distances.append(float((values.abs() / slopes.norm(dim=1)).min()))
    return distances


class TestCurvedFunctions:
    @pytest.mark.parametrize("name", ["channels last", "normalised across channels", "transformer"])
    def test_smooth_networks_are_the_less_linear_the_farther_one_looks(self, name: str) -> None:
        errors = torch.stack([error(captured(name), images(3), TARGET, radius) for radius in (1e-3, 1e-2, 0.1, 1.0)])
        assert bool((errors.diff(dim=0) > 0).all())
        # Taylor: in a small ball the error is proportional to the radius.
        assert torch.allclose(errors[1] / errors[0], torch.tensor(10.0), rtol=0.1)

    @pytest.mark.parametrize("name", NETWORKS)
    def test_a_batch_gets_what_its_images_get_alone(self, name: str) -> None:
        classifier = captured(name)
        pathway = neuron_mct(classifier, images(3), TARGET).select(0.3)
        together = error(classifier, images(3), TARGET, 0.5, pathway)
        for row in range(3):
            one = slice(row, row + 1)
            alone = error(classifier, images(3)[one], TARGET[one], 0.5, pathway[one])
            assert torch.allclose(together[one], alone, atol=1e-5)

    def test_other_points_give_another_estimate_and_the_same_seed_the_same(self) -> None:
        classifier, pathway = captured("transformer"), whole(captured("transformer"), 3)
        gradient = pathway_gradient(classifier, images(3), TARGET, pathway)
        first, again, other = (
            linearity_error(classifier, images(3), TARGET, pathway, gradient, 0.5, seed=seed) for seed in (1, 1, 2)
        )
        assert torch.equal(first, again)
        assert not torch.equal(first, other)

    @needs_fixtures
    def test_pathways_of_contributors_are_more_linear_than_the_whole_of_a_real_network(self) -> None:
        classifier = real("cifar_resnet20")
        batch = networks().preprocess("cifar_resnet20", torch.from_numpy(cifar()[0][:4]).permute(0, 3, 1, 2))
        target = classifier(batch).argmax(1)
        pathway = neuron_mct(classifier, batch, target).select(0.9)
        of_pathway = error(classifier, batch, target, 1.0, pathway)
        of_network = error(classifier, batch, target, 1.0)
        assert float(of_pathway.mean()) < float(of_network.mean())


class TestRefusals:
    @pytest.mark.parametrize("radius", [0.0, -1.0, math.nan, math.inf])
    def test_a_radius_that_is_none(self, radius: float) -> None:
        with pytest.raises(ValueError, match=f"radius is {radius}; expected a finite number above 0"):
            error(captured("plain"), images(3), TARGET, radius)

    @pytest.mark.parametrize("points", [0, -4])
    def test_too_few_points(self, points: int) -> None:
        pathway = whole(captured("plain"), 3)
        with pytest.raises(ValueError, match=f"points is {points}; expected at least 1"):
            linearity_error(captured("plain"), images(3), TARGET, pathway, images(3), 1.0, points=points)

    def test_a_class_out_of_range(self) -> None:
        pathway = whole(captured("plain"), 3)
        with pytest.raises(ValueError, match="outside 0 to 3"):
            linearity_error(captured("plain"), images(3), torch.tensor([0, 1, 4]), pathway, images(3), 1.0)

    def test_a_target_for_another_number_of_images(self) -> None:
        pathway = whole(captured("plain"), 3)
        with pytest.raises(ValueError, match=r"expected int64 \[3\]"):
            linearity_error(captured("plain"), images(3), TARGET[:2], pathway, images(3), 1.0)
