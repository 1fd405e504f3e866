"""Selection of a sample's most contributing neurons: an exact count, with ties broken by position."""

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_FEW = 1 << 16
"""Up to so many scores are put in order without a look at a sample of them."""
_SAMPLE = 1 << 14
"""Scores in a sample, or a few more."""


def check_sparsity(sparsity: float) -> None:
    """Raise ValueError unless `sparsity` is in [0, 1)."""
    if not 0 <= sparsity < 1:
        raise ValueError(f"sparsity is {sparsity}; expected a number in [0, 1)")


def select_top(scores: Tensor, sparsity: float) -> Tensor:
    """Keep the neurons of highest score in every sample (one threshold over all taps, arXiv 2103.16886, section 3.3).

    Exactly round((1 - sparsity) N) neurons are kept, fewer only where fewer contribute at all: a neuron of score zero
    is never kept to fill the count. Among equal scores the lowest index wins.

    Args:
        scores: Non-negative and finite, [B, N].
        sparsity: Fraction removed, in [0, 1).

    Returns:
        bool [B, N].
    """
    check_sparsity(sparsity)
    count = round((1 - sparsity) * scores.shape[1])
    if count == 0:
        return torch.zeros_like(scores, dtype=torch.bool)
    threshold = _in_order(scores, scores.shape[1] - count)
    kept = (scores >= threshold) & (scores > 0)
    # Row by row: counting along a dimension takes ten times as long.
    if all(int(row.count_nonzero()) <= count for row in kept):
        return kept
    above = scores > threshold
    ties = kept & ~above
    return above | (ties & (ties.cumsum(1) <= count - above.sum(1, keepdim=True)))


def _in_order(scores: Tensor, place: int) -> Tensor:
    """Return the score that stands at a place of each sample's ascending order, [B, 1]."""
    if scores.device.type != "cpu":
        return scores.kthvalue(place + 1, dim=1, keepdim=True).values
    return scores.new_tensor([_nth(row, place) for row in scores.detach().numpy()]).reshape(-1, 1)


def _nth(values: NDArray[Any], place: int) -> Any:
    """Return the value at a place of the ascending order.

    Of many, a sample tells between which two values it lies, and only what lies there is put in order: of millions in a
    tenth of the time that `torch.kthvalue` takes.
    """
    if values.size > _FEW:
        sample = np.sort(values[:: values.size // _SAMPLE])
        expected, spread = place * sample.size // values.size, 2 * math.isqrt(sample.size)
        low, high = sample[max(expected - spread, 0)], sample[min(expected + spread, sample.size - 1)]
        before = place - np.count_nonzero(values < low)
        between = values[(values >= low) & (values <= high)]
        # A sample may mislead: then all are put in order.
        if 0 <= before < between.size:
            return np.partition(between, before)[before]
    return np.partition(values, place)[place]


def select_ranked(scores: Tensor, counts: Tensor) -> Tensor:
    """Keep, in every sample, as many neurons of highest score as it is due; otherwise as `select_top`.

    Args:
        scores: Non-negative and finite, [B, N].
        counts: Neurons to keep, int64 [B].

    Returns:
        bool [B, N].
    """
    return (rank(scores) < counts[:, None]) & (scores > 0)


def rank(scores: Tensor) -> Tensor:
    """Return the place of each neuron in its sample, int64 [B, N]: 0 for the highest score, the lowest index first."""
    order = scores.argsort(dim=1, descending=True, stable=True)
    places = torch.arange(scores.shape[1], device=scores.device).expand_as(order)
    return torch.empty_like(order).scatter_(1, order, places)
