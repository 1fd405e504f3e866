"""The rule for concatenations."""

from collections.abc import Sequence

import torch
from torch import Tensor, fx

from pathlens.slicing.builder import Builder, Piece
from pathlens.slicing.channels import Channels
from pathlens.slicing.rule import Rule, Step

aten = torch.ops.aten


class Concatenation(Rule):
    """Values side by side: their channels, or their positions channel by channel."""

    operators = frozenset({"cat", "concat"})

    def __init__(self, step: Step, nodes: Sequence[fx.Node], dimension: int, axis: int) -> None:
        sources = [step.along(node, axis) for node in nodes]
        self._dimension, self._joins_channels = dimension, dimension == axis
        varying = [source.channels.varying for source in sources]
        joined = torch.cat(varying) if self._joins_channels else torch.stack(varying).any(0)
        super().__init__(step, sources, Channels(joined, axis))

    @classmethod
    def fit(cls, step: Step) -> "Concatenation | None":
        """Return the rule, which holds where the images stay apart."""
        nodes = list(step.arguments[0])
        axis = step.common_axis()
        if axis is None or step.dynamic != nodes:
            return None
        ranks = {len(step.run.shape(node)) for node in nodes}
        dimension = step.argument(1, "dim", 0) % max(ranks)
        return cls(step, nodes, dimension, axis) if len(ranks) == 1 and dimension else None

    def needs(self, needed: Tensor) -> Sequence[Tensor]:
        """Return each value's own channels, or the same channels of all."""
        if not self._joins_channels:
            return [needed] * len(self.sources)
        return torch.split(needed, [source.channels.count for source in self.sources])

    def build(self, builder: Builder, live: Tensor) -> Piece:
        """Add the concatenation of what is left."""
        return self._join_channels(builder) if self._joins_channels else self._join_positions(builder, live)

    def _join_channels(self, builder: Builder) -> Piece:
        nodes, held, start = [], [], 0
        for source in self.sources:
            if builder.has(source):
                piece = builder.piece(source)
                nodes.append(piece.node)
                held.append(piece.held + start)
            start += source.channels.count
        joined = nodes[0] if len(nodes) == 1 else builder.call(aten.cat.default, nodes, self._dimension)
        return Piece(joined, torch.cat(held))

    def _join_positions(self, builder: Builder, live: Tensor) -> Piece:
        nodes = []
        for source in self.sources:
            node = builder.with_constants(source, live)
            if not builder.has(source):
                node = builder.repeated(node, len(self.run.shape(source.node)))
            nodes.append(node)
        return Piece(builder.call(aten.cat.default, nodes, self._dimension), live)
