"""The rule for convolutions: dense, depthwise and grouped."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pathlens.slicing.builder import Builder, Piece, squeezed
from pathlens.slicing.channels import Channels, Source
from pathlens.slicing.rule import Rule, Step

_BEHIND_BIAS = 3
_GROUPS = 6
"""Places of the arguments."""
_IMAGES = 4
"""Dimensions of the kernels of images, which oneDNN would have to lay out with the channels last in each run."""


class Convolution(Rule):
    """Keeps the groups of which something is needed, and the same positions in all of them.

    Constants of its input become a part of its bias; where they meet a margin, a bias for each position.
    """

    operators = frozenset({"conv1d", "conv2d", "conv3d"})

    def __init__(self, step: Step, source: Source, kernel: Tensor, bias: Tensor | None, groups: int) -> None:
        self._kernel, self._bias, self._groups = kernel, bias, groups
        varying = source.channels.varying.view(groups, -1).any(1)
        super().__init__(step, [source], Channels(varying.repeat_interleave(len(kernel) // groups)))

    @classmethod
    def fit(cls, step: Step) -> "Convolution | None":
        """Return the rule, which holds where kernel and bias are stored."""
        value, kernel, bias = (*step.arguments, None)[:_BEHIND_BIAS]
        if step.keywords or step.dynamic != [value]:
            return None
        known = None if bias is None else step.run.value(bias)
        groups = step.argument(_GROUPS, "groups", 1)
        return cls(step, step.along(value, 1), step.run.value(kernel), known, groups)

    def needs(self, needed: Tensor) -> Sequence[Tensor]:
        """Return all channels of the groups of which something is needed."""
        (source,) = self.sources
        kept = needed.view(self._groups, -1).any(1)
        return [kept.repeat_interleave(source.channels.count // self._groups)]

    def build(self, builder: Builder, live: Tensor) -> Piece:
        """Add a convolution of what is left, and the bias that the constants make."""
        (source,) = self.sources
        outputs = torch.zeros(self.channels.count, dtype=torch.bool)
        outputs[live] = True
        groups = outputs.view(self._groups, -1).any(1).nonzero()[:, 0]
        held = _members(groups, self._positions(outputs, groups), self.channels.count // self._groups)
        # A dense convolution needs all that varies, and takes it in the order in which it is there.
        dense = self._groups == 1
        inner = builder.piece(source).held if dense else self._positions(source.channels.varying, groups)
        bias = self._biases(builder, groups, held)
        is_map = bias is not None and bias.ndim > 1
        kernel = self._kernel[held][:, inner]
        node = builder.call(
            self.function,
            builder.aligned(source, _members(groups, inner, source.channels.count // self._groups)),
            builder.weight(kernel, torch.channels_last if kernel.ndim == _IMAGES else torch.contiguous_format),
            None if bias is None or is_map else builder.weight(bias),
            *self._rest(len(groups)),
        )
        if bias is not None and is_map:
            node = builder.plus(node, bias, self.channels.first)
        return Piece(node, held)

    def _positions(self, chosen: Tensor, groups: Tensor) -> Tensor:
        """Return the positions within a group that are chosen in any of some groups."""
        return chosen.view(self._groups, -1)[groups].any(0).nonzero()[:, 0]

    def _biases(self, builder: Builder, groups: Tensor, held: Tensor) -> Tensor | None:
        """Return what the constants and the bias give: [O], or [1, O, ...] where positions differ."""
        (source,) = self.sources
        own = None if self._bias is None else self._bias[held]
        size = source.channels.count // self._groups
        constant = builder.constant(source, _members(groups, torch.arange(size), size))
        if not bool(constant.any()):
            return own
        inner = constant.flatten(2).any(2).view(len(groups), size).any(0).nonzero()[:, 0].cpu()
        members = _members(torch.arange(len(groups)), inner, size).to(constant.device)
        kernel = self._kernel[held][:, inner]
        with torch.no_grad():
            biases: Tensor = self.function(constant.index_select(1, members), kernel, own, *self._rest(len(groups)))
        one = squeezed(biases, self.channels.first)
        return one.flatten() if one.numel() == len(held) else one

    def _rest(self, groups: int) -> list[Any]:
        """Return the arguments behind the bias."""
        ones = [1] * (self._kernel.ndim - 2)
        defaults = [ones, [0] * len(ones), ones]
        given = self.arguments[_BEHIND_BIAS:_GROUPS]
        return [*given, *defaults[len(given) :], groups]


def _members(groups: Tensor, positions: Tensor, size: int) -> Tensor:
    """Return the channels at some positions of some groups of one size."""
    return (groups[:, None] * size + positions).flatten()
