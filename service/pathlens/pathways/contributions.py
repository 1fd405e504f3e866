"""Contributions: how much every neuron matters to a target, and the pathways selected by that."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pathlens.classifier.taps import Tap
from pathlens.explanation import Granularity
from pathlens.pathways.pathway import Pathway, from_flat, mask_shape
from pathlens.pathways.selection import select_ranked, select_top


@dataclass(frozen=True, eq=False)
class Contributions:
    """Contributions of every neuron for a batch of images.

    Attributes:
        taps: The taps that the scores belong to.
        signed: One float32 tensor per tap, [B, C] or [B, ...]: what the target's logit gains by the neuron. The
            baselines, which attribute no part of a logit, put a score of their own there, at least 0.
        granularity: What counts as one neuron.
    """

    taps: tuple[Tap, ...]
    signed: tuple[Tensor, ...]
    granularity: Granularity

    def __getitem__(self, rows: slice | list[int]) -> "Contributions":
        """Select images of the batch."""
        return Contributions(self.taps, tuple(signed[rows] for signed in self.signed), self.granularity)

    @property
    def scores(self) -> tuple[Tensor, ...]:
        """The magnitudes, by which neurons are selected (arXiv 2103.16886, equation 4)."""
        return tuple(signed.abs() for signed in self.signed)

    def select(self, sparsity: float) -> Pathway:
        """Keep the neurons of greatest magnitude, exactly round((1 - sparsity) N) of them in each image.

        Args:
            sparsity: Fraction removed, in [0, 1).

        Raises:
            ValueError: If `sparsity` is out of range or a contribution is not finite.
        """
        return from_flat(select_top(self.flat_scores(), sparsity), self.taps, self.granularity)

    def select_per_tap(self, counts: Sequence[int]) -> Pathway:
        """Keep the neurons of greatest magnitude of each tap, as many as stated for the tap.

        Args:
            counts: Neurons to keep at each tap.

        Raises:
            ValueError: If the counts do not fit the taps or a contribution is not finite.
        """
        scores = torch.split(self.flat_scores(), [signed[0].numel() for signed in self.signed], dim=1)
        if len(counts) != len(self.taps):
            raise ValueError(f"{len(counts)} counts for {len(self.taps)} taps; expected one count for each tap")
        for tap, score, count in zip(self.taps, scores, counts, strict=True):
            if not 0 <= count <= score.shape[1]:
                raise ValueError(f"the count of {tap.name} is {count}; expected 0 to {score.shape[1]}")
        masks = [
            select_ranked(score, torch.full((len(score),), count, device=score.device))
            for score, count in zip(scores, counts, strict=True)
        ]
        return from_flat(torch.cat(masks, 1), self.taps, self.granularity)

    def flat_scores(self) -> Tensor:
        """Return all magnitudes side by side, float32 [B, N], tap after tap in row-major order.

        Raises:
            ValueError: If a contribution is not finite.
        """
        flat = torch.cat([signed.flatten(1) for signed in self.signed], 1).abs_()
        # The largest one is not finite if any is not, and is found in a tenth of the time.
        if not bool(flat.amax(1).isfinite().all()):
            raise ValueError("a contribution is not finite; is the classifier's output finite for this input?")
        return flat


def first_order(
    taps: tuple[Tap, ...], activations: Sequence[Tensor], gradients: Sequence[Tensor], granularity: Granularity
) -> Contributions:
    """Compute a ⊙ ∂f_t/∂a for the neurons of every tap.

    Args:
        taps: The taps.
        activations: a, one tensor [B, ...] per tap.
        gradients: ∂f_t/∂a, likewise.
        granularity: What counts as one neuron.
    """
    with torch.no_grad():
        signed = tuple(
            _neuron_values(activation.float() * gradient.float(), tap, granularity)
            for tap, activation, gradient in zip(taps, activations, gradients, strict=True)
        )
    return Contributions(taps, signed, granularity)


def _neuron_values(values: Tensor, tap: Tap, granularity: Granularity) -> Tensor:
    """Turn per-unit contributions [B, ...] of one tap into contributions of its neurons.

    The contribution of a channel is the sum over its map *before* the magnitude is taken: the first-order effect of
    removing the map as a whole.
    """
    if granularity is Granularity.UNIT:
        return values
    dimensions = [dimension for dimension in range(1, values.ndim) if dimension != 1 + tap.channel_dimension]
    summed = values.sum(dimensions) if dimensions else values
    return summed.reshape(-1, *mask_shape(tap, granularity))
