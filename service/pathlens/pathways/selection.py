"""Selection of a sample's most contributing neurons: an exact count, with ties broken by position."""

import torch
from torch import Tensor


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
    threshold = scores.kthvalue(scores.shape[1] - count + 1, dim=1, keepdim=True).values
    above = scores > threshold
    ties = scores == threshold
    missing = count - above.sum(1, keepdim=True)
    return (above | (ties & (ties.cumsum(1) <= missing))) & (scores > 0)


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
