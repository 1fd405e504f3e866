"""Assembly of the program of a slice."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from pathlens.classifier.program import Program, encode_graph
from pathlens.slicing.channels import Channels, Source
from pathlens.slicing.example_run import ExampleRun
from pathlens.slicing.merging import merge_constants
from pathlens.slicing.network import Network
from pathlens.slicing.not_sliceable import NotSliceable

aten = torch.ops.aten


@dataclass(frozen=True, eq=False)
class Piece:
    """What the slice computes of a value.

    Attributes:
        node: In the graph of the slice. All dimensions that count channels are one here.
        held: The numbers of the channels that are there, int64; all of them vary.
    """

    node: fx.Node
    held: Tensor


class Builder:
    """A program in the making.

    Args:
        run: The pathway network on the example.
        channels: The channels of every value.
    """

    def __init__(self, run: ExampleRun, channels: dict[fx.Node, Channels]) -> None:
        self.run = run
        self._channels = channels
        self._graph = fx.Graph()
        self._weights: dict[str, Tensor] = {}
        self._images = self._graph.placeholder("images")
        self._pieces = {run.subject.images: Piece(self._images, torch.arange(run.subject.program.input_shape[0]))}
        self._batch: fx.Node | None = None
        self._full: dict[fx.Node, fx.Node] = {}
        self._scalars: dict[fx.Node, Any] = {}

    def add(self, node: fx.Node, piece: Piece) -> None:
        """Note what the slice computes of the value of a node of the classifier."""
        self._pieces[node] = piece

    def call(self, function: Callable[..., Any], *arguments: Any, **keywords: Any) -> fx.Node:
        """Add a call to the program."""
        return self._graph.call_function(function, arguments, keywords)

    def weight(self, value: Tensor, layout: torch.memory_format = torch.contiguous_format) -> fx.Node:
        """Add a weight to the program."""
        name = f"weight_{len(self._weights)}"
        # A view would keep all of what it is a part of.
        self._weights[name] = value.detach().clone(memory_format=layout)
        return self._graph.get_attr(name)

    def has(self, source: Source) -> bool:
        """Tell whether the slice computes anything of a value."""
        return source.node in self._pieces

    def piece(self, source: Source) -> Piece:
        """Return what the slice computes of a value."""
        if source.reads_all:
            return Piece(self.in_full(source.node), torch.arange(source.channels.count))
        return self._pieces[source.node]

    def aligned(self, source: Source, wanted: Tensor) -> fx.Node:
        """Return channels of a value.

        Args:
            source: The value, of which something is computed.
            wanted: Numbers of the channels, int64. Those that are not computed are filled with zeros.
        """
        piece = self.piece(source)
        if torch.equal(piece.held, wanted):
            return piece.node
        axis = source.channels.first
        position = torch.full((source.channels.count,), -1)
        position[piece.held] = torch.arange(len(piece.held))
        index, node = position[wanted], piece.node
        if bool((index < 0).any()):
            behind = len(self.run.shape(source.node)) - source.channels.end
            node = self.call(aten.constant_pad_nd.default, node, [0, 0] * behind + [0, 1], 0.0)
            index = torch.where(index < 0, len(piece.held), index)
        first = int(index[0])
        if torch.equal(index, torch.arange(first, first + len(index))):
            return self.call(aten.slice.Tensor, node, axis, first, first + len(index))
        return self.call(aten.index_select.default, node, axis, self.weight(index.to(self.run.subject.device)))

    def constant(self, source: Source, wanted: Tensor) -> Tensor:
        """Return the constants of channels of a value, as `ExampleRun.constant` does."""
        return self.run.constant(source.node, source.channels, wanted)

    def with_constants(self, source: Source, wanted: Tensor) -> fx.Node:
        """Return channels of a value as `aligned` does, with their constants instead of zeros.

        A value of which nothing is computed becomes a weight, [1, ...].
        """
        if not self.has(source):
            return self.weight(self.run.constant(source.node, source.channels, wanted))
        return self.plus(self.aligned(source, wanted), self.constant(source, wanted), source.channels.first)

    def plus(self, node: fx.Node, constant: Tensor, axis: int) -> fx.Node:
        """Add a constant, [1, ...], along an axis that counts its channels."""
        if not bool(constant.any()):
            return node
        return self.call(aten.add.Tensor, node, self.weight(squeezed(constant, axis)))

    def in_full(self, node: fx.Node) -> fx.Node:
        """Return a value as the pathway network has it, constants included and with a row for every image."""
        if node not in self._full:
            self._full[node] = self._fill(node)
        return self._full[node]

    def _fill(self, node: fx.Node) -> fx.Node:
        channels, rank = self._channels[node], len(self.run.shape(node))
        if node not in self._pieces:
            return self.repeated(self.weight(self.run.row(node)), rank)
        if channels.axis is None:
            return self._pieces[node].node
        full = self.with_constants(Source(node, channels), torch.arange(channels.count))
        return full if channels.span == 1 else self.call(aten.reshape.default, full, [-1, *self.run.shape(node)[1:]])

    def repeated(self, row: fx.Node, rank: int) -> fx.Node:
        """Repeat a row, [1, ...], for every image."""
        return self.call(aten.expand.default, row, [self._size_of_batch(), *[-1] * (rank - 1)])

    def _size_of_batch(self) -> fx.Node:
        if self._batch is None:
            with self._graph.inserting_after(self._images):
                self._batch = self.call(aten.sym_size.int, self._images, 0)
        return self._batch

    def spread(self, node: fx.Node, shape: Sequence[int], axis: int) -> fx.Node:
        """Repeat a value over the positions of a shape, of which the images and the channels stay as they are."""
        sizes = [-1 if dimension in (0, axis) else size for dimension, size in enumerate(shape)]
        return self.call(aten.expand.default, node, sizes)

    def argument(self, value: Any) -> Any:
        """Return an argument of the classifier's program as one of the slice's, every tensor in full."""
        return fx.map_arg(value, self._argument)

    def _argument(self, node: fx.Node) -> Any:
        if self.run.is_static(node):
            known = self.run.value(node)
            return self.weight(known) if isinstance(known, Tensor) else known
        return self.in_full(node) if self.run.is_tensor(node) else self._scalar(node)

    def _scalar(self, node: fx.Node) -> Any:
        """Return a size: a number, unless it depends on the number of images."""
        if node not in self._scalars:
            value, of_one = self.run.value(node), self.run.subject.of_one_image(node)
            if value == of_one:
                self._scalars[node] = value
            elif node.target is not aten.sym_size.int:
                arguments = fx.map_arg(node.args, self._scalar)
                self._scalars[node] = self.call(_function(node), *arguments)
            elif (value, of_one) == (2, 1):
                self._scalars[node] = self._size_of_batch()
            else:
                raise NotSliceable(f"{node.name} is a size that the number of images changes")
        return self._scalars[node]

    def finish(self, output: fx.Node) -> Network:
        """Return the network whose logits are a value of the classifier."""
        self._graph.output(self.in_full(output))
        merge_constants(self._graph, self._weights)
        calls, name, names = encode_graph(self._graph)
        whole = self.run.subject.program
        program = Program(whole.input_shape, whole.classes, tuple(calls), name, ())
        return Network(program, {name: self._weights[name] for name in names})


def _function(node: fx.Node) -> Callable[..., Any]:
    assert callable(node.target), "a captured program calls functions only"  # noqa: S101
    return node.target


def squeezed(constant: Tensor, axis: int) -> Tensor:
    """Return a constant with size 1 in every dimension in which it is the same but for rounding.

    Args:
        constant: [1, ...].
        axis: Counts the channels and is left alone.
    """
    if not constant.is_floating_point():
        return constant
    allowed = 8 * torch.finfo(constant.dtype).eps * float(constant.abs().max())
    for dimension in set(range(1, constant.ndim)) - {axis}:
        one = constant.narrow(dimension, constant.shape[dimension] // 2, 1)
        if float((constant - one).abs().max()) <= allowed:
            constant = one
    return constant
