"""A captured computation as plain data: a list of ATen calls that can be stored as JSON and rebuilt anywhere.

PyTorch's own archive (.pt2) may hold pickles and records the paths of the machine that made it; this form holds
operator names, numbers and references only. Rebuilding resolves names in the ATen namespace and nowhere else, so a
stored program cannot call anything but tensor operators.
"""

import json
import keyword
import math
import operator
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import cache
from types import MappingProxyType
from typing import Any, ClassVar

import torch
from pydantic import ConfigDict, TypeAdapter
from torch import Tensor, fx

from pathlens.classifier.taps import Tap, owning_module
from pathlens.errors import CaptureError

INPUT = "input"

_SCALAR_FUNCTIONS: dict[str, Callable[..., Any]] = {
    function.__name__: function
    for function in (
        *(operator.getitem, operator.add, operator.sub, operator.mul, operator.floordiv, operator.truediv),
        *(operator.mod, operator.neg, operator.pow, operator.eq, operator.ne, operator.lt, operator.le),
        *(operator.gt, operator.ge),
    )
}
_OF_FILES = frozenset({"from_file", "save"})
"""Operators that read or write files; tests look for others among all that PyTorch has."""
_CONSTANTS = {"dtype": torch.dtype, "layout": torch.layout, "memory_format": torch.memory_format}


_STRICT = ConfigDict(extra="forbid")


@dataclass(frozen=True)
class Call:
    """One operator call; arguments are JSON values as written by `_encode`."""

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    name: str
    function: str
    arguments: list[Any]
    keywords: dict[str, Any]


@dataclass(frozen=True)
class Program:
    """A functional computation from one image batch to logits.

    Attributes:
        input_shape: (channels, height, width).
        classes: Number of logits.
        calls: In order of execution.
        output: Name of the call whose result is the logits.
        taps: The activation calls, in order.
    """

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    input_shape: tuple[int, int, int]
    classes: int
    calls: tuple[Call, ...]
    output: str
    taps: tuple[Tap, ...]

    def to_json(self) -> str:
        """Serialise, with the same bytes for the same program."""
        return json.dumps(asdict(self), sort_keys=True, separators=(",", ":"), allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> "Program":
        """Parse what `to_json` wrote.

        Raises:
            CaptureError: If the text is not a program.
        """
        try:
            return _schema().validate_json(text, strict=True)
        except ValueError as error:
            raise CaptureError(f"This is not a stored program: {error}") from error


@cache
def _schema() -> TypeAdapter[Program]:
    return TypeAdapter(Program)


def encode_graph(graph: fx.Graph) -> tuple[list[Call], str, dict[str, str]]:
    """Turn a functional ATen graph with one input into calls.

    Returns:
        The calls, the name of the output, and the qualified name of every weight that is used.

    Raises:
        CaptureError: If the graph holds something that this form cannot express; the message names it.
    """
    names: dict[fx.Node, Any] = {}
    weights: dict[str, str] = {}
    calls: list[Call] = []
    output = ""
    for node in graph.nodes:
        if node.op == "placeholder":
            names[node] = {"call": INPUT}
        elif node.op == "get_attr":
            weights[str(node.target)] = str(node.target)
            names[node] = {"weight": str(node.target)}
        elif node.op == "call_function":
            names[node] = {"call": node.name}
            arguments = [_encode(value, names, node) for value in node.args]
            keywords = {key: _encode(value, names, node) for key, value in node.kwargs.items()}
            calls.append(Call(node.name, _function_name(node), arguments, keywords))
        elif node.op == "output":
            output = _single_output(node)
        else:
            raise CaptureError(
                f"The classifier calls {node.target!s} as a {node.op}, which cannot be captured. "
                "Replace it by tensor operations."
            )
    return calls, output, weights


def build_graph(
    program: Program, weights: Mapping[str, Tensor], faster: Mapping[str, Callable[..., Any]] = MappingProxyType({})
) -> fx.GraphModule:
    """Make the program executable as `module(images, edit)`.

    `edit(index, activation)` is called with the output of every tap, and what it returns takes the output's place; None
    leaves every tap alone. The hook is an argument and not a property, so that several threads may use one module.

    Args:
        program: The computation.
        weights: Its weights by qualified name.
        faster: What computes the same as operators of these names and is called in their place, without keywords.

    Raises:
        CaptureError: If the program is damaged, or calls anything but tensor operators.
    """
    root = torch.nn.Module()
    graph = fx.Graph()
    images = graph.placeholder("images")
    edit = graph.placeholder("edit")
    attributes: dict[str, fx.Node] = {}
    for number, name in enumerate(weights):
        root.register_buffer(f"weight_{number}", weights[name].detach(), persistent=False)
        attributes[name] = graph.get_attr(f"weight_{number}")
    values: dict[str, fx.Node] = {INPUT: images}
    taps = {tap.node: index for index, tap in enumerate(program.taps)}

    def decode(value: Any) -> Any:
        if isinstance(value, list):
            return [decode(item) for item in value]
        if not isinstance(value, dict):
            return value
        ((kind, content),) = value.items()
        if kind == "call":
            return values[content]
        if kind == "weight":
            return attributes[content]
        if kind == "float":
            return float(content)
        if kind == "device":
            return graph.call_function(getattr, (images, "device"))
        constant = getattr(torch, content)
        if not isinstance(constant, _CONSTANTS[kind]):
            raise TypeError(f"{content!r} is not a {kind}")
        return constant

    try:
        for call in program.calls:
            function = _resolve(call.function)
            _check_keywords(call, function)
            if not call.keywords:
                function = faster.get(call.function, function)
            keywords = {key: decode(value) for key, value in call.keywords.items()}
            node = graph.call_function(function, tuple(decode(item) for item in call.arguments), keywords)
            if call.name in taps:
                node = graph.call_function(edit_tap, (edit, taps[call.name], node))
            values[call.name] = node
        graph.output(values[program.output])
        if not taps.keys() <= values.keys():
            raise ValueError(f"no calls for the taps {sorted(taps.keys() - values.keys())}")
        return fx.GraphModule(root, graph)
    except (KeyError, IndexError, AttributeError, ValueError, TypeError) as error:
        raise CaptureError(f"The stored program is damaged: {error!r}.") from error


def edit_tap(edit: Callable[[int, Tensor], Tensor] | None, index: int, activation: Tensor) -> Tensor:
    """Let `edit` replace the output of a tap; stands behind every tap of a graph made by `build_graph`."""
    return activation if edit is None else edit(index, activation)


def references(value: Any, kind: str = "call") -> list[str]:
    """List the calls that an argument of a call refers to, as often as it does.

    Args:
        value: As in `Call.arguments`; a list or a dictionary of arguments, too.
        kind: "weight" lists the weights instead.
    """
    if isinstance(value, dict) and set(value) == {kind} and isinstance(value[kind], str):
        return [value[kind]]
    if isinstance(value, dict | list):
        items = value.values() if isinstance(value, dict) else value
        return [name for item in items for name in references(item, kind)]
    return []


def _encode(value: Any, names: Mapping[fx.Node, Any], node: fx.Node) -> Any:
    if isinstance(value, fx.Node):
        return names[value]
    if isinstance(value, list | tuple):
        return [_encode(item, names, node) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return {"float": str(value)}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, torch.device):
        return {"device": "of the input"}
    for kind, constant_type in _CONSTANTS.items():
        if isinstance(value, constant_type):
            return {kind: str(value).removeprefix("torch.")}
    raise CaptureError(
        f"The call {node.format_node()} has an argument of type {type(value).__name__}, which cannot be captured. "
        "Make it a plain number or a tensor of the classifier."
    )


def _function_name(node: fx.Node) -> str:
    if isinstance(node.target, torch._ops.OpOverload) and node.target.namespace == "aten":
        if node.target._schema.is_mutable:
            raise CaptureError(
                f"The classifier changes its own state in the call {node.format_node()}. Export it in evaluation mode, "
                "and let its forward update no buffer."
            )
        return str(node.target)
    name = getattr(node.target, "__name__", "")
    if _SCALAR_FUNCTIONS.get(name) is node.target:
        return f"operator.{name}"
    raise CaptureError(
        f"The classifier calls {node.target!s} in module {owning_module(node)!r}, which is not an ATen operator. "
        "Replace custom operators and control flow on tensor values by standard tensor operations."
    )


def _resolve(name: str) -> Callable[..., Any]:
    namespace, _, rest = name.partition(".")
    if namespace == "operator":
        return _SCALAR_FUNCTIONS[rest]
    if namespace != "aten" or rest.count(".") != 1:
        raise ValueError(f"{name!r} is not an ATen operator")
    packet, overload = rest.split(".")
    function = getattr(getattr(torch.ops.aten, packet), overload)
    # An operator that changes its arguments would change the weights.
    if not isinstance(function, torch._ops.OpOverload) or function._schema.is_mutable or packet in _OF_FILES:
        raise ValueError(f"{name!r} is not a function of tensors")
    return function


def _check_keywords(call: Call, function: Callable[..., Any]) -> None:
    """Check that a call names arguments of its operator alone.

    PyTorch writes these names as they are into the source that it makes of a graph and runs: any other text could be
    code.
    """
    schema = function._schema if isinstance(function, torch._ops.OpOverload) else None
    names = {argument.name for argument in schema.arguments} if schema is not None else set()
    if foreign := [name for name in call.keywords if name not in names or keyword.iskeyword(name)]:
        raise ValueError(f"{call.function!r} has no arguments named {foreign}")


def _single_output(node: fx.Node) -> str:
    (result,) = node.args
    if isinstance(result, list | tuple) and len(result) == 1:
        (result,) = result
    if not isinstance(result, fx.Node) or result.op != "call_function":
        raise CaptureError(
            "The classifier must return one tensor of logits [batch, classes]; wrap it in a module whose forward "
            "returns the logits alone."
        )
    return result.name
