"""Pathways: which neurons of a network are kept, one binary mask per tap."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pathlens.classifier.taps import Tap
from pathlens.explanation import Ablation, Granularity, TapMask
from pathlens.pathways.replacement import Replacement

ZERO = Replacement()
"""Removed neurons put out zero."""


def mask_shape(tap: Tap, granularity: Granularity) -> tuple[int, ...]:
    """Return the shape of a tap's mask without the batch: [channels], or the tap's own shape."""
    return (tap.channels,) if granularity is Granularity.CHANNEL else tap.shape


@dataclass(frozen=True, eq=False)
class Pathway:
    """Sparse sets of neurons for a batch of images.

    Attributes:
        taps: The taps that the masks belong to.
        masks: One bool tensor per tap: [B, C] for channels, [B, ...] with the tap's shape for units.
        granularity: What counts as one neuron.
        replacement: What stands in for removed neurons, the same for all images or with a row for each.
    """

    taps: tuple[Tap, ...]
    masks: tuple[Tensor, ...]
    granularity: Granularity
    replacement: Replacement = ZERO

    def __post_init__(self) -> None:
        if len(self.masks) != len(self.taps) or not self.taps:
            raise ValueError(f"{len(self.masks)} masks for {len(self.taps)} taps; expected one mask for each tap")
        # Sizes are read from the shape, because `len` would turn the free batch size of a graph into a number.
        images = self.masks[0].shape[0]
        for tap, mask in zip(self.taps, self.masks, strict=True):
            shape = mask_shape(tap, self.granularity)
            if mask.dtype != torch.bool or tuple(mask.shape[1:]) != shape or mask.shape[0] != images:
                raise ValueError(
                    f"mask of {tap.name} is {mask.dtype} {list(mask.shape)}; expected bool [{images}, "
                    f"{', '.join(map(str, shape))}]"
                )
        if self.replacement.rows not in (1, images):
            raise ValueError(f"{self.replacement.rows} rows of replacements for {images} images")

    @property
    def ablation(self) -> Ablation:
        """The kind of what stands in for removed neurons."""
        return self.replacement.ablation

    def __len__(self) -> int:
        """Return the number of images, B."""
        return len(self.masks[0])

    def __getitem__(self, rows: slice | Sequence[int] | Tensor) -> "Pathway":
        """Select images of the batch."""
        index = rows if isinstance(rows, slice | Tensor) else torch.tensor(rows, dtype=torch.int64)
        masks = tuple(mask[index] for mask in self.masks)
        # One row serves any number of images, so it stays; of several, the images' own are picked.
        return Pathway(self.taps, masks, self.granularity, self.replacement.select(index))

    @staticmethod
    def concatenate(pathways: Sequence["Pathway"]) -> "Pathway":
        """Join pathways of the same taps, granularity and ablation into one batch."""
        first = pathways[0]
        if any((other.granularity, other.ablation) != (first.granularity, first.ablation) for other in pathways):
            raise ValueError("pathways of different granularity or ablation cannot be joined in one batch")
        masks = zip(*(pathway.masks for pathway in pathways), strict=True)
        replacement = Replacement.concatenate(
            [pathway.replacement for pathway in pathways], [len(pathway) for pathway in pathways]
        )
        return Pathway(first.taps, tuple(torch.cat(parts) for parts in masks), first.granularity, replacement)

    def to(self, device: torch.device | str) -> "Pathway":
        """Return the same pathway on another device."""
        masks = tuple(mask.to(device) for mask in self.masks)
        return Pathway(self.taps, masks, self.granularity, self.replacement.to(device))

    def under(self, replacement: Replacement) -> "Pathway":
        """Return the same masks with something else in the place of removed neurons."""
        return Pathway(self.taps, self.masks, self.granularity, replacement)

    @property
    def neurons(self) -> int:
        """Number of neurons of the network, N."""
        return sum(mask.shape[1:].numel() for mask in self.masks)

    @property
    def kept(self) -> Tensor:
        """Number of neurons kept, int64 [B]."""
        return _count(self.flat())

    @property
    def sparsity(self) -> Tensor:
        """Fraction of neurons removed, float64 [B], in [0, 1]."""
        return 1 - self.kept.double() / self.neurons

    def iou(self, other: "Pathway") -> Tensor:
        """Intersection over union with another pathway, image by image.

        Args:
            other: Of the same taps and granularity, with the same number of images or with one.

        Returns:
            float64 [B], in [0, 1]; 1 where both are empty.

        Raises:
            ValueError: If they cannot be compared.
        """
        if other.granularity is not self.granularity:
            raise ValueError(
                f"cannot compare a {self.granularity.value} pathway with a {other.granularity.value} pathway"
            )
        shapes, others = ([tuple(mask.shape[1:]) for mask in pathway.masks] for pathway in (self, other))
        if shapes != others or len(other) not in (1, len(self)):
            raise ValueError(
                f"cannot compare {len(self)} pathways of shapes {shapes} with {len(other)} of shapes {others}"
            )
        return overlap(self.flat(), other.flat())

    def edit(self, index: int, activation: Tensor) -> Tensor:
        """Replace the neurons of tap `index` that are not in the pathway: f(x; m) of arXiv 2103.16886.

        Args:
            index: Number of the tap.
            activation: Its output, [B, ...].

        Raises:
            ValueError: If the pathway is of another number of images (other than one) or of another classifier.
        """
        mask, tap = self.masks[index], self.taps[index]
        if mask.shape[0] not in (1, activation.shape[0]) or tuple(activation.shape[1:]) != tap.shape:
            raise ValueError(
                f"the output of tap {index} is {list(activation.shape)}; the pathway is of {len(mask)} images and has "
                f"{tap.name} of shape {list(tap.shape)} there"
            )
        if self.granularity is Granularity.CHANNEL:
            mask = tap.spread(mask)
        if self.ablation is Ablation.ZERO:
            return activation * mask
        if activation.is_contiguous():
            # The result has the layout of the mask, and what reads it may ask for that of the activation.
            mask = mask.contiguous()
        return torch.where(mask, activation, self.replacement.of(index, activation))

    def tap_masks(self, row: int = 0) -> tuple[TapMask, ...]:
        """Return the masks of one image, which can be packed into bits."""
        return self.all_tap_masks()[row]

    def all_tap_masks(self) -> list[tuple[TapMask, ...]]:
        """Return the masks of every image, as `tap_masks` does."""
        arrays = [mask.cpu().numpy() for mask in self.masks]
        return [
            tuple(TapMask(tap.name, mask) for tap, mask in zip(self.taps, masks, strict=True))
            for masks in zip(*arrays, strict=True)
        ]

    def flat(self) -> Tensor:
        """Return all masks side by side, bool [B, N], tap after tap in row-major order."""
        return torch.cat([mask.flatten(1) for mask in self.masks], 1)


def overlap(one: Tensor, other: Tensor) -> Tensor:
    """Compute the intersection over union of neurons side by side, as `Pathway.flat` returns them.

    Args:
        one: bool [B, N].
        other: bool [B, N] or [1, N].

    Returns:
        float64 [B], in [0, 1]; 1 where both are empty.
    """
    intersection, union = _count(one & other).double(), _count(one | other).double()
    return torch.where(union > 0, intersection / union.clamp(min=1), 1.0)


def _count(flat: Tensor) -> Tensor:
    """Count the neurons kept, int64 [B]."""
    # Row by row: a sum of booleans widens each of them first, which of millions takes ten times as long.
    return torch.stack([row.count_nonzero() for row in flat]) if len(flat) else flat.sum(1)


def from_flat(
    flat: Tensor, taps: tuple[Tap, ...], granularity: Granularity, replacement: Replacement = ZERO
) -> Pathway:
    """Build a pathway from what `Pathway.flat` returns.

    Args:
        flat: bool [B, N].
        taps: The taps, in the order of the neurons.
        granularity: What counts as one neuron.
        replacement: What stands in for removed neurons.
    """
    shapes = [mask_shape(tap, granularity) for tap in taps]
    parts = torch.split(flat, [int(np.prod(shape)) for shape in shapes], dim=1)
    masks = tuple(part.reshape(-1, *shape) for part, shape in zip(parts, shapes, strict=True))
    return Pathway(taps, masks, granularity, replacement)
