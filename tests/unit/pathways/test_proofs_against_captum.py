"""Contributions against Captum, which computes them on the original network: no part of the capture is involved.

Captum attaches to modules, but activations may be functions, and modules may be called twice. So the original network
runs as it is, and what each activation returns passes through an identity of its own for Captum to attach to.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from captum.attr import IntegratedGradients, LayerGradientXActivation
from PIL import Image
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from fixture_data import CLASSIFIERS, FOLDER, cifar, needs_fixtures, networks
from pathlens.classifier.capture import capture
from pathlens.classifier.captured import CapturedClassifier
from pathlens.classifier.decoding import decode_image
from pathlens.explanation import Granularity
from pathlens.pathways.neuron_intgrad import QuadratureRule, neuron_intgrad
from pathlens.pathways.neuron_mct import neuron_mct
from random_networks import FAMILY, SIDE, Architecture, RandomNetwork, random_network
from real_captures import real, real_original
from small_networks import ACTIVATIONS, CLASSES, NETWORKS, Plain, captured, images, original, seeded

TARGET = torch.tensor([0, 1, 2, 3])
NAMES = {
    *("relu", "relu6", "hardtanh", "leaky_relu", "prelu", "rrelu", "gelu", "silu", "hardswish", "elu", "celu", "selu"),
    *("mish", "tanh", "softplus", "sigmoid", "hardsigmoid"),
}
METHODS = {QuadratureRule.MIDPOINT: "riemann_middle", QuadratureRule.GAUSS_LEGENDRE: "gausslegendre"}


class PassThroughPoints(TorchFunctionMode):
    """Sends what every activation function returns through a module of its own, or puts something in its place."""

    def __init__(self, points: Sequence[nn.Module], names: set[str], instead: Mapping[int, Tensor]) -> None:
        super().__init__()
        self.points, self.names, self.instead, self.calls = points, names, instead, 0

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if func.__name__.removesuffix("_") not in self.names:
            return result
        index, self.calls = self.calls, self.calls + 1
        if index in self.instead:
            # Who reads the input of an in-place activation later on reads what stands in its place.
            return result.copy_(self.instead[index]) if result is args[0] else self.instead[index]
        return self.points[index](result)


class Attachable(nn.Module):
    """A network with a point behind each activation call; sigmoid gates of the networks are none."""

    def __init__(self, network: nn.Module, taps: int, names: set[str] = NAMES) -> None:
        super().__init__()
        self.network, self.names = network, names
        self.points = nn.ModuleList(nn.Identity() for _ in range(taps))

    def forward(self, x: Tensor, instead: Mapping[int, Tensor] | None = None) -> Tensor:
        with PassThroughPoints(list(self.points), self.names, instead or {}) as mode:
            logits: Tensor = self.network(x)
        assert mode.calls == len(self.points)
        return logits

    def gradient_times_activation(self, x: Tensor, target: Tensor) -> list[Tensor]:
        scores: list[Tensor] = LayerGradientXActivation(self, list(self.points)).attribute(x, target=target)
        return scores

    def integrated(self, x: Tensor, target: Tensor, index: int, rule: QuadratureRule, steps: int) -> Tensor:
        """Integrate over a tap alone, from zero to what it is for x."""
        seen: list[Tensor] = []
        handle = self.points[index].register_forward_hook(lambda module, inputs, output: seen.append(output.detach()))
        self(x)
        handle.remove()
        scores: Tensor = IntegratedGradients(lambda activation, x: self(x, {index: activation})).attribute(
            seen[0].clone(), target=target, additional_forward_args=(x,), n_steps=steps, method=METHODS[rule]
        )
        return scores


class TokensFirst(nn.Module):
    """Four tokens of which the batch is the second dimension, except where the activation function is."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.linear = nn.Conv2d(3, 8, 4, 4), nn.Linear(8, CLASSES)
        self.widen, self.narrow = nn.Linear(8, 12), nn.Linear(12, 8)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patches(x).flatten(2).permute(2, 0, 1)
        hidden = torch.relu(self.widen(tokens.transpose(0, 1)))
        logits: Tensor = self.linear((tokens + self.narrow(hidden).transpose(0, 1)).pow(3).mean(0))
        return logits


def attachable(name: str) -> Attachable:
    names = NAMES - {"sigmoid"} if name == "gated" else NAMES
    return Attachable(original(name), len(captured(name).taps), names)


def difference(ours: Tensor, expected: Tensor) -> float:
    """Largest difference, relative to the largest score."""
    assert ours.shape == expected.shape
    return float((ours - expected).abs().max() / expected.abs().max())


def real_images(name: str, count: int) -> Tensor:
    if name == "cifar_resnet20":
        pixels = cifar()[0][:count]
    else:
        files = sorted((FOLDER / "imagenet_val").glob("*.JPEG"))[:count]
        photographs = [Image.fromarray(decode_image(file.read_bytes())) for file in files]
        pixels = np.stack([np.array(photograph.resize((224, 224))) for photograph in photographs])
    batch: Tensor = networks().preprocess(name, torch.from_numpy(pixels).permute(0, 3, 1, 2))
    return batch


def last_taps(classifier: CapturedClassifier, count: int) -> CapturedClassifier:
    """The same classifier with its last taps alone: integrals over all taps of a large network take minutes."""
    program = replace(classifier.program, taps=classifier.taps[-count:])
    return CapturedClassifier(program, classifier.weights)


def silence(index: int, tap: int, activation: Tensor) -> Tensor:
    return activation * 0 if tap == index else activation


class TestMarginalContributions:
    @pytest.mark.parametrize("name", NETWORKS)
    def test_are_the_layer_gradients_times_activations_of_the_original_network(self, name: str) -> None:
        expected = attachable(name).gradient_times_activation(images(4), TARGET)
        scores = neuron_mct(captured(name), images(4), TARGET).signed
        assert len(scores) == len(expected)
        for ours, theirs in zip(scores, expected, strict=True):
            assert torch.allclose(ours, theirs, rtol=0, atol=1e-5)

    @pytest.mark.parametrize("name", ACTIVATIONS)
    def test_are_so_for_every_activation_function(self, name: str) -> None:
        network = seeded(lambda: Plain(ACTIVATIONS[name][1]()))
        expected = Attachable(network, 2).gradient_times_activation(images(4), TARGET)
        scores = neuron_mct(capture(network, images(2)), images(4), TARGET).scores
        for ours, theirs in zip(scores, expected, strict=True):
            assert torch.allclose(ours, theirs.abs(), rtol=0, atol=1e-5)

    @pytest.mark.parametrize("architecture", FAMILY, ids=str)
    def test_are_so_for_networks_of_every_make(self, architecture: Architecture) -> None:
        batch, classifier = images(4, side=SIDE), random_network(architecture)
        network = seeded(partial(RandomNetwork, architecture))
        expected = Attachable(network, len(classifier.taps)).gradient_times_activation(batch, TARGET)
        for ours, theirs in zip(neuron_mct(classifier, batch, TARGET).signed, expected, strict=True):
            assert torch.allclose(ours, theirs, rtol=0, atol=1e-5)

    def test_need_no_point_where_captum_reaches_the_module_itself(self) -> None:
        # The same proof once more without any help of these tests: two modules, each called once.
        body = original("depthwise").get_submodule("body")
        layers = [body.get_submodule("1"), body.get_submodule("3")]
        expected = LayerGradientXActivation(original("depthwise"), layers).attribute(images(4), target=TARGET)
        for ours, theirs in zip(neuron_mct(captured("depthwise"), images(4), TARGET).scores, expected, strict=True):
            assert torch.allclose(ours, theirs.abs(), rtol=0, atol=1e-5)

    def test_of_channels_are_the_sums_over_their_maps(self) -> None:
        expected = attachable("residual").gradient_times_activation(images(4), TARGET)
        scores = neuron_mct(captured("residual"), images(4), TARGET, Granularity.CHANNEL).scores
        for ours, theirs in zip(scores, expected, strict=True):
            assert torch.allclose(ours, theirs.sum((2, 3)).abs(), rtol=0, atol=1e-5)

    @needs_fixtures
    @pytest.mark.parametrize("name", CLASSIFIERS)
    def test_are_so_for_real_networks_and_images(self, name: str) -> None:
        batch, taps = real_images(name, 2), CLASSIFIERS[name][0]
        target = real(name)(batch).argmax(1)
        expected = Attachable(real_original(name), taps).gradient_times_activation(batch, target)
        for ours, theirs in zip(neuron_mct(real(name), batch, target).scores, expected, strict=True):
            assert torch.allclose(ours, theirs.abs(), rtol=0, atol=1e-5)


class TestIntegratedContributions:
    @pytest.mark.parametrize("rule", QuadratureRule)
    @pytest.mark.parametrize("name", NETWORKS)
    def test_are_the_integrated_gradients_of_the_tail(self, name: str, rule: QuadratureRule) -> None:
        network, scores = attachable(name), neuron_intgrad(captured(name), images(4), TARGET, rule=rule)
        for index, ours in enumerate(scores.signed):
            assert difference(ours, network.integrated(images(4), TARGET, index, rule, 50)) < 1e-3

    @pytest.mark.parametrize("rule", QuadratureRule)
    @pytest.mark.parametrize("name", ["dense", "depthwise"])
    def test_are_those_of_the_layers_behind_the_tap(self, name: str, rule: QuadratureRule) -> None:
        # The same proof once more without any help of these tests: the tail of a sequence is the rest of the sequence.
        layers = list(original(name).get_submodule("body").children())
        ends = [place + 1 for place, layer in enumerate(layers) if isinstance(layer, nn.ReLU | nn.ReLU6)]
        scores = neuron_intgrad(captured(name), images(4), TARGET, rule=rule).signed
        for end, ours in zip(ends, scores, strict=True):
            tail, activation = nn.Sequential(*layers[end:]), nn.Sequential(*layers[:end])(images(4)).detach()
            expected = IntegratedGradients(tail).attribute(activation, target=TARGET, method=METHODS[rule])
            assert difference(ours, expected) < 1e-3

    @pytest.mark.parametrize("count", [3, 4])
    def test_are_so_where_another_dimension_comes_first(self, count: int) -> None:
        # Four images of four tokens: the size of a dimension does not tell what it counts.
        network, batch, target = seeded(TokensFirst), images(count), TARGET[:count]
        expected = Attachable(network, 1).integrated(batch, target, 0, QuadratureRule.MIDPOINT, 5)
        (ours,) = neuron_intgrad(capture(network, images(2)), batch, target, steps=5).signed
        assert difference(ours, expected) < 1e-3

    @needs_fixtures
    @pytest.mark.parametrize(("name", "taps"), [("cifar_resnet20", 4), ("squeezenet1_1", 3), ("mobilenet_v2", 2)])
    def test_are_so_for_the_last_taps_of_real_networks(self, name: str, taps: int) -> None:
        batch, first = real_images(name, 2), CLASSIFIERS[name][0] - taps
        target = real(name)(batch).argmax(1)
        network = Attachable(real_original(name), CLASSIFIERS[name][0])
        scores = neuron_intgrad(last_taps(real(name), taps), batch, target, steps=5)
        for index, ours in enumerate(scores.signed):
            expected = network.integrated(batch, target, first + index, QuadratureRule.MIDPOINT, 5)
            assert difference(ours, expected) < 1e-3

    @needs_fixtures
    @pytest.mark.parametrize(("name", "taps"), [("squeezenet1_1", 4), ("mobilenet_v2", 3)])
    def test_add_up_to_what_the_last_taps_of_real_networks_are_worth(self, name: str, taps: int) -> None:
        classifier, batch = last_taps(real(name), taps), real_images(name, 2)
        logits = classifier(batch)
        target = logits.argmax(1)
        for index, signed in enumerate(neuron_intgrad(classifier, batch, target, steps=50).signed):
            left = classifier.run(batch, partial(silence, index))
            worth = (logits - left).gather(1, target[:, None])[:, 0]
            assert torch.allclose(signed.flatten(1).sum(1), worth, rtol=0.01)
