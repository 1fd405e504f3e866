"""Reduction of a map of several colour channels to one channel."""

import torch
from torch import Tensor

from pathlens.explanation import Reduction


def reduce_channels(gradient: Tensor, reduction: Reduction) -> Tensor:
    """Reduce a map over its colour channels.

    Args:
        gradient: [..., C, H, W].
        reduction: How.

    Returns:
        [..., H, W]; the gradient itself for `Reduction.NONE`.
    """
    if reduction is Reduction.NONE:
        return gradient
    if reduction is Reduction.MAGNITUDE_SUM:
        return gradient.abs().sum(-3)
    highest, lowest = gradient.amax(-3), gradient.amin(-3)
    total = highest + lowest
    if bool(((total == 0) & (highest > 0)).any()):
        # Opposite values of equal magnitude: the first of them counts. To look for it takes many times as long.
        strongest = gradient.abs().argmax(-3, keepdim=True)
        return gradient.gather(-3, strongest).squeeze(-3)
    return torch.maximum(highest, -lowest).copysign(total)
