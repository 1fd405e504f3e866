"""The rule for every call that no other rule knows: it reads all of its inputs, and all of its result may vary."""

import torch
from torch import Tensor

from pathlens.slicing.builder import Builder, Piece
from pathlens.slicing.channels import Channels
from pathlens.slicing.rule import Rule, Step

aten = torch.ops.aten


class Whole(Rule):
    """Computes a call as the classifier does, from inputs with all their constants."""

    @classmethod
    def fit(cls, step: Step) -> "Whole":
        """Return the rule, which holds for any call."""
        sources = [step.as_whole(node) for node in step.dynamic]
        return cls(step, sources, Channels.whole(any(source.channels.varies for source in sources)))

    def build(self, builder: Builder, live: Tensor) -> Piece:
        """Add the call as it is."""
        arguments = [builder.argument(value) for value in self.arguments]
        keywords = {name: builder.argument(value) for name, value in self.node.kwargs.items()}
        # What the slice computes may lie in memory in another order than what the classifier computes.
        function = aten.reshape.default if self.function is aten.view.default else self.function
        return Piece(builder.call(function, *arguments, **keywords), live)
