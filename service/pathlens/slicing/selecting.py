"""The rules for calls that take a part of a value, or put it into a larger one."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch.nn import functional

from pathlens.slicing.builder import Builder, Piece
from pathlens.slicing.channels import Channels, Source
from pathlens.slicing.rule import Rule, Step

aten = torch.ops.aten

_PLACES = {
    aten.slice.Tensor: 1,
    aten.select.int: 1,
    aten.unbind.int: 1,
    aten.split.Tensor: 2,
    aten.split.sizes: 2,
    aten.split_with_sizes.default: 2,
    aten.chunk.default: 2,
}
"""Where the arguments of a call that takes parts name the dimension."""

_REMOVING = frozenset({aten.select.int, aten.unbind.int})
"""Those that leave one dimension less."""


class Part(Rule):
    """A part of one dimension: a slice, one entry, or one of the results of a split."""

    operators = frozenset({"slice", "select", "getitem"})

    def __init__(self, step: Step, source: Source, dimension: int, taken: Tensor) -> None:
        before = source.channels
        self._dimension, self._taken = dimension, taken
        # For each channel of the result, which it is of the source.
        self._origin = torch.arange(before.count)
        axis, span, removed = before.first, before.span, taken.ndim == 0
        if before.first <= dimension < before.end:
            sizes = step.run.shape(source.node)[before.first : before.end]
            grid = self._origin.view(sizes).index_select(dimension - before.first, taken.flatten())
            self._origin, span = grid.flatten(), span - removed
        elif dimension < before.first:
            axis -= removed
        super().__init__(step, [source], Channels(before.varying[self._origin], axis, span))

    @classmethod
    def fit(cls, step: Step) -> "Part | None":
        """Return the rule, which holds where a fixed part is taken, and channels and images are left."""
        call = step.node if step.function in _PLACES else step.dynamic[0]
        function: Any = call.target
        if function not in _PLACES:
            return None
        value, *arguments = call.args
        assert isinstance(value, fx.Node), "parts are taken of values"  # noqa: S101
        source, shape = step.natural(value), step.run.shape(value)
        place = _PLACES[function] - 1
        dimension: Any = (*arguments, *[0] * 2)[place]
        dimension %= len(shape)
        channels = source.channels
        if channels.axis is None or any(isinstance(argument, fx.Node) for argument in arguments):
            return None
        if function in _REMOVING and (channels.span, channels.first) == (1, dimension):
            return None
        # What is taken of the dimension is found by taking it of its indices.
        arguments[place : place + 1] = [0]
        taken: Any = function(torch.arange(shape[dimension]), *arguments)
        taken = taken if call is step.node else taken[step.arguments[1]]
        if dimension == 0 and taken.shape != shape[:1]:
            return None
        if not taken.numel():
            return None
        return cls(step, source, dimension, taken)

    def needs(self, needed: Tensor) -> Sequence[Tensor]:
        """Return the channels that are taken."""
        source = torch.zeros(self.sources[0].channels.count, dtype=torch.bool)
        source[self._origin] = needed
        return [source]

    def build(self, builder: Builder, live: Tensor) -> Piece:
        """Take the part; of channels, only if the slice has others."""
        (source,) = self.sources
        channels, piece = source.channels, builder.piece(source)
        if not channels.first <= self._dimension < channels.end:
            return Piece(self._take(builder, piece.node, channels.collapsed(self._dimension)), piece.held)
        place = torch.full((channels.count,), -1)
        place[self._origin] = torch.arange(len(self._origin))
        if bool((place[piece.held] >= 0).all()):
            return Piece(piece.node, place[piece.held])
        return Piece(builder.aligned(source, self._origin[live]), live)

    def _take(self, builder: Builder, node: fx.Node, dimension: int) -> fx.Node:
        """Take the part of a dimension that counts no channels."""
        if self._taken.ndim == 0:
            return builder.call(aten.select.int, node, dimension, int(self._taken))
        size = self.run.shape(self.sources[0].node)[self._dimension]
        if torch.equal(self._taken, torch.arange(size)):
            return node
        first, step = int(self._taken[0]), int(self._taken[1] - self._taken[0]) if len(self._taken) > 1 else 1
        return builder.call(aten.slice.Tensor, node, dimension, first, int(self._taken[-1]) + 1, step)


class Pad(Rule):
    """A margin: around feature maps, or of more channels, which are constants."""

    operators = frozenset({"pad", "constant_pad_nd"})

    def __init__(self, step: Step, source: Source, before: int, after: int) -> None:
        self._before, self._after = before, after
        padded = functional.pad(source.channels.varying.int(), (before, after)).bool()
        super().__init__(step, [source], Channels(padded, source.channels.axis))

    @classmethod
    def fit(cls, step: Step) -> "Pad | None":
        """Return the rule, which holds for fixed widths, and for channels of one number."""
        source, widths = step.natural(step.dynamic[0]), step.arguments[1]
        channels, rank = source.channels, len(step.run.shape(step.node))
        if channels.axis is None or channels.span > 1 or any(isinstance(width, fx.Node) for width in widths):
            return None
        full = [*widths, *[0] * (2 * rank - len(widths))]
        place = 2 * (rank - 1 - channels.first)
        before, after = full[place : place + 2]
        is_constant = (
            step.function is aten.constant_pad_nd.default or step.argument(2, "mode", "constant") == "constant"
        )
        if any(full[-2:]) or ((before or after) and not is_constant):
            return None
        return cls(step, source, before, after)

    def needs(self, needed: Tensor) -> Sequence[Tensor]:
        """Return the same channels without the margin."""
        return [functional.pad(needed.int(), (-self._before, -self._after)).bool()]

    def build(self, builder: Builder, live: Tensor) -> Piece:
        """Add the margin around feature maps; more channels need nothing."""
        (source,) = self.sources
        piece = builder.piece(source)
        node, held = piece.node, piece.held + self._before
        if bool(((held < 0) | (held >= self.channels.count)).any()):
            node, held = builder.aligned(source, live - self._before), live
        place = 2 * (len(self.run.shape(self.node)) - 1 - self.channels.first)
        widths = [0 if index in (place, place + 1) else width for index, width in enumerate(self.arguments[1])]
        if any(widths):
            node = builder.call(self.function, node, widths, *self.arguments[2:])
        return Piece(node, held)
