"""How far an output of the graph may be from PyTorch's, and how far it is."""

from enum import Enum

import torch
from torch import Tensor


class Measure(Enum):
    """How far the values of one image are from those expected."""

    LOGITS = "logits"
    """The largest |a - b| / max(1, |b|)."""
    MAP = "map"
    """‖a - b‖₂ / ‖b‖₂."""
    ELEMENTS = "elements"
    """How many are not the same."""

    @property
    def tolerance(self) -> float:
        """What an image may have."""
        return _TOLERANCES[self]

    def distances(self, actual: Tensor, expected: Tensor) -> Tensor:
        """Return how far every image is from what is expected, float64 [B]; infinite where a value is not finite.

        Args:
            actual: Values of every image, [B, ...].
            expected: Values of every image, the same shape.
        """
        one, other = actual.reshape(len(actual), -1), expected.reshape(len(expected), -1)
        if self is Measure.ELEMENTS:
            return (one != other).sum(1).double()
        one, other = one.double(), other.double()
        if self is Measure.LOGITS:
            distances = ((one - other).abs() / other.abs().clamp(min=1)).amax(1)
        else:
            distance = (one - other).norm(dim=1)
            # A map of zeros is equal to one of zeros, and to no other.
            distances = torch.where(distance == 0, 0.0, distance / other.norm(dim=1))
        return distances.nan_to_num(nan=torch.inf)


_TOLERANCES = {Measure.LOGITS: 1e-4, Measure.MAP: 1e-3, Measure.ELEMENTS: 0.0}
