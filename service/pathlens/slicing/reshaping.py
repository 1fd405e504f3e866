"""The rules for calls that give the same numbers another shape or order of dimensions."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, fx

from pathlens.slicing.builder import Builder, Piece
from pathlens.slicing.channels import Channels
from pathlens.slicing.rule import ChannelWise, Rule, Step

aten = torch.ops.aten


class Reshape(ChannelWise):
    """Another shape in which one dimension, or several side by side, still count the channels.

    The slice keeps all dimensions that count channels as one, so that nothing remains to be done for a channel shuffle.
    """

    operators = frozenset({"view", "reshape", "_unsafe_view", "flatten", "unflatten", "squeeze", "unsqueeze"})

    def __init__(self, step: Step, first: int, end: int) -> None:
        source = step.natural(step.dynamic[0])
        super().__init__(step, [source], Channels(source.channels.varying, first, end - first))

    @classmethod
    def fit(cls, step: Step) -> "Rule | None":
        """Return the rule, or that for a flattening, where the channels stay together and the images apart."""
        source = step.dynamic[0]
        channels = step.channels(source)
        sizes = step.run.shape(step.node)
        if channels.axis is None or sizes[1:] != step.run.shape_of_one(step.node)[1:]:
            return None
        # What holds for one image and for two holds for any number.
        before = [
            math.prod(shape[: channels.first]) for shape in (step.run.shape(source), step.run.shape_of_one(source))
        ]
        for first in range(len(sizes) - 1, 0, -1):
            if before == [math.prod(shape[:first]) for shape in (sizes, step.run.shape_of_one(step.node))]:
                ends = range(first + 1, len(sizes) + 1)
                end = next((end for end in ends if math.prod(sizes[first:end]) == channels.count), None)
                return Flattening.at(step, first) if end is None else cls(step, first, end)
        return None

    def _compute(self, builder: Builder, piece: Piece) -> fx.Node:
        (source,) = self.sources
        before, after = self.run.shape(source.node), self.run.shape(self.node)
        lead, tail = after[1 : self.channels.first], after[self.channels.end :]
        if (before[1 : source.channels.first], before[source.channels.end :]) == (lead, tail):
            return piece.node
        return builder.call(aten.reshape.default, piece.node, [-1, *lead, len(piece.held), *tail])


class Flattening(Rule):
    """Channels and the positions behind them made one dimension, each position a channel of its own."""

    @classmethod
    def fit(cls, step: Step) -> "Flattening | None":
        """Return the rule where the second dimension of the result counts channels times positions."""
        return cls.at(step, 1)

    @classmethod
    def at(cls, step: Step, first: int) -> "Flattening | None":
        """Return the rule where dimension `first` of the result counts channels times positions."""
        source = step.natural(step.dynamic[0])
        before, count = step.run.shape(source.node), step.run.shape(step.node)[first]
        ends = range(source.channels.end + 1, len(before) + 1)
        if count not in [math.prod(before[source.channels.first : end]) for end in ends]:
            return None
        varying = source.channels.varying.repeat_interleave(count // source.channels.count)
        return cls(step, [source], Channels(varying, first))

    def needs(self, needed: Tensor) -> Sequence[Tensor]:
        """Return the channels of which any position is needed."""
        return [needed.view(self.sources[0].channels.count, -1).any(1)]

    def build(self, builder: Builder, live: Tensor) -> Piece:  # noqa: ARG002 - all positions of a channel are there
        """Add the flattening of the channels that are left."""
        (source,) = self.sources
        piece = builder.piece(source)
        positions = self.channels.count // source.channels.count
        held = (piece.held[:, None] * positions + torch.arange(positions)).flatten()
        after = self.run.shape(self.node)
        sizes = [-1, *after[1 : self.channels.first], len(held), *after[self.channels.end :]]
        return Piece(builder.call(aten.reshape.default, piece.node, sizes), held)


class Permutation(Rule):
    """Dimensions in another order; those that count channels stay side by side."""

    operators = frozenset({"permute", "transpose"})

    def __init__(self, step: Step, order: Sequence[int], places: Sequence[int]) -> None:
        source = step.natural(step.dynamic[0])
        before = source.channels
        self._order = order
        sizes = step.run.shape(source.node)[before.first : before.end]
        grid = torch.arange(before.count).view(sizes).permute([order[place] - before.first for place in places])
        # For each channel of the result, which it is of the source.
        self._origin = grid.flatten()
        super().__init__(step, [source], Channels(before.varying[self._origin], places[0], before.span))

    @classmethod
    def fit(cls, step: Step) -> "Permutation | None":
        """Return the rule, which holds where the dimensions that count channels stay side by side, the images first."""
        channels, rank = step.channels(step.dynamic[0]), len(step.run.shape(step.node))
        if channels.axis is None:
            return None
        order = list(range(rank))
        if step.function is aten.permute.default:
            order = [dimension % rank for dimension in step.arguments[1]]
        else:
            one, other = (dimension % rank for dimension in step.arguments[1:3])
            order[one], order[other] = other, one
        # The rules behind it take the first dimension for the images.
        if order[0] != 0:
            return None
        places = [place for place, dimension in enumerate(order) if channels.first <= dimension < channels.end]
        return cls(step, order, places) if places[-1] - places[0] < channels.span else None

    def needs(self, needed: Tensor) -> Sequence[Tensor]:
        """Return the same channels in their order before."""
        return [torch.zeros_like(needed).index_put((self._origin,), needed)]

    def build(self, builder: Builder, live: Tensor) -> Piece:  # noqa: ARG002 - all that is there keeps its place
        """Add a permutation, unless only dimensions that count channels change their order."""
        (source,) = self.sources
        piece = builder.piece(source)
        order = list(dict.fromkeys(source.channels.collapsed(dimension) for dimension in self._order))
        node = piece.node if order == sorted(order) else builder.call(aten.permute.default, piece.node, order)
        return Piece(node, torch.argsort(self._origin)[piece.held])
