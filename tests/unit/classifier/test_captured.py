import gc
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor, nn

from pathlens.attribution.pathway_gradient import run_pathway
from pathlens.classifier.capture import capture
from pathlens.pathways.neuron_mct import neuron_mct
from small_networks import NETWORKS, Plain, captured, images, original, seeded


class OneUnitRemoved:
    """Edits one tap: sets one unit to zero."""

    def __init__(self, tap: int) -> None:
        self.tap = tap

    def edit(self, index: int, activation: Tensor) -> Tensor:
        return torch.zeros_like(activation) if index == self.tap else activation


def hooked(network: nn.Module, x: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Logits and activations of a network whose activation is one module."""
    activations: list[Tensor] = []

    def record(module: nn.Module, inputs: object, output: Tensor) -> None:
        output.requires_grad_()
        activations.append(output)

    handle = network.get_submodule("activation").register_forward_hook(record)
    try:
        logits: Tensor = network(x)
        return logits, activations
    finally:
        handle.remove()


def explain(x: Tensor) -> Tensor:
    classifier = captured("residual")
    target = classifier(x).argmax(1)
    pathway = neuron_mct(classifier, x, target).select(0.5)
    return run_pathway(classifier, x, target, pathway, with_contributions=True).gradient


class TestTrace:
    def test_records_what_hooks_see_in_the_original(self) -> None:
        _, expected = hooked(original("plain"), images(3))
        activations = captured("plain").trace(images(3)).activations
        assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(activations, expected, strict=True))

    def test_has_the_gradients_of_the_original(self) -> None:
        logits, activations = hooked(original("plain"), images(3))
        expected = torch.autograd.grad(logits[:, 1].sum(), activations)
        trace = captured("plain").trace(images(3))
        gradients = torch.autograd.grad(trace.logits[:, 1].sum(), trace.activations)
        assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(gradients, expected, strict=True))

    @pytest.mark.parametrize("name", NETWORKS)
    def test_has_the_input_gradient_of_the_original(self, name: str) -> None:
        gradients = []
        for run in (captured(name), original(name)):
            x = images(3).requires_grad_()
            gradients.append(torch.autograd.grad(run(x)[:, 0].sum(), x)[0])
        assert torch.allclose(gradients[0], gradients[1], atol=1e-5)

    def test_records_what_the_editor_returned(self) -> None:
        trace = captured("plain").trace(images(2), OneUnitRemoved(0))
        assert not trace.activations[0].any()
        assert trace.activations[1].any()

    def test_works_where_gradients_are_switched_off(self) -> None:
        with torch.no_grad():
            trace = captured("plain").trace(images(2))
        assert trace.logits.requires_grad


class TestRunning:
    @pytest.mark.parametrize("shape", [(3, 8, 8), (2, 1, 8, 8), (2, 3, 9, 8), (2, 3, 8, 9), (2, 3, 64)])
    def test_another_shape_is_refused_naming_both(self, shape: tuple[int, ...]) -> None:
        with pytest.raises(ValueError, match=r"images have shape .*expected \[batch, 3, 8, 8\]") as refusal:
            captured("plain")(torch.zeros(shape))
        assert str(list(shape)) in str(refusal.value)

    def test_an_edit_reaches_everything_downstream(self) -> None:
        bias = original("plain").get_parameter("linear.bias")
        assert torch.allclose(captured("plain")(images(2), OneUnitRemoved(1)), bias.expand(2, -1))

    def test_an_empty_batch_gives_no_logits(self) -> None:
        assert captured("plain")(images(0)).shape == (0, 4)

    def test_two_threads_get_what_one_gets(self) -> None:
        batches = [images(2, seed=seed) for seed in range(24)]
        alone = [explain(x) for x in batches]
        with ThreadPoolExecutor(2) as threads:
            together = list(threads.map(explain, batches))
        assert all(torch.equal(a, b) for a, b in zip(alone, together, strict=True))

    def test_explaining_leaves_no_tensors_behind(self) -> None:
        def tensors() -> int:
            gc.collect()
            return sum(issubclass(type(item), Tensor) for item in gc.get_objects())

        explain(images(2))
        before = tensors()
        for seed in range(5):
            explain(images(2, seed=seed))
        assert tensors() == before

    def test_explaining_changes_no_weight(self) -> None:
        classifier = capture(seeded(NETWORKS["residual"]), images(2))
        before = classifier.weights_bytes()
        neuron_mct(classifier, images(4), torch.tensor([0, 1, 2, 3])).select(0.5)
        assert classifier.weights_bytes() == before

    def test_logits_are_float64_for_a_classifier_in_double_precision(self) -> None:
        classifier = capture(seeded(Plain).double(), images(2).double())
        assert classifier.dtype is torch.float64
        assert classifier(images(2)).dtype is torch.float64

    def test_a_classifier_without_weights_is_on_the_cpu(self) -> None:
        network = nn.Sequential(nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        assert capture(network, images(2)).device == torch.device("cpu")

    def test_moving_to_the_device_it_is_on_changes_nothing(self) -> None:
        classifier = capture(seeded(Plain), images(2))
        before = classifier(images(2))
        assert classifier.to("cpu") is classifier
        assert classifier.device == torch.device("cpu")
        assert torch.equal(classifier(images(2)), before)
