"""What stands in for removed neurons: zero, the mean over many images, or a constant learned for each class."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pathlens.explanation import Ablation


@dataclass(frozen=True, eq=False)
class Replacement:
    """The values of removed neurons.

    Attributes:
        ablation: What kind of values they are.
        values: One tensor per tap that broadcasts over the tap's output: [1, ...] for all images alike, or [R, ...]
            with a row for each image, or for each class before `select` has picked the rows of the images. Empty for
            `Ablation.ZERO`.
    """

    ablation: Ablation = Ablation.ZERO
    values: tuple[Tensor, ...] = ()

    def __post_init__(self) -> None:
        if (self.ablation is Ablation.ZERO) != (not self.values):
            raise ValueError(f"{len(self.values)} taps have values for ablation {self.ablation.value}")

    @property
    def rows(self) -> int:
        """Number of rows, R; 1 if all images have the same values."""
        return self.values[0].shape[0] if self.values else 1

    def select(self, rows: slice | Tensor) -> "Replacement":
        """Pick rows; values that are the same for all images stay as they are."""
        if self.rows == 1:
            return self
        return Replacement(self.ablation, tuple(value[rows] for value in self.values))

    def to(self, device: torch.device | str) -> "Replacement":
        """Return the same values on another device."""
        return Replacement(self.ablation, tuple(value.to(device) for value in self.values))

    def of(self, index: int, activation: Tensor) -> Tensor:
        """Return what stands in for the neurons of a tap, in the precision of its output.

        Args:
            index: Number of the tap.
            activation: The tap's output, [B, ...].
        """
        return self.values[index].to(activation.dtype) if self.values else activation.new_zeros(())

    @staticmethod
    def concatenate(replacements: Sequence["Replacement"], lengths: Sequence[int]) -> "Replacement":
        """Join the values of several batches into one.

        Args:
            replacements: Of the same ablation.
            lengths: Number of images of each batch.
        """
        first = replacements[0]
        if all(_same(first, other) for other in replacements):
            return first
        joined = []
        for parts in zip(*(replacement.values for replacement in replacements), strict=True):
            rows = [part.expand(length, *part.shape[1:]) for part, length in zip(parts, lengths, strict=True)]
            joined.append(torch.cat(rows))
        return Replacement(first.ablation, tuple(joined))


def _same(one: Replacement, other: Replacement) -> bool:
    return one.rows == other.rows == 1 and all(a is b for a, b in zip(one.values, other.values, strict=True))
