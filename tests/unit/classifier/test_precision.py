"""What another precision, another device and another autograd mode change of what is measured, and what they do not.

bfloat16 has 8 significant bits, an error of up to 0.4 % in every value. Where that moves no unit across a kink, it is
all that contributions and gradients lose; deep networks with many kinks lose more, and select nearly the same neurons.
"""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from fixture_data import cifar, needs_fixtures, networks
from pathlens.attribution.linearity import linearity_error
from pathlens.attribution.pathway_gradient import pathway_gradient
from pathlens.classifier.capture import capture
from pathlens.classifier.captured import CapturedClassifier
from pathlens.explanation import Granularity
from pathlens.pathways.confidence_selection import select_by_confidence
from pathlens.pathways.contributions import Contributions
from pathlens.pathways.neuron_intgrad import neuron_intgrad
from pathlens.pathways.neuron_mct import neuron_mct
from real_captures import real
from small_networks import CLASSES, NETWORKS, Plain, captured, images, seeded

PRECISIONS = {torch.bfloat16: torch.float32, torch.float32: torch.float32, torch.float64: torch.float64}
"""What a classifier computes in, and what its logits are in."""
DEVICES = [
    "cpu",
    pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")),
]


def batch(count: int) -> tuple[Tensor, Tensor]:
    return images(count), torch.arange(count) % CLASSES


def relative(ours: Tensor, expected: Tensor) -> Tensor:
    """Length of the difference over the length of what was expected, for each image."""
    lengths: Tensor = torch.stack([ours.cpu() - expected, expected]).flatten(2).norm(dim=2)
    return lengths[0] / lengths[1]


def flat(scores: Contributions) -> Tensor:
    return torch.cat([signed.flatten(1) for signed in scores.signed], 1)


class TestLogits:
    @pytest.mark.parametrize(("dtype", "widened"), PRECISIONS.items(), ids=str)
    @pytest.mark.parametrize("name", NETWORKS)
    def test_are_at_least_float32(self, name: str, dtype: torch.dtype, widened: torch.dtype) -> None:
        classifier = captured(name).to(dtype=dtype)
        x = images(2)
        assert classifier.dtype is dtype
        assert {value.dtype for value in (classifier(x), classifier.trace(x).logits, classifier.record(x).logits)} == {
            widened
        }
        assert {activation.dtype for activation in classifier.trace(x).activations} == {dtype}

    @pytest.mark.parametrize("name", NETWORKS)
    def test_in_double_precision_are_those_of_the_original_in_double_precision(self, name: str) -> None:
        network = seeded(NETWORKS[name]).double()
        expected = network(images(3).double())
        # Through the capture made in float32 and through a capture made in float64.
        for classifier in (captured(name).to(dtype=torch.float64), capture(network, images(2).double())):
            assert torch.allclose(classifier(images(3)), expected, rtol=0, atol=1e-12)

    def test_in_half_precision_are_those_of_the_original_in_half_precision(self) -> None:
        network = seeded(Plain).bfloat16()
        expected = network(images(3).bfloat16())
        actual = captured("plain").to(dtype=torch.bfloat16)(images(3))
        assert torch.allclose(actual, expected.float(), rtol=0.02, atol=0.01)

    def test_of_the_classifier_that_was_converted_stay_what_they_were(self) -> None:
        classifier = capture(seeded(Plain), images(2))
        before, weights = classifier(images(2)), classifier.weights_bytes()
        half = classifier.to(dtype=torch.bfloat16)
        assert {weight.dtype for weight in half.weights.values()} == {torch.bfloat16}
        assert classifier.weights_bytes() == weights
        assert torch.equal(classifier(images(2)), before)

    def test_do_not_change_where_the_precision_is_the_one_it_has(self) -> None:
        half = captured("plain").to(dtype=torch.bfloat16)
        assert half.to(dtype=torch.bfloat16) is half
        assert half.to("cpu") is half


class TestDoublePrecision:
    @pytest.mark.parametrize("name", NETWORKS)
    def test_confirms_the_contributions_and_the_gradient_of_single_precision(self, name: str) -> None:
        single, double = captured(name), captured(name).to(dtype=torch.float64)
        x, target = batch(4)
        pathway = neuron_mct(single, x, target).select(0.5)
        assert float(relative(flat(neuron_mct(double, x, target)), flat(neuron_mct(single, x, target))).max()) < 1e-4
        confirmed, integrated = (flat(neuron_intgrad(classifier, x, target, 4)) for classifier in (double, single))
        assert float(relative(confirmed, integrated).max()) < 1e-4
        gradient = pathway_gradient(double, x.double(), target, pathway)
        assert gradient.dtype is torch.float64
        assert float(relative(gradient, pathway_gradient(single, x, target, pathway)).max()) < 1e-4


@pytest.mark.parametrize("device", DEVICES)
class TestHalfPrecision:
    @pytest.mark.parametrize("count", [1, 64])
    @pytest.mark.parametrize("granularity", Granularity)
    @pytest.mark.parametrize("name", NETWORKS)
    def test_changes_the_contributions_of_most_images_by_a_rounding_error(
        self, name: str, granularity: Granularity, count: int, device: str
    ) -> None:
        x, target = batch(count)
        half = captured(name).to(device, torch.bfloat16)
        scores = neuron_mct(half, x.to(device), target.to(device), granularity)
        assert {signed.dtype for signed in scores.signed} == {torch.float32}
        assert float(relative(flat(scores), flat(neuron_mct(captured(name), x, target, granularity))).median()) < 0.01

    @pytest.mark.parametrize("count", [1, 64])
    @pytest.mark.parametrize("name", NETWORKS)
    def test_keeps_exactly_as_many_neurons_as_are_asked_for(self, name: str, count: int, device: str) -> None:
        # Values of 8 bits are often equal: ties must not make the pathway larger or smaller.
        x, target = batch(count)
        scores = neuron_mct(captured(name).to(device, torch.bfloat16), x.to(device), target.to(device))
        contributing = (scores.flat_scores() > 0).sum(1)
        for sparsity in (0.3, 0.5, 0.9):
            pathway = scores.select(sparsity)
            assert pathway.kept.tolist() == contributing.clamp(max=round((1 - sparsity) * pathway.neurons)).tolist()

    @pytest.mark.parametrize("count", [1, 64])
    @pytest.mark.parametrize("name", NETWORKS)
    def test_gives_finite_gradients_in_single_precision(self, name: str, count: int, device: str) -> None:
        x, target = batch(count)
        pathway = neuron_mct(captured(name), x, target).select(0.3)
        half = captured(name).to(device, torch.bfloat16)
        gradient = pathway_gradient(half, x.to(device), target.to(device), pathway.to(device))
        assert gradient.dtype is torch.float32
        assert bool(gradient.isfinite().all())
        if count > 1:
            # One image alone may lie at a kink.
            assert float(relative(gradient, pathway_gradient(captured(name), x, target, pathway)).median()) < 0.02

    @pytest.mark.parametrize("name", NETWORKS)
    def test_changes_integrated_contributions_by_a_rounding_error(self, name: str, device: str) -> None:
        x, target = batch(16)
        half = captured(name).to(device, torch.bfloat16)
        scores = neuron_intgrad(half, x.to(device), target.to(device), 10)
        assert float(relative(flat(scores), flat(neuron_intgrad(captured(name), x, target, 10))).median()) < 0.02

    @needs_fixtures
    @pytest.mark.parametrize("count", [1, 64])
    def test_selects_nearly_the_same_neurons_of_a_real_network(self, count: int, device: str) -> None:
        classifier = real("cifar_resnet20")
        x = networks().preprocess("cifar_resnet20", torch.from_numpy(cifar()[0][:count]).permute(0, 3, 1, 2))
        target, half = classifier(x).argmax(1), classifier.to(device, torch.bfloat16)
        for granularity in Granularity:
            expected = neuron_mct(classifier, x, target, granularity)
            scores = neuron_mct(half, x.to(device), target.to(device), granularity)
            pathway = scores.select(0.5).to("cpu")
            assert pathway.kept.tolist() == [round(0.5 * pathway.neurons)] * count
            assert float(relative(flat(scores), flat(expected)).median()) < 0.25
            assert float(pathway.iou(expected.select(0.5)).mean()) > 0.9
        gradient = pathway_gradient(half, x.to(device), target.to(device), pathway.to(device))
        assert gradient.dtype is torch.float32
        assert bool(gradient.isfinite().all())


def traced(classifier: CapturedClassifier, x: Tensor, target: Tensor, scores: Contributions) -> Tensor:
    trace = classifier.trace(x)
    with torch.enable_grad():
        total = trace.logits.sum()
    return torch.autograd.grad(total, trace.activations)[0]


def marginal(classifier: CapturedClassifier, x: Tensor, target: Tensor, scores: Contributions) -> Tensor:
    return flat(neuron_mct(classifier, x, target))


def integrated(classifier: CapturedClassifier, x: Tensor, target: Tensor, scores: Contributions) -> Tensor:
    return flat(neuron_intgrad(classifier, x, target, 3))


def gradient(classifier: CapturedClassifier, x: Tensor, target: Tensor, scores: Contributions) -> Tensor:
    return pathway_gradient(classifier, x, target, scores.select(0.5))


def confident(classifier: CapturedClassifier, x: Tensor, target: Tensor, scores: Contributions) -> Tensor:
    return select_by_confidence(classifier, x, target, scores, 0.9).flat()


def linear(classifier: CapturedClassifier, x: Tensor, target: Tensor, scores: Contributions) -> Tensor:
    return linearity_error(classifier, x, target, scores.select(0.5), x, 0.1, points=2)


Measure = Callable[[CapturedClassifier, Tensor, Tensor, Contributions], Tensor]


@pytest.mark.parametrize("measure", [traced, marginal, integrated, gradient, confident, linear])
class TestAutogradModes:
    def test_gradients_switched_off_change_nothing(self, measure: Measure) -> None:
        given = captured("residual"), *batch(2), neuron_mct(captured("residual"), *batch(2))
        expected = measure(*given)
        with torch.no_grad():
            assert torch.equal(measure(*given), expected)

    def test_inference_mode_changes_nothing_or_is_named(self, measure: Measure) -> None:
        given = captured("residual"), *batch(2), neuron_mct(captured("residual"), *batch(2))
        expected = measure(*given)
        try:
            with torch.inference_mode():
                actual = measure(*given)
        except (RuntimeError, ValueError) as error:
            assert "inference" in str(error).lower()  # noqa: PT017
        else:
            assert torch.equal(actual, expected)
