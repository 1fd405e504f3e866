"""Graphs of ATen operators made smaller: nothing is computed twice, and nothing that could be computed beforehand."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

aten = torch.ops.aten

LARGEST_CONSTANT = 2**24
"""Values of a tensor that is computed beforehand, unless it is made of as many."""

_SAME = frozenset({aten.detach.default, aten.alias.default})
"""Operators that return what they get."""


@dataclass(frozen=True)
class SimplifiedGraph:
    """A graph and where its constants come from.

    Attributes:
        module: The graph; its constants are buffers.
        names: For each buffer, the name of the tensor that it is, or that it was computed from with how it was.
    """

    module: fx.GraphModule
    names: Mapping[str, str]


def simplify(traced: fx.GraphModule, tensors: Mapping[str, Tensor]) -> SimplifiedGraph:
    """Compute constants beforehand, and equal values once.

    Args:
        traced: As a tracer made it.
        tensors: The weights by the names that they are to have.

    Returns:
        A graph that computes the same; every constant has the name of the weight that it is made of.
    """
    return _Simplifier(traced, tensors).run()


class _Simplifier:
    def __init__(self, traced: fx.GraphModule, tensors: Mapping[str, Tensor]) -> None:
        self._traced = traced
        self._given = {_identity(tensor): name for name, tensor in tensors.items()}
        self._graph = fx.Graph()
        self._root = torch.nn.Module()
        self._nodes: dict[fx.Node, fx.Node] = {}
        self._constants: dict[fx.Node, Tensor] = {}
        self._labels: dict[fx.Node, str] = {}
        self._seen: dict[Any, fx.Node] = {}
        self._names: dict[str, str] = {}
        self._by_identity: dict[Any, fx.Node] = {}

    def run(self) -> SimplifiedGraph:
        for node in self._traced.graph.nodes:
            if node.op == "get_attr":
                self._take_constant(node, getattr(self._traced, node.target))
            elif node.op == "call_function":
                self._call(node)
            else:
                self._nodes[node] = self._copy(node)
        self._graph.eliminate_dead_code()
        return SimplifiedGraph(fx.GraphModule(self._root, self._graph), self._names)

    def _take_constant(self, node: fx.Node, value: Tensor, label: str = "") -> None:
        self._constants[node] = value
        self._labels[node] = self._given.get(_identity(value), label)

    def _call(self, node: fx.Node) -> None:
        if node.target in _SAME and not self._is_constant(node):
            self._nodes[node] = self._nodes[node.all_input_nodes[0]]
            return
        if node.target is aten.new_zeros.default and _has_known_size(node):
            self._take_constant(node, torch.zeros(node.meta["val"].shape, dtype=node.meta["val"].dtype))
            return
        if self._is_constant(node):
            function: Any = node.target
            value = function(*fx.map_arg(node.args, self._value), **fx.map_arg(node.kwargs, self._value))
            parts = [self._labels[item] for item in node.all_input_nodes if self._labels[item]]
            made = f"{parts[0]}/{_short_name(node)}" if parts else _short_name(node)
            self._take_constant(node, value, made)
            return
        key = self._key(node)
        if key not in self._seen:
            self._seen[key] = self._copy(node)
        self._nodes[node] = self._seen[key]

    def _is_constant(self, node: fx.Node) -> bool:
        inputs = node.all_input_nodes
        if not all(item in self._constants for item in inputs) or _turns_weights_of_product(node):
            return False
        value = node.meta.get("val")
        if not isinstance(value, Tensor):
            return bool(inputs) and not isinstance(value, torch.SymInt)
        room = sum(self._constants[item].numel() for item in inputs if isinstance(self._constants[item], Tensor))
        return _has_known_size(node) and value.numel() <= max(room, LARGEST_CONSTANT)

    def _value(self, node: fx.Node) -> Tensor:
        return self._constants[node]

    def _key(self, node: fx.Node) -> Any:
        arguments = fx.map_arg((node.args, node.kwargs), self._new)
        return (node.target, _hashable(arguments))

    def _copy(self, node: fx.Node) -> fx.Node:
        return self._graph.node_copy(node, self._new)

    def _new(self, node: fx.Node) -> fx.Node:
        """Return the node of the new graph, which of a constant is made where it is first read."""
        if node not in self._nodes:
            value = self._constants[node].detach()
            identity = _identity(value)
            if identity not in self._by_identity:
                attribute = f"constant_{len(self._by_identity)}"
                self._root.register_buffer(attribute, value.contiguous())
                self._names[attribute] = self._labels[node] or attribute
                first = next(iter(self._graph.nodes), None)
                with self._graph.inserting_before(first) if first is not None else self._graph.inserting_after():
                    self._by_identity[identity] = self._graph.get_attr(attribute)
            self._nodes[node] = self._by_identity[identity]
        return self._nodes[node]


def _turns_weights_of_product(node: fx.Node) -> bool:
    # ONNX's Gemm transposes on the way, so that the weight is stored once for the product and its gradient.
    return node.target is aten.t.default and all(user.target is aten.addmm.default for user in node.users)


def _has_known_size(node: fx.Node) -> bool:
    return all(isinstance(size, int) for size in node.meta["val"].shape)


def _identity(tensor: Tensor) -> Any:
    if not isinstance(tensor, Tensor) or not tensor.numel():
        return id(tensor)
    return (tensor.data_ptr(), tensor.dtype, tuple(tensor.shape), tensor.stride())


def _hashable(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return tuple(_hashable(item) for item in value)
    if isinstance(value, dict):
        return tuple((key, _hashable(item)) for key, item in sorted(value.items()))
    # 1, 1.0 and True are equal but do not mean the same.
    return (type(value), value)


def _short_name(node: fx.Node) -> str:
    packet: Callable[..., Any] | None = getattr(node.target, "overloadpacket", None)
    return getattr(packet, "__name__", getattr(node.target, "__name__", "constant"))
