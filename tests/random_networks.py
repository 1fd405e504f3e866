"""A family of small classifiers that differ in every respect a capture knows, for tests that hold for any network."""

import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor, nn

from pathlens.classifier.capture import capture
from pathlens.classifier.captured import CapturedClassifier
from pathlens.explanation import Granularity
from pathlens.pathways.pathway import Pathway, mask_shape
from small_networks import CLASSES, images, seeded

SIDE = 6

RELUS: dict[str, Callable[[], nn.Module]] = {"ReLU": nn.ReLU, "in-place ReLU": partial(nn.ReLU, inplace=True)}
SMOOTH: dict[str, Callable[[], nn.Module]] = {
    "GELU": nn.GELU,
    "SiLU": nn.SiLU,
    "tanh": nn.Tanh,
    "softplus": nn.Softplus,
}
ACTIVATIONS = RELUS | SMOOTH | {"LeakyReLU": partial(nn.LeakyReLU, 0.2), "Hardswish": nn.Hardswish}
BLOCKS = ("plain", "residual", "concatenating", "depthwise")


@dataclass(frozen=True)
class Architecture:
    """What distinguishes the networks of the family."""

    block: str
    activation: str
    depth: int
    width: int
    kernel: int
    bias: bool
    shared: bool
    """Whether one activation module serves all calls."""


class RandomNetwork(nn.Module):
    """A stem, a few blocks of one kind, the mean over the map, a linear layer."""

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        self.block = architecture.block
        make = ACTIVATIONS[architecture.activation]
        one = make()

        def convolution(inputs: int, groups: int = 1) -> nn.Module:
            kernel = architecture.kernel
            return nn.Conv2d(
                inputs, architecture.width, kernel, padding=kernel // 2, groups=groups, bias=architecture.bias
            )

        def activation() -> nn.Module:
            return one if architecture.shared else make()

        self.stem = nn.Sequential(convolution(3), activation())
        self.first, self.middle, self.last = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        channels = architecture.width
        for _ in range(architecture.depth):
            self.first.append(convolution(channels, channels if self.block == "depthwise" else 1))
            self.middle.append(nn.Sequential(activation(), convolution(architecture.width)))
            self.last.append(activation())
            channels += architecture.width if self.block == "concatenating" else 0
        self.linear = nn.Linear(channels, CLASSES, bias=architecture.bias)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for first, middle, last in zip(self.first, self.middle, self.last, strict=True):
            y = middle(first(x))
            if self.block == "residual":
                y = y + x
            y = last(y)
            x = torch.cat([x, y], 1) if self.block == "concatenating" else y
        logits: Tensor = self.linear(x.mean((2, 3)))
        return logits


def _family() -> tuple[Architecture, ...]:
    """Two networks with each activation; every other value in half of them, or in a quarter for the blocks."""
    generator = random.Random(0)

    def halves(*values: Any) -> list[Any]:
        return generator.sample(values * len(ACTIVATIONS), 2 * len(ACTIVATIONS))

    columns = (halves(1, 2), halves(2, 5), halves(1, 3), halves(False, True), halves(False, True))
    blocks = [BLOCKS[(index + turn) % 4] for turn in (0, 1) for index in range(len(ACTIVATIONS))]
    return tuple(map(Architecture, blocks, [*ACTIVATIONS] * 2, *columns))


# Few, because capturing is what takes the time.
FAMILY = _family()


@cache
def random_network(architecture: Architecture) -> CapturedClassifier:
    """The capture of a network of the family; made once."""
    return capture(seeded(partial(RandomNetwork, architecture)), images(2, seed=99, side=SIDE))


def architectures(*activations: str) -> st.SearchStrategy[Architecture]:
    """Draw from the family, or from its members with the stated activations."""
    return st.sampled_from([member for member in FAMILY if not activations or member.activation in activations])


def batches(largest: int = 8) -> st.SearchStrategy[tuple[Tensor, Tensor]]:
    """Draw one or more images with a target each."""

    def make(count: int, seed: int) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(seed)
        return images(count, seed, SIDE), torch.randint(CLASSES, (count,), generator=generator)

    return st.builds(make, st.integers(1, largest), st.integers(0, 10_000))


def drawn_pathway(classifier: CapturedClassifier, granularity: Granularity, count: int, seed: int = 0) -> Pathway:
    """Keep every neuron with a probability of 0.7, whatever it contributes."""
    generator = torch.Generator().manual_seed(seed)
    shapes = [(count, *mask_shape(tap, granularity)) for tap in classifier.taps]
    return Pathway(
        classifier.taps, tuple(torch.rand(shape, generator=generator) < 0.7 for shape in shapes), granularity
    )
