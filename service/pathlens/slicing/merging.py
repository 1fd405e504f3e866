"""Constants of a slice that are added one after the other, or behind a convolution, made one."""

from collections.abc import Iterable

import torch
from torch import Tensor, fx

aten = torch.ops.aten

_CONVOLUTIONS = frozenset(
    {
        *(aten.conv1d.default, aten.conv2d.default, aten.conv3d.default),
        *(aten.conv1d.padding, aten.conv2d.padding, aten.conv3d.padding),
    }
)


def merge_constants(graph: fx.Graph, weights: dict[str, Tensor]) -> None:
    """Let what is computed before a constant is added take it in, and drop what nothing reads.

    Args:
        graph: Of a slice; it is changed. Every weight is read once.
        weights: Its weights by name; they are changed, too.
    """
    merging = _Merging(graph, weights)
    for node in list(graph.nodes):
        constant = merging.constant(node)
        if constant is not None and merging.absorb(node.args[0], constant):
            node.replace_all_uses_with(node.args[0])
    graph.eliminate_dead_code()


class _Merging:
    def __init__(self, graph: fx.Graph, weights: dict[str, Tensor]) -> None:
        self._graph = graph
        self._weights = weights

    def constant(self, node: fx.Node) -> Tensor | None:
        """Return the constant that a call adds to a value; None if it does something else."""
        if node.target is not aten.add.Tensor or len(node.args) != 2 or node.kwargs:
            return None
        value, weight = node.args
        if not isinstance(value, fx.Node) or not isinstance(weight, fx.Node) or weight.op != "get_attr":
            return None
        return self._weights[str(weight.target)]

    def absorb(self, node: object, constant: Tensor) -> bool:
        """Add a constant to the result of a call by changing the call; False if that cannot be done."""
        if not isinstance(node, fx.Node) or _reads(node) != 1:
            return False
        own = self.constant(node)
        if own is not None:
            self._replace(node, 1, own + constant)
            return True
        if node.target is aten.add.Tensor and not node.kwargs:
            return self._any_absorbs(node.args, constant)
        if node.target is aten.sub.Tensor and not node.kwargs:
            return self._any_absorbs(node.args[:1], constant)
        if node.target is aten.linear.default:
            return self._into_bias(node, constant, 1)
        if node.target in _CONVOLUTIONS:
            return self._into_bias(node, constant, self._value(node.args[1]).ndim - 1)
        return False

    def _any_absorbs(self, nodes: Iterable[object], constant: Tensor) -> bool:
        return any(self.absorb(node, constant) for node in nodes)

    def _into_bias(self, node: fx.Node, constant: Tensor, from_end: int) -> bool:
        """Add a constant to the bias of a call whose channels are counted by a dimension, given from the end."""
        channels = len(self._value(node.args[1]))
        if constant.numel() != channels or constant.ndim < from_end or constant.shape[-from_end] != channels:
            return False
        bias = node.args[2]
        own = self._value(bias) if bias is not None else torch.zeros_like(constant.flatten())
        self._replace(node, 2, own + constant.flatten())
        return True

    def _value(self, node: object) -> Tensor:
        assert isinstance(node, fx.Node), "kernels and biases are weights"  # noqa: S101
        return self._weights[str(node.target)]

    def _replace(self, node: fx.Node, place: int, value: Tensor) -> None:
        """Let a call read another weight."""
        name = f"weight_{len(self._weights)}"
        self._weights[name] = value
        with self._graph.inserting_before(node):
            node.update_arg(place, self._graph.get_attr(name))


def _reads(node: fx.Node) -> int:
    """Count how often a value is read; one call may read it twice."""
    read: list[fx.Node] = []
    for user in node.users:
        fx.map_arg((user.args, user.kwargs), read.append)
    return read.count(node)
