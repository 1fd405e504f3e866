"""An accelerated classifier computes what the original computes, or is the original."""

import gc
import weakref
from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pathlens.attribution.pathway_gradient import run_pathway
from pathlens.classifier import acceleration
from pathlens.classifier.acceleration import accelerate
from pathlens.classifier.capture import capture
from pathlens.classifier.captured import CapturedClassifier
from pathlens.classifier.program import Call
from pathlens.explanation import Granularity
from pathlens.pathways.neuron_intgrad import neuron_intgrad
from pathlens.pathways.neuron_mct import neuron_mct
from production_networks import coloured_images, production_network
from random_networks import drawn_pathway
from small_networks import CLASSES, NETWORKS, captured, images, seeded


class Convolution(nn.Module):
    """A convolution whose kernel, or whose output, something else reads, too."""

    def __init__(self, body: "Body") -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.linear, self.body = nn.Linear(4, CLASSES), body

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.linear(F.relu(self.body(self, F.relu(self.first(x)))).mean((2, 3)))
        return logits


Body = Callable[[Convolution, Tensor], Tensor]

ODD: dict[str, Body] = {
    "a kernel of two convolutions": lambda net, x: net.second(F.relu(net.second(x))),
    "a kernel that is reshaped, too": lambda net, x: (
        net.second(x) * net.second.weight.view(4, -1).sum(1)[:, None, None]
    ),
    "a view of activations": lambda net, x: net.second(x).view(-1, 2, 2, 64).flip(1).view(-1, 4, 8, 8),
    "strides of a kernel": lambda net, x: net.second(x) * net.second.weight.as_strided((4, 1, 1), (36, 1, 1), 1),
    "a border in words": lambda net, x: F.conv2d(x, net.second.weight, padding="same"),
}


@cache
def classifier_named(name: str) -> tuple[CapturedClassifier, Tensor]:
    """A classifier and images for it."""
    if name in ODD:
        return capture(seeded(lambda: Convolution(ODD[name])), images(2)), images(3, seed=1)
    if name in NETWORKS:
        return captured(name), images(3, seed=1)
    return capture(production_network(name), coloured_images(2)), coloured_images(3, seed=1)


PRODUCTION = ("VGG", "DenseNet", "Inception", "MobileNetV3", "ShuffleNet", "ConvNeXt", "RegNet", "feature pyramid")


@pytest.fixture(params=[*ODD, *NETWORKS, *PRODUCTION])
def subject(request: pytest.FixtureRequest) -> tuple[CapturedClassifier, Tensor]:
    return classifier_named(request.param)


def assert_close(found: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> None:
    for one, other in zip(found, expected, strict=True):
        assert one.shape == other.shape
        assert float((one - other).norm().detach()) <= 1e-4 * float(other.norm().detach())


def test_every_activation_and_every_gradient_is_that_of_the_original(
    subject: tuple[CapturedClassifier, Tensor],
) -> None:
    classifier, batch = subject
    accelerated = accelerate(classifier)
    assert accelerated is not classifier
    assert accelerated.taps == classifier.taps
    results = []
    for each in (accelerated, classifier):
        leaf = batch.clone().requires_grad_()
        trace = each.trace(leaf)
        gradients = torch.autograd.grad(
            trace.logits[:, 1].sum(), (leaf, *trace.activations), allow_unused=True, materialize_grads=True
        )
        results.append((trace.logits, *trace.activations, *gradients))
    assert_close(*results)


@pytest.mark.parametrize("granularity", Granularity)
@pytest.mark.parametrize("name", ["residual", "channels last", "transformer", "VGG", "MobileNetV3"])
def test_a_pathway_network_is_that_of_the_original_and_its_map_is_contiguous(
    name: str, granularity: Granularity
) -> None:
    classifier, batch = classifier_named(name)
    pathway = drawn_pathway(classifier, granularity, len(batch))
    runs = [
        run_pathway(each, batch, torch.tensor([0, 1, 2]), pathway, with_contributions=True)
        for each in (accelerate(classifier), classifier)
    ]
    assert_close(*((run.logits, run.gradient, *run.contributions.signed) for run in runs))  # type: ignore[union-attr]
    assert runs[0].gradient.is_contiguous()


@pytest.mark.parametrize("name", ["residual", "channels last", "transformer", "ShuffleNet"])
def test_contributions_are_those_of_the_original(name: str) -> None:
    classifier, batch = classifier_named(name)
    target = torch.tensor([0, 1, 2])
    for method in (neuron_mct, partial(neuron_intgrad, steps=2)):
        assert_close(method(accelerate(classifier), batch, target).signed, method(classifier, batch, target).signed)


def test_the_original_stays_as_it_is() -> None:
    classifier = capture(seeded(NETWORKS["residual"]), images(2))
    before = classifier.weights_bytes(), classifier.program.to_json()
    accelerate(classifier)
    assert (classifier.weights_bytes(), classifier.program.to_json()) == before
    assert all(weight.is_contiguous() for weight in classifier.weights.values())


def test_kernels_have_their_channels_last_and_other_weights_are_shared() -> None:
    classifier = captured("residual")
    accelerated = accelerate(classifier)
    kernels = [weight for weight in accelerated.weights.values() if weight.ndim == 4]
    assert all(kernel.is_contiguous(memory_format=torch.channels_last) for kernel in kernels)
    assert not any(kernel.is_contiguous() for kernel in kernels)
    assert "linear.weight" in accelerated.weights
    for name in classifier.weights.keys() & accelerated.weights.keys():
        if classifier.weights[name].ndim < 4:
            assert accelerated.weights[name].data_ptr() == classifier.weights[name].data_ptr()


def test_it_is_made_once_for_a_classifier_and_forgotten_with_it() -> None:
    classifier = capture(seeded(NETWORKS["plain"]), images(2))
    accelerated = weakref.ref(accelerate(classifier))
    assert accelerate(classifier) is accelerated()
    del classifier
    gc.collect()
    assert accelerated() is None


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_a_classifier_of_another_precision_is_left_alone(dtype: torch.dtype) -> None:
    classifier = captured("residual").to(dtype=dtype)
    assert accelerate(classifier) is classifier


class TestTheOriginalRuns:
    """What cannot be accelerated is left as it is, and the log says why."""

    def test_where_logits_depend_on_the_layout_of_activations(self, caplog: pytest.LogCaptureFixture) -> None:
        odd = with_last_activation("aten.as_strided.default", [[2, 6, 8, 8], [384, 64, 8, 1]])
        assert accelerate(odd) is odd
        assert "accelerating it changes its logits by" in caplog.text

    def test_where_an_operator_refuses_the_layout(self, caplog: pytest.LogCaptureFixture) -> None:
        odd = with_last_activation("aten.view.dtype", [{"dtype": "int16"}], "aten.view.dtype", [{"dtype": "float32"}])
        assert accelerate(odd) is odd
        assert "cannot be accelerated: self.stride(-1) must be 1" in caplog.text

    @pytest.mark.parametrize("error", [MemoryError("no room"), torch.OutOfMemoryError("no room")])
    def test_as_long_as_there_is_no_memory(self, error: Exception, caplog: pytest.LogCaptureFixture) -> None:
        classifier = capture(seeded(NETWORKS["plain"]), images(2))

        def without_memory(_: CapturedClassifier) -> CapturedClassifier:
            raise error

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(acceleration, "fuse", without_memory)
            assert accelerate(classifier) is classifier
        assert "there is no memory to accelerate it" in caplog.text
        assert accelerate(classifier) is not classifier

    def test_where_logits_are_not_finite(self) -> None:
        weights = {name: weight * torch.inf for name, weight in captured("plain").weights.items()}
        broken = CapturedClassifier(captured("plain").program, weights)
        assert accelerate(broken) is broken


def with_last_activation(*functions: Any) -> CapturedClassifier:
    """The residual network with functions, each with its further arguments, in the place of its last activation."""
    program = captured("residual").program
    node = program.taps[-1].node
    calls = []
    for call in program.calls:
        if call.name == node:
            value = call.arguments[0]
            for number, (function, arguments) in enumerate(zip(functions[::2], functions[1::2], strict=True)):
                last = 2 * (number + 1) == len(functions)
                calls.append(Call(node if last else f"before_{node}", function, [value, *arguments], {}))
                value = {"call": calls[-1].name}
        else:
            calls.append(call)
    return CapturedClassifier(replace(program, calls=tuple(calls)), captured("residual").weights)
