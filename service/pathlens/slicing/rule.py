"""What every rule of slicing tells of one call."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, fx

from pathlens.slicing.builder import Builder, Piece
from pathlens.slicing.channels import Channels, Source
from pathlens.slicing.example_run import ExampleRun


class Step:
    """One call of the classifier, as a rule sees it.

    Args:
        node: The call.
        run: The pathway network on the example.
        channels: The channels of all values before it.

    Attributes:
        function: What is called.
        arguments: Its arguments.
        keywords: Those that are named.
        dynamic: The tensors among them that the images, or their number, can change; one may come twice.
    """

    def __init__(self, node: fx.Node, run: ExampleRun, channels: Mapping[fx.Node, Channels]) -> None:
        self.node = node
        self.run = run
        self.function: Any = node.target
        self.arguments: tuple[Any, ...] = node.args
        self.keywords: dict[str, Any] = node.kwargs
        self.dynamic: list[fx.Node] = []
        self._channels = channels
        fx.map_arg((node.args, node.kwargs), self._note)

    def _note(self, node: fx.Node) -> fx.Node:
        if not self.run.is_static(node) and self.run.is_tensor(node):
            self.dynamic.append(node)
        return node

    def argument(self, place: int, name: str, default: Any = None) -> Any:
        """Return an argument that may stand at its place or under its name."""
        return self.arguments[place] if place < len(self.arguments) else self.keywords.get(name, default)

    def channels(self, node: fx.Node) -> Channels:
        """Return the channels of a value."""
        return self._channels[node]

    def common_axis(self) -> int | None:
        """Return the dimension that counts the channels of what the call reads; None if all is taken as a whole."""
        axes = (self._channels[node].axis for node in self.dynamic)
        return next((axis for axis in axes if axis is not None), None)

    def natural(self, node: fx.Node) -> Source:
        """Return a value that the call reads as it is."""
        return Source(node, self._channels[node])

    def along(self, node: fx.Node, axis: int) -> Source:
        """Return a value of which the call reads channels along one dimension."""
        own = self._channels[node]
        if own.axis == axis and own.span == 1:
            return Source(node, own)
        varying = torch.tensor([own.varies]).expand(self.run.shape(node)[axis])
        return Source(node, Channels(varying, axis), reads_all=True)

    def as_whole(self, node: fx.Node) -> Source:
        """Return a value that the call reads as a whole."""
        return Source(node, Channels.whole(self._channels[node].varies), reads_all=True)


class Rule(ABC):
    """How one call passes on what varies, what is needed, and what is left of it.

    Args:
        step: The call.
        sources: The values that it reads.
        channels: Those of its result.
    """

    operators: ClassVar[frozenset[str]] = frozenset()
    """Names of the operators that the rule is for."""

    def __init__(self, step: Step, sources: Sequence[Source], channels: Channels) -> None:
        self.node = step.node
        self.run = step.run
        self.function = step.function
        self.arguments = step.arguments
        self.sources = tuple(sources)
        self.channels = channels

    @classmethod
    @abstractmethod
    def fit(cls, step: Step) -> "Rule | None":
        """Return the rule for a call of one of its operators; None if it does not hold for the call."""

    def needs(self, needed: Tensor) -> Sequence[Tensor]:
        """Return which channels of each source are read to compute some of the result: by default, the same.

        Args:
            needed: The channels of the result that vary and that something else needs, bool [C].
        """
        return [needed] * len(self.sources)

    @abstractmethod
    def build(self, builder: Builder, live: Tensor) -> Piece:
        """Add what computes the result to a slice.

        Args:
            builder: The slice, with the sources in it.
            live: The channels that are needed and vary, int64 [L], at least one. The piece may hold others that vary.
        """


class ChannelWise(Rule):
    """The rule for a call that computes every channel from the same channel of one value."""

    def build(self, builder: Builder, live: Tensor) -> Piece:  # noqa: ARG002 - what the value has is passed on
        """Compute the result of all channels that the slice has of the value."""
        piece = builder.piece(self.sources[0])
        return Piece(self._compute(builder, piece), piece.held)

    @abstractmethod
    def _compute(self, builder: Builder, piece: Piece) -> fx.Node:
        """Add the call for a piece of the value."""

    def _call(self, builder: Builder, value: fx.Node) -> fx.Node:
        """Add the same call with another value as its first argument."""
        rest = [builder.argument(argument) for argument in self.arguments[1:]]
        keywords = {name: builder.argument(argument) for name, argument in self.node.kwargs.items()}
        return builder.call(self.function, value, *rest, **keywords)
