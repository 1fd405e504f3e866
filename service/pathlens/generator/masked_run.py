"""The pathway network during training: masks that gradients pass through."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from pathlens.classifier.taps import Tap
from pathlens.explanation import Granularity
from pathlens.pathways.replacement import Replacement


@dataclass(frozen=True, eq=False)
class MaskedRun:
    """Edits the taps of a run as a pathway does, with masks of 0 and 1 that are part of an autograd graph.

    Attributes:
        taps: Of the classifier.
        masks: One float32 tensor per tap, [B, C] or [B, ...] with the tap's shape.
        granularity: What counts as one neuron.
        replacement: What stands in for removed neurons.
    """

    taps: tuple[Tap, ...]
    masks: Sequence[Tensor]
    granularity: Granularity
    replacement: Replacement

    def edit(self, index: int, activation: Tensor) -> Tensor:
        """Return a m + v (1 - m) for activation a, mask m and replacement v."""
        mask = self.masks[index].to(activation.dtype)
        if self.granularity is Granularity.CHANNEL:
            mask = self.taps[index].spread(mask)
        value = self.replacement.of(index, activation)
        # Not v + (a - v) m, whose rounding changes what is kept, by percents in bfloat16.
        return activation * mask + value * (1 - mask)

    @property
    def density(self) -> Tensor:
        """Fraction of neurons kept, float32 [B]."""
        kept = sum((mask.flatten(1).sum(1) for mask in self.masks), start=self.masks[0].new_zeros(()))
        return kept / sum(mask.shape[1:].numel() for mask in self.masks)
