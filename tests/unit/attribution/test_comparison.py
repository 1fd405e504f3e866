from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from pathlens.attribution.comparison import (
    grad_cam,
    gradient_times_input,
    integrated_gradients,
    random_map,
    vanilla_gradient,
)
from pathlens.attribution.pathway_gradient import pathway_gradient
from pathlens.classifier.captured import CapturedClassifier
from pathlens.explanation import Granularity
from pathlens.pathways.neuron_mct import neuron_mct
from pathlens.pathways.pathway import Pathway
from small_networks import CLASSES, NETWORKS, SIDE, captured, images, original

TARGET = torch.tensor([0, 1, 2])
MAPS = [vanilla_gradient, gradient_times_input, integrated_gradients, grad_cam]
Map = Callable[[CapturedClassifier, Tensor, Tensor], Tensor]


def autograd(name: str, x: Tensor) -> Tensor:
    leaf = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(original(name)(leaf).gather(1, TARGET[:, None]).sum(), leaf)
    return gradient


def target_logits(name: str, x: Tensor) -> Tensor:
    with torch.no_grad():
        return captured(name)(x).gather(1, TARGET[:, None])[:, 0]


class TestVanillaGradient:
    @pytest.mark.parametrize("name", NETWORKS)
    def test_is_that_of_the_original_network(self, name: str) -> None:
        assert torch.allclose(vanilla_gradient(captured(name), images(3), TARGET), autograd(name, images(3)), atol=1e-5)

    @pytest.mark.parametrize("name", NETWORKS)
    def test_is_the_pathway_gradient_of_all_neurons(self, name: str) -> None:
        taps = captured(name).taps
        whole = Pathway(taps, tuple(torch.ones(3, *tap.shape, dtype=torch.bool) for tap in taps), Granularity.UNIT)
        expected = pathway_gradient(captured(name), images(3), TARGET, whole)
        assert torch.allclose(vanilla_gradient(captured(name), images(3), TARGET), expected, atol=1e-6)


@pytest.mark.parametrize("name", NETWORKS)
def test_gradient_times_input_is_their_product(name: str) -> None:
    expected = images(3) * autograd(name, images(3))
    assert torch.allclose(gradient_times_input(captured(name), images(3), TARGET), expected, atol=1e-5)


class TestIntegratedGradients:
    @pytest.mark.parametrize("name", NETWORKS)
    def test_sum_to_what_the_image_adds_to_the_target(self, name: str) -> None:
        gained = target_logits(name, images(3)) - target_logits(name, torch.zeros(3, 3, SIDE, SIDE))
        values = integrated_gradients(captured(name), images(3), TARGET).flatten(1)
        # The quadrature meets each kink of a ReLU within about 1/50 of the path.
        assert bool(((values.sum(1) - gained).abs() <= 0.02 * values.abs().sum(1)).all())

    @pytest.mark.parametrize("name", ["channels last", "normalised across channels", "transformer"])
    def test_of_a_smooth_network_sum_to_it_exactly(self, name: str) -> None:
        gained = target_logits(name, images(3)) - target_logits(name, torch.zeros(3, 3, SIDE, SIDE))
        values = integrated_gradients(captured(name), images(3), TARGET).flatten(1)
        assert torch.allclose(values.sum(1), gained, atol=1e-5)

    def test_of_a_smooth_network_are_the_mean_gradient_along_the_path_times_the_image(self) -> None:
        steps = (torch.arange(40) + 0.5) / 40
        along_the_path = (steps.view(-1, 1, 1, 1, 1) * images(3)).flatten(0, 1)
        gradients = vanilla_gradient(captured("channels last"), along_the_path, TARGET.repeat(40))
        actual = integrated_gradients(captured("channels last"), images(3), TARGET)
        assert torch.allclose(actual, images(3) * gradients.view(40, *images(3).shape).mean(0), atol=1e-5)

    def test_of_more_images_than_are_computed_at_once_are_those_of_the_images_alone(self) -> None:
        x, target = images(70), torch.arange(70) % CLASSES
        together = integrated_gradients(captured("dense"), x, target)
        for row in (0, 69):
            part = slice(row, row + 1)
            alone = integrated_gradients(captured("dense"), x[part], target[part])
            assert torch.allclose(together[part], alone, atol=1e-5)


def grad_cam_by_hand(classifier: CapturedClassifier, x: Tensor, tap: int) -> Tensor:
    trace = classifier.trace(x)
    activation = trace.activations[tap]
    (gradient,) = torch.autograd.grad(trace.logits.gather(1, TARGET[:, None]).sum(), activation)
    weighted = (gradient.mean((2, 3), keepdim=True) * activation).sum(1, keepdim=True).clamp(min=0)
    return functional.interpolate(weighted, (SIDE, SIDE), mode="bilinear").detach()


class TestGradCam:
    @pytest.mark.parametrize(
        ("name", "tap"),
        [
            ("plain", 1),
            ("residual", 3),
            ("reads the input of an in-place activation", 1),
            ("concatenating", 1),
            ("depthwise", 1),
            ("normalised across channels", 0),
            # The tap behind it, in the gate, has no height and width.
            ("gated", 0),
        ],
    )
    def test_weighs_the_last_feature_maps_with_their_mean_gradients(self, name: str, tap: int) -> None:
        expected = grad_cam_by_hand(captured(name), images(3), tap)
        actual = grad_cam(captured(name), images(3), TARGET)
        assert expected.any()
        assert actual.shape == (3, 1, SIDE, SIDE)
        assert torch.allclose(actual, expected, atol=1e-6)

    @pytest.mark.parametrize("name", ["dense", "transformer", "channels last"])
    def test_of_a_network_without_feature_maps_is_refused(self, name: str) -> None:
        with pytest.raises(ValueError, match=r"needs a tap \[channels, height, width\]"):
            grad_cam(captured(name), images(3), TARGET)


@pytest.mark.parametrize("draw", MAPS)
class TestEveryMap:
    def test_of_a_batch_is_that_of_its_images_alone(self, draw: Map) -> None:
        together = draw(captured("plain"), images(3), TARGET)
        for row in range(3):
            part = slice(row, row + 1)
            assert torch.allclose(draw(captured("plain"), images(3)[part], TARGET[part]), together[part], atol=1e-5)

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
    def test_is_float32_and_detached_in_any_precision(self, draw: Map, dtype: torch.dtype) -> None:
        actual = draw(captured("plain").to(dtype=dtype), images(3).to(dtype), TARGET)
        assert (actual.dtype, actual.requires_grad) == (torch.float32, False)

    def test_works_where_gradients_are_switched_off(self, draw: Map) -> None:
        expected = draw(captured("plain"), images(3), TARGET)
        with torch.no_grad():
            assert torch.equal(draw(captured("plain"), images(3), TARGET), expected)

    def test_leaves_images_and_classifier_as_they_were(self, draw: Map) -> None:
        x, classifier = images(3), captured("plain")
        logits, contributions = classifier(x), neuron_mct(classifier, x, TARGET).flat_scores()
        draw(classifier, x, TARGET)
        assert torch.equal(x, images(3))
        assert not x.requires_grad
        assert x.grad is None
        assert torch.equal(classifier(x), logits)
        assert torch.equal(neuron_mct(classifier, x, TARGET).flat_scores(), contributions)

    @pytest.mark.parametrize("label", [-1, CLASSES])
    def test_of_a_class_out_of_range_is_refused(self, draw: Map, label: int) -> None:
        with pytest.raises(ValueError, match="outside 0 to 3"):
            draw(captured("plain"), images(3), torch.full((3,), label))


class TestRandomMap:
    def test_is_noise_of_one_channel_in_the_unit_interval(self) -> None:
        noise = random_map(images(3), seed=1)
        assert noise.shape == (3, 1, SIDE, SIDE)
        assert 0 <= float(noise.min()) < 0.1
        assert 0.9 < float(noise.max()) < 1

    def test_is_another_one_for_each_image(self) -> None:
        first, second = random_map(images(2), seed=1)
        assert not torch.equal(first, second)

    def test_is_the_same_for_the_same_seed_alone(self) -> None:
        assert torch.equal(random_map(images(2), seed=1), random_map(images(2), seed=1))
        assert not torch.equal(random_map(images(2), seed=1), random_map(images(2), seed=2))
