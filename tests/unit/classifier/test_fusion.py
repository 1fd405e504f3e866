"""Fused classifiers compute the same, through every pathway, and keep what cannot be fused."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pathlens.classifier.capture import capture
from pathlens.classifier.captured import CapturedClassifier
from pathlens.classifier.fusion import fuse
from small_networks import CLASSES, images, seeded


class Parts(nn.Module):
    """What the cases are made of."""

    def __init__(self, body: "Body") -> None:
        super().__init__()
        self.plain, self.biased = nn.Conv2d(4, 4, 3, padding=1, bias=False), nn.Conv2d(4, 4, 3, padding=1, groups=2)
        self.norm, self.bare = nn.BatchNorm2d(4, eps=0.1), nn.BatchNorm2d(4, affine=False)
        self.stem, self.linear, self.body = nn.Conv2d(3, 4, 1), nn.Linear(4, CLASSES), body
        for norm in (self.norm, self.bare):
            norm.running_mean.normal_()  # type: ignore[union-attr]
            norm.running_var.uniform_(0.5, 2)  # type: ignore[union-attr]
        nn.init.normal_(self.norm.weight)
        nn.init.normal_(self.norm.bias)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.linear(F.relu(self.body(self, F.relu(self.stem(x)))).mean((2, 3)))
        return logits


Body = Callable[[Parts, Tensor], Tensor]


def twice(value: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
    return function(value) + value


FUSED: dict[str, Body] = {
    "batch norm": lambda net, x: net.norm(net.plain(x)),
    "batch norm behind a bias and groups": lambda net, x: net.norm(net.biased(x)),
    "batch norm without weights of its own": lambda net, x: net.bare(net.biased(x)),
    "one convolution with two batch norms": lambda net, x: net.bare(net.plain(F.relu(net.norm(net.plain(x))))),
    "margins": lambda net, x: F.conv2d(F.pad(x, (2, 2, 1, 1)), net.plain.weight),
    "margins of a whole zero": lambda net, x: F.conv2d(F.pad(x, (2, 2, 1, 1), value=0), net.plain.weight, padding=1),
    "margins and one number for both directions": lambda net, x: F.conv2d(
        F.pad(x, (2, 2, 1, 1)), net.plain.weight, None, [2], [1], [1]
    ),
    "margins and batch norm": lambda net, x: net.norm(F.conv2d(F.pad(x, (1, 1, 1, 1)), net.plain.weight, None, 2)),
}
KEPT: dict[str, Body] = {
    "batch norm behind an activation": lambda net, x: net.norm(F.relu(net.plain(x))),
    "batch norm of a convolution that is read twice": lambda net, x: twice(net.plain(x), net.norm),
    "batch norm behind a computed kernel": lambda net, x: net.norm(
        F.conv2d(x, net.plain.weight - net.plain.weight.mean((1, 2, 3), keepdim=True))
    ),
    "batch norm behind no convolution": lambda net, x: net.norm(F.avg_pool2d(x, 2)),
    "margins of ones": lambda net, x: F.conv2d(F.pad(x, (1, 1, 1, 1), value=1.0), net.plain.weight),
    "mirrored margins": lambda net, x: F.conv2d(F.pad(x, (1, 1, 1, 1), mode="reflect"), net.plain.weight),
    "margins of two widths": lambda net, x: F.conv2d(F.pad(x, (0, 1, 1, 1)), net.plain.weight),
    "margins of two heights": lambda net, x: F.conv2d(F.pad(x, (1, 1, 0, 1)), net.plain.weight),
    "margins that crop": lambda net, x: F.conv2d(F.pad(x, (-1, -1, -1, -1)), net.plain.weight),
    "margins in front of an activation": lambda net, x: net.plain(F.relu(F.pad(x - 1, (1, 1, 1, 1)))),
    "margins that are read twice": lambda net, x: twice(
        F.pad(x, (1, 1, 1, 1)), lambda padded: F.conv2d(padded, net.plain.weight, padding=1)
    ),
}


def captured_parts(body: Body) -> CapturedClassifier:
    return capture(seeded(lambda: Parts(body)), images(2))


def operators(classifier: CapturedClassifier) -> list[str]:
    return [call.function for call in classifier.program.calls]


def assert_same(one: CapturedClassifier, other: CapturedClassifier) -> None:
    """Compare logits and gradients of a run in which every tap is edited."""

    def edit(index: int, activation: Tensor) -> Tensor:
        mask = torch.rand(activation.shape, generator=torch.Generator().manual_seed(index)) < 0.5
        return torch.where(mask, activation, activation + index + 1)

    results = []
    for classifier in (one, other):
        batch = images(3, seed=1).requires_grad_()
        logits = classifier.run(batch, edit)
        results.append((logits, *torch.autograd.grad(logits[:, 0].sum(), batch)))
    torch.testing.assert_close(results[0], results[1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", FUSED)
def test_what_stands_beside_a_convolution_becomes_part_of_it(name: str) -> None:
    classifier = captured_parts(FUSED[name])
    fused = fuse(classifier)
    assert not {"aten.pad.default", "aten._native_batch_norm_legit_no_training.default"} & {*operators(fused)}
    assert_same(fused, classifier)


@pytest.mark.parametrize("name", KEPT)
def test_what_cannot_become_part_of_a_convolution_stays(name: str) -> None:
    classifier = captured_parts(KEPT[name])
    fused = fuse(classifier)
    assert operators(fused) == operators(classifier)
    assert_same(fused, classifier)


@pytest.mark.parametrize("operator", ["aten.conv2d.default", "aten.pad.default"])
def test_what_is_edited_is_not_fused(operator: str) -> None:
    body = FUSED["margins and batch norm"]
    program = captured_parts(body).program
    node = [call.name for call in program.calls if call.function == operator][-1]
    taps = (replace(program.taps[0], node=node), *program.taps[1:])
    classifier = CapturedClassifier(replace(program, taps=taps), captured_parts(body).weights)
    assert operator in operators(fuse(classifier))
    assert_same(fuse(classifier), classifier)


def test_weights_that_nothing_reads_any_more_are_gone() -> None:
    fused = fuse(captured_parts(FUSED["batch norm"]))
    assert len(fused.weights) == 6
    assert not [name for name in fused.weights if name.startswith("norm.")]
