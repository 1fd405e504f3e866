import gc
from functools import partial

import pytest
import torch
from torch import Tensor

from fixture_data import cifar, needs_fixtures, networks
from pathlens.classifier.captured import CapturedClassifier
from pathlens.explanation import Granularity
from pathlens.pathways.neuron_intgrad import QuadratureRule, neuron_intgrad
from pathlens.pathways.neuron_mct import neuron_mct
from real_captures import real
from small_networks import NETWORKS, captured, images

UNIT, CHANNEL = Granularity.UNIT, Granularity.CHANNEL
TARGET = torch.tensor([0, 1, 2, 3])


def silence(index: int, tap: int, activation: Tensor) -> Tensor:
    return activation * 0 if tap == index else activation


def without_tap(classifier: CapturedClassifier, batch: Tensor, index: int) -> Tensor:
    """Return the targets' logits with one tap at zero."""
    logits = classifier.run(batch, partial(silence, index))
    return logits.gather(1, TARGET[:, None])[:, 0].detach()


def integral_from_the_image(classifier: CapturedClassifier, batch: Tensor, index: int, points: int) -> Tensor:
    """Integrate by running the whole classifier for every point, with one tap scaled."""
    total = torch.zeros(())
    for point, weight in zip(*QuadratureRule.MIDPOINT.points(points), strict=True):
        seen: list[Tensor] = []

        def scale(tap: int, activation: Tensor, point: float = point, seen: list[Tensor] = seen) -> Tensor:
            if tap != index:
                return activation
            seen.append((activation.detach() * point).requires_grad_())
            return seen[0]

        logits = classifier.run(batch, scale).gather(1, TARGET[:, None])
        (gradient,) = torch.autograd.grad(logits.sum(), seen[0])
        total = total + weight * gradient
    return total * classifier.trace(batch).activations[index].detach()


@pytest.mark.parametrize("name", NETWORKS)
def test_the_tail_gives_the_integral_that_the_whole_classifier_gives(name: str) -> None:
    classifier = captured(name)
    scores = neuron_intgrad(classifier, images(4), TARGET, steps=6)
    for index in range(len(classifier.taps)):
        expected = integral_from_the_image(classifier, images(4), index, 6)
        assert torch.allclose(scores.signed[index], expected, atol=1e-5)


@pytest.mark.parametrize("rule", QuadratureRule)
@pytest.mark.parametrize("name", NETWORKS)
def test_the_contributions_of_a_tap_add_up_to_what_it_is_worth(name: str, rule: QuadratureRule) -> None:
    classifier, batch = captured(name), images(4)
    whole = classifier(batch).gather(1, TARGET[:, None])[:, 0].detach()
    scores = neuron_intgrad(classifier, batch, TARGET, steps=200, rule=rule)
    for index, signed in enumerate(scores.signed):
        worth = whole - without_tap(classifier, batch, index)
        assert torch.allclose(signed.flatten(1).sum(1), worth, atol=0.01 * max(1.0, float(worth.abs().max())))


@pytest.mark.parametrize("name", ["plain", "transformer", "concatenating"])
def test_a_channel_contributes_what_its_units_contribute_together(name: str) -> None:
    classifier = captured(name)
    units = neuron_intgrad(classifier, images(4), TARGET, steps=5)
    channels = neuron_intgrad(classifier, images(4), TARGET, steps=5, granularity=CHANNEL)
    for tap, unit, channel in zip(classifier.taps, units.signed, channels.signed, strict=True):
        others = [dimension for dimension in range(1, unit.ndim) if dimension != 1 + tap.channel_dimension]
        assert torch.allclose(unit.sum(others) if others else unit, channel, atol=1e-5)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_batch_gets_what_its_images_get_alone(name: str) -> None:
    classifier = captured(name)
    together = neuron_intgrad(classifier, images(4), TARGET, steps=4)
    for row in range(4):
        alone = neuron_intgrad(classifier, images(4)[row : row + 1], TARGET[row : row + 1], steps=4)
        for a, b in zip(together.signed, alone.signed, strict=True):
            assert torch.allclose(a[row : row + 1], b, atol=1e-5)


def test_the_memory_bound_changes_nothing() -> None:
    classifier = captured("residual")
    wide = neuron_intgrad(classifier, images(4), TARGET, steps=7, largest_batch=100)
    narrow = neuron_intgrad(classifier, images(4), TARGET, steps=7, largest_batch=3)
    for a, b in zip(wide.signed, narrow.signed, strict=True):
        assert torch.allclose(a, b, atol=1e-6)


def test_one_point_at_the_tap_itself_would_be_the_marginal_contribution() -> None:
    # Behind the last tap of a perceptron everything is linear: every point of the path has the same gradient.
    classifier = captured("dense")
    integrated = neuron_intgrad(classifier, images(4), TARGET, steps=3).signed[-1]
    assert torch.allclose(integrated, neuron_mct(classifier, images(4), TARGET).signed[-1], atol=1e-6)


def test_dead_neurons_contribute_nothing() -> None:
    classifier = captured("plain")
    scores = neuron_intgrad(classifier, images(4), TARGET, steps=4)
    for activation, signed in zip(classifier.trace(images(4)).activations, scores.signed, strict=True):
        assert bool((signed[activation == 0] == 0).all())


@pytest.mark.parametrize("rule", QuadratureRule)
@pytest.mark.parametrize("steps", [1, 2, 50])
def test_the_points_lie_inside_and_their_weights_add_up_to_one(rule: QuadratureRule, steps: int) -> None:
    points, weights = rule.points(steps)
    assert len(points) == len(weights) == steps
    assert all(0 < point < 1 for point in points)
    assert sum(weights) == pytest.approx(1)
    # Both rules integrate a straight line exactly.
    assert sum(p * w for p, w in zip(points, weights, strict=True)) == pytest.approx(0.5)


@pytest.mark.parametrize("steps", [0, -3])
def test_too_few_steps_are_named(steps: int) -> None:
    with pytest.raises(ValueError, match=f"steps is {steps}; expected at least 1"):
        neuron_intgrad(captured("plain"), images(4), TARGET, steps=steps)


def test_an_empty_memory_bound_is_named() -> None:
    with pytest.raises(ValueError, match="largest_batch is 0"):
        neuron_intgrad(captured("plain"), images(4), TARGET, largest_batch=0)


def test_a_target_out_of_range_is_named_before_any_work() -> None:
    with pytest.raises(ValueError, match="outside 0 to 3"):
        neuron_intgrad(captured("plain"), images(4), torch.tensor([0, 1, 2, 4]))


@needs_fixtures
def test_the_contributions_of_a_real_network_are_complete_to_one_percent_at_fifty_steps() -> None:
    # On average over taps and images; single pairs with many kinks on the way miss by more.
    classifier = real("cifar_resnet20")
    pixels = torch.from_numpy(cifar()[0][::125]).permute(0, 3, 1, 2)
    batch = networks().preprocess("cifar_resnet20", pixels)
    logits = classifier(batch)
    target = logits.argmax(1)
    scores = neuron_intgrad(classifier, batch, target, steps=50)
    errors = []
    for index, signed in enumerate(scores.signed):
        left = classifier.run(batch, partial(silence, index))
        worth = (logits - left).gather(1, target[:, None])[:, 0]
        errors.append((signed.flatten(1).sum(1) - worth).abs() / worth.abs())
    assert float(torch.stack(errors).mean()) < 0.01


@pytest.mark.parametrize("name", ["residual", "transformer"])
def test_what_a_tail_computed_is_freed_at_once(name: str) -> None:
    # And not when the garbage collector runs, which counts objects and does not know how large tensors are.
    def tensors() -> int:
        return sum(issubclass(type(each), Tensor) for each in gc.get_objects())

    classifier, batch = captured(name), images(4)
    neuron_intgrad(classifier, batch, TARGET, steps=2)
    gc.collect()
    gc.disable()
    try:
        before = tensors()
        neuron_intgrad(classifier, batch, TARGET, steps=9, largest_batch=3)
        assert tensors() == before
    finally:
        gc.enable()
