"""The rule for taps: where the pathway removes neurons."""

import torch
from torch import Tensor

from pathlens.classifier.program import edit_tap
from pathlens.explanation import Ablation, Granularity
from pathlens.slicing.builder import Builder, Piece
from pathlens.slicing.channels import Channels, Source
from pathlens.slicing.rule import Rule, Step

aten = torch.ops.aten


class Mask(Rule):
    """Removed channels become constants; of a channel that is kept in part, the removed units are replaced."""

    operators = frozenset({edit_tap.__name__})

    def __init__(self, step: Step, source: Source, index: int) -> None:
        pathway = step.run.pathway
        tap, mask = pathway.taps[index], pathway.masks[index][0].cpu()
        self._index = index
        self._units = mask[None] if pathway.granularity is Granularity.UNIT else None
        kept = mask
        if self._units is not None:
            kept = mask.movedim(tap.channel_dimension, 0).reshape(tap.channels, -1).any(1)
        super().__init__(step, [source], Channels(source.channels.varying & kept, source.channels.axis))

    @classmethod
    def fit(cls, step: Step) -> "Mask":
        """Return the rule, which holds for any tap."""
        _, index, activation = step.arguments
        axis = 1 + step.run.pathway.taps[index].channel_dimension
        return cls(step, step.along(activation, axis), index)

    def build(self, builder: Builder, live: Tensor) -> Piece:
        """Pick the channels that are left; replace the removed units among theirs."""
        (source,), axis = self.sources, self.channels.first
        node = builder.aligned(source, live)
        if self._units is None:
            return Piece(node, live)
        zero = self.run.value(self.node).new_zeros(())
        mask = self._units.index_select(axis, live).to(zero.device)
        if not bool(mask.all()):
            node = builder.call(aten.mul.Tensor, node, builder.weight(mask.to(zero.dtype)))
            node = builder.plus(node, torch.where(mask, zero, self._replacement(live, zero)), axis)
        return Piece(node, live)

    def _replacement(self, live: Tensor, zero: Tensor) -> Tensor:
        """Return what stands in for the units of some channels."""
        pathway = self.run.pathway
        if pathway.ablation is Ablation.ZERO:
            return zero
        values = pathway.replacement.of(self._index, zero).to(zero.device)
        full = values.expand(1, *self.run.shape(self.node)[1:])
        return full.index_select(self.channels.first, live.to(zero.device))
