"""The rule for linear layers."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from pathlens.slicing.builder import Builder, Piece, squeezed
from pathlens.slicing.channels import Channels, Source
from pathlens.slicing.rule import Rule, Step

aten = torch.ops.aten


class Linear(Rule):
    """A linear layer on the last dimension; constants of its input become a part of its bias.

    Where they differ between positions, such as the tokens of a transformer, there is a bias for each position.
    """

    operators = frozenset({"linear"})

    def __init__(self, step: Step, source: Source, weight: Tensor, bias: Tensor | None) -> None:
        self._weight, self._bias = weight, bias
        varying = torch.tensor([source.channels.varies]).expand(len(weight))
        super().__init__(step, [source], Channels(varying, source.channels.axis))

    @classmethod
    def fit(cls, step: Step) -> "Linear | None":
        """Return the rule, which holds where weight and bias are stored."""
        value, weight, bias = (*step.arguments, None)[:3]
        rank = len(step.run.shape(value))
        if step.keywords or step.dynamic != [value] or rank < 2:
            return None
        known = None if bias is None else step.run.value(bias)
        return cls(step, step.along(value, rank - 1), step.run.value(weight), known)

    def needs(self, needed: Tensor) -> Sequence[Tensor]:
        """Return all inputs if any output is needed."""
        return [needed.any().expand(self.sources[0].channels.count)]

    def build(self, builder: Builder, live: Tensor) -> Piece:
        """Add a linear layer of what is left, and the bias that the constants make."""
        (source,) = self.sources
        # All that varies is needed, so it is there.
        piece = builder.piece(source)
        rows = self._weight[live]
        bias = None if self._bias is None else self._bias[live]
        constant = builder.constant(source, torch.arange(source.channels.count))
        if bool(constant.any()):
            with torch.no_grad():
                bias = squeezed(functional.linear(constant, rows, bias), self.channels.first)
            bias = bias.flatten() if bias.numel() == len(live) else bias
        is_map = bias is not None and bias.ndim > 1
        node = builder.call(
            self.function,
            piece.node,
            builder.weight(rows[:, piece.held]),
            None if bias is None or is_map else builder.weight(bias),
        )
        if bias is not None and is_map:
            node = builder.plus(node, bias, self.channels.first)
        return Piece(node, live)
