"""The rules for calls that join two values channel by channel: residual sums, gates."""

import torch
from torch import Tensor, fx

from pathlens.slicing.builder import Builder, Piece
from pathlens.slicing.channels import Channels, Source
from pathlens.slicing.rule import Rule, Step

aten = torch.ops.aten


class Sum(Rule):
    """A sum or a difference of two values; their constants are added at once."""

    operators = frozenset({"add", "sub"})

    @classmethod
    def fit(cls, step: Step) -> "Sum | None":
        """Return the rule, which holds for two values of as many channels."""
        pair = _pair(step)
        if pair is None:
            return None
        one, other = (source.channels for source in pair)
        return cls(step, pair, Channels(one.varying | other.varying, one.axis))

    def build(self, builder: Builder, live: Tensor) -> Piece:
        """Add up what varies of both, then the constants."""
        one, other = (
            builder.aligned(source, live) if bool(source.channels.varying[live].any()) else None
            for source in self.sources
        )
        if one is not None and other is not None:
            node = builder.call(self.function, one, other)
        elif one is not None:
            node = self._spread(builder, one, self.sources[0])
        else:
            assert other is not None, "live channels vary in one of both"  # noqa: S101
            if self.function is aten.sub.Tensor:
                other = builder.call(aten.neg.default, other)
            node = self._spread(builder, other, self.sources[1])
        constant = self.function(*(builder.constant(source, live) for source in self.sources))
        return Piece(builder.plus(node, constant, self.channels.first), live)

    def _spread(self, builder: Builder, node: fx.Node, source: Source) -> fx.Node:
        """Repeat the only value that varies over the positions of the sum."""
        shape = self.run.shape(self.node)
        return node if shape == self.run.shape(source.node) else builder.spread(node, shape, self.channels.first)


class Product(Rule):
    """A function of two numbers, such as a product, applied channel by channel to values with their constants."""

    operators = frozenset({"mul", "div", "maximum", "minimum"})

    @classmethod
    def fit(cls, step: Step) -> "Product | None":
        """Return the rule, which holds for two values of as many channels."""
        pair = _pair(step)
        if pair is None:
            return None
        varying = pair[0].channels.varying | pair[1].channels.varying
        # A constant of zero, such as a channel that is removed before a gate, stays zero whatever it is multiplied by.
        if step.function in (aten.mul.Tensor, aten.div.Tensor):
            varying = varying & ~_is_zero(step, pair[0])
        if step.function is aten.mul.Tensor:
            varying = varying & ~_is_zero(step, pair[1])
        return cls(step, pair, Channels(varying, pair[0].channels.axis))

    def build(self, builder: Builder, live: Tensor) -> Piece:
        """Add the call for the channels that are left."""
        operands = [builder.with_constants(source, live) for source in self.sources]
        return Piece(builder.call(self.function, *operands), live)


def _pair(step: Step) -> tuple[Source, Source] | None:
    """Return two values that a call joins channel by channel; one may have fewer positions than the other."""
    if step.keywords or list(step.arguments) != step.dynamic or len(step.dynamic) != 2:
        return None
    axis = step.common_axis()
    one, other = (step.run.shape(node) for node in step.dynamic)
    if axis is None or len(one) != len(other) or (one[0], one[axis]) != (other[0], other[axis]):
        return None
    return step.along(step.dynamic[0], axis), step.along(step.dynamic[1], axis)


def _is_zero(step: Step, source: Source) -> Tensor:
    """Tell which channels of a value are constant zeros."""
    channels = source.channels
    if bool(channels.varying.all()) or not step.run.has_batch_first(source.node):
        return torch.zeros_like(channels.varying)
    constant = step.run.constant(source.node, channels, torch.arange(channels.count))
    return ~channels.varying & ~constant.movedim(channels.first, 0).flatten(1).any(1).cpu()
