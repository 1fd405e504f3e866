"""The rules for calls that compute every number, or every feature map, from itself alone."""

import torch
from torch import Tensor, fx

from pathlens.classifier.taps import ACTIVATIONS
from pathlens.slicing.builder import Builder, Piece
from pathlens.slicing.channels import Channels
from pathlens.slicing.rule import ChannelWise, Step

aten = torch.ops.aten


class Identity(ChannelWise):
    """A call that returns what it gets."""

    operators = frozenset({"clone", "contiguous", "alias", "dropout"})

    @classmethod
    def fit(cls, step: Step) -> "Identity | None":
        """Return the rule, which does not hold for a dropout that is on."""
        if step.argument(2, "train"):
            return None
        source = step.natural(step.dynamic[0])
        return cls(step, [source], source.channels)

    def _compute(self, builder: Builder, piece: Piece) -> fx.Node:  # noqa: ARG002 - nothing is added
        return piece.node


class Pointwise(ChannelWise):
    """A function of single numbers, with weights that are numbers or broadcast over channels.

    Such as an activation, a layer scale, or a position embedding.
    """

    operators = (ACTIVATIONS - {"glu"}) | frozenset(
        {
            *("add", "sub", "rsub", "mul", "div", "pow", "maximum", "minimum", "where", "neg", "abs", "sign", "detach"),
            *("clamp", "clamp_min", "clamp_max", "exp", "log", "log1p", "sqrt", "rsqrt", "reciprocal", "square"),
            *("sin", "cos", "erf", "log_sigmoid", "softsign", "tanhshrink", "floor", "round"),
        }
    )

    @classmethod
    def fit(cls, step: Step) -> "Pointwise | None":
        """Return the rule, which holds where one value meets weights that leave its channels where they are."""
        if len(step.dynamic) != 1:
            return None
        source = step.natural(step.dynamic[0])
        channels, shape, result = source.channels, step.run.shape(source.node), step.run.shape(step.node)
        if channels.axis is None or len(shape) != len(result) or shape[0] != result[0]:
            return None
        if shape[channels.first : channels.end] != result[channels.first : channels.end]:
            return None
        has_weights = any(step.run.is_static(node) for node in step.node.all_input_nodes)
        if has_weights and (channels.span > 1 or (step.function is aten.prelu.default and channels.axis != 1)):
            return None
        return cls(step, [source], channels)

    def _compute(self, builder: Builder, piece: Piece) -> fx.Node:
        def argument(node: fx.Node) -> fx.Node:
            if node is self.sources[0].node:
                return piece.node
            weight = self.run.value(node)
            if self.run.is_static(node) and isinstance(weight, Tensor):
                return builder.weight(self._part(weight, piece.held))
            number: fx.Node = builder.argument(node)
            return number

        arguments, keywords = fx.map_arg((self.node.args, self.node.kwargs), argument)
        return builder.call(self.function, *arguments, **keywords)

    def _part(self, weight: Tensor, held: Tensor) -> Tensor:
        """Return the values of a weight for some channels."""
        if self.function is aten.prelu.default:
            axis = 0
        else:
            axis = weight.ndim - len(self.run.shape(self.node)) + self.channels.first
        if axis < 0 or weight.shape[axis] == 1:
            return weight
        return weight.index_select(axis, held.to(weight.device))


class Spatial(ChannelWise):
    """Pooling, enlarging and the like of each feature map."""

    operators = frozenset(
        {
            *("max_pool1d", "max_pool2d", "max_pool3d", "max_pool2d_with_indices"),
            *("avg_pool1d", "avg_pool2d", "avg_pool3d"),
            *("adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d"),
            *("adaptive_max_pool1d", "adaptive_max_pool2d", "adaptive_max_pool3d"),
            *("upsample_nearest1d", "upsample_nearest2d", "upsample_nearest3d", "_upsample_nearest_exact2d"),
            *("upsample_linear1d", "upsample_bilinear2d", "upsample_bicubic2d", "upsample_trilinear3d"),
        }
    )

    @classmethod
    def fit(cls, step: Step) -> "Spatial | None":
        """Return the rule, which holds where anything is known of single channels."""
        if len(step.dynamic) != 1 or step.common_axis() is None:
            return None
        source = step.along(step.dynamic[0], 1)
        return cls(step, [source], source.channels)

    def _compute(self, builder: Builder, piece: Piece) -> fx.Node:
        return self._call(builder, piece.node)


class BatchNorm(ChannelWise):
    """A batch norm that is not behind a convolution."""

    operators = frozenset({"_native_batch_norm_legit_no_training"})

    @classmethod
    def fit(cls, step: Step) -> "BatchNorm | None":
        """Return the rule, which holds where all statistics are stored."""
        if len(step.dynamic) != 1:
            return None
        source = step.along(step.dynamic[0], 1)
        return cls(step, [source], source.channels)

    def _compute(self, builder: Builder, piece: Piece) -> fx.Node:
        stored = [None if node is None else self.run.value(node)[piece.held] for node in self.arguments[1:5]]
        weights = [None if value is None else builder.weight(value) for value in stored]
        return builder.call(self.function, piece.node, *weights, *self.arguments[5:])


class Item(ChannelWise):
    """One of the tensors of a call that gives several."""

    operators = frozenset({"getitem"})

    @classmethod
    def fit(cls, step: Step) -> "Item":
        """Return the rule, which holds for what such a call leaves."""
        source = step.natural(step.dynamic[0])
        return cls(step, [source], source.channels)

    def _compute(self, builder: Builder, piece: Piece) -> fx.Node:
        return self._call(builder, piece.node)


class Expansion(ChannelWise):
    """Values repeated over positions."""

    operators = frozenset({"expand"})

    @classmethod
    def fit(cls, step: Step) -> "Expansion | None":
        """Return the rule, which holds where neither the channels nor the images are repeated."""
        source = step.natural(step.dynamic[0])
        channels, shape, result = source.channels, step.run.shape(source.node), step.run.shape(step.node)
        if channels.axis is None or channels.span > 1 or len(shape) != len(result):
            return None
        if shape[0] != result[0] or shape[channels.first] != result[channels.first]:
            return None
        return cls(step, [source], channels)

    def _compute(self, builder: Builder, piece: Piece) -> fx.Node:
        return builder.spread(piece.node, self.run.shape(self.node), self.channels.first)


class Reduction(ChannelWise):
    """The mean, the sum or an extreme over positions."""

    operators = frozenset({"mean", "sum", "amax", "amin"})

    @classmethod
    def fit(cls, step: Step) -> "Reduction | None":
        """Return the rule, which holds where neither the channels nor the images are reduced."""
        source = step.natural(step.dynamic[0])
        channels, rank = source.channels, len(step.run.shape(source.node))
        dimensions = step.argument(1, "dim")
        if channels.axis is None or channels.span > 1 or not dimensions:
            return None
        reduced = {dimension % rank for dimension in dimensions}
        if reduced & {0, channels.first}:
            return None
        gone = 0 if step.argument(2, "keepdim") else sum(dimension < channels.first for dimension in reduced)
        return cls(step, [source], Channels(channels.varying, channels.first - gone))

    def _compute(self, builder: Builder, piece: Piece) -> fx.Node:
        return self._call(builder, piece.node)
