"""Means and sums over the positions of feature maps, which is all that the generator sees of them."""

import torch
from torch import Tensor

from pathlens.classifier.taps import Tap

ROWS = 8
"""A glance looks at no more rows of a map."""


def channel_means(activation: Tensor, tap: Tap) -> Tensor:
    """Average a tap's output over all of its positions: float32 [B, C].

    Args:
        activation: [B, ...].
        tap: The tap.
    """
    positions = _positions(tap)
    return activation.mean(positions, dtype=torch.float32) if positions else activation.float()


class Glance:
    """Sums a tap's output over its positions; of a map, over evenly spread rows, at most `ROWS` of them.

    Reading every value of a large map costs as much as a convolution of few channels; neighbouring rows say the same.
    The tokens of a sequence do not, and are all read.

    Args:
        tap: The tap.

    Attributes:
        count: Number of positions in the sum.
    """

    def __init__(self, tap: Tap) -> None:
        # All that depends on the tap alone is found out here: a small classifier runs in the time of a few questions.
        self._positions = _positions(tap)
        self._rows: tuple[slice, ...] | None = None
        self.count = tap.units // tap.channels
        if len(self._positions) > 1:
            rows = tap.shape[self._positions[0] - 1]
            if rows > ROWS:
                stride = -(-rows // ROWS)
                self._rows = (slice(None),) * self._positions[0] + (slice(None, None, stride),)
                self.count = self.count // rows * -(-rows // stride)

    def __call__(self, activation: Tensor) -> Tensor:
        """Return float32 [B, C] for an output [B, ...]."""
        if self._rows is not None:
            activation = activation[self._rows]
        if self._positions:
            return activation.sum(self._positions, dtype=torch.float32)
        return activation.float()


def _positions(tap: Tap) -> list[int]:
    """Return which dimensions of an output count positions."""
    return [1 + place for place in range(len(tap.shape)) if place != tap.channel_dimension]
