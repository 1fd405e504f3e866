"""Which function computes which ONNX operator."""

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from pathlens.errors import CaptureError
from pathlens.onnx_import.values import Inputs, Value

NEWEST_OPSET = 21
"""The newest opset whose operators were checked against ONNX's own test cases."""


@dataclass(frozen=True)
class Node:
    """One node of an ONNX graph.

    Attributes:
        name: As in the file.
        operator: Such as "Conv".
        domain: Empty for ONNX's own operators.
        opset: Version of the operator set that the file imports for this domain.
        inputs: Names of the values it takes; empty where an optional one is left out.
        outputs: Names of the values it gives; empty where nothing uses an optional one.
        attributes: Integers, floats, strings, tuples of them, and numpy arrays.
    """

    name: str
    operator: str
    domain: str
    opset: int
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Any]

    @property
    def place(self) -> str:
        """What a message calls this node."""
        domain = f"{self.domain}." if self.domain else ""
        return f"operator {domain}{self.operator} of opset {self.opset} in node {self.name!r}"


Implementation = Callable[[Node, Inputs], Value | tuple[Value, ...]]
"""Computes a node's outputs, as many as the node names, from its inputs.

Raises CaptureError for a form that cannot be read; `implementation_of` adds the node to the message.
"""

_implementations: dict[str, Implementation] = {}


def operator(*names: str) -> Callable[[Implementation], Implementation]:
    """Register a function for operators of ONNX's own domain."""

    def register(implementation: Implementation) -> Implementation:
        for name in names:
            if name in _implementations:
                raise ValueError(f"the operator {name} is registered twice")
            _implementations[name] = implementation
        return implementation

    return register


def supported_operators() -> frozenset[str]:
    """Return the names of all operators that can be read."""
    return frozenset(_implementations)


def implementation_of(node: Node) -> Implementation:
    """Return the function that computes a node.

    Raises:
        CaptureError: If there is none. What is returned raises it for a form of the operator that cannot be read.
    """
    implementation = None if node.domain not in ("", "ai.onnx") else _implementations.get(node.operator)
    if implementation is None:
        raise CaptureError(
            f"The classifier uses the {node.place}, which pathlens cannot read. Replace it in the model by standard "
            "operators, or give the classifier as a .pt2 archive or a Python factory."
        )
    return functools.partial(_run, implementation)


def _run(implementation: Implementation, node: Node, inputs: Inputs) -> Value | tuple[Value, ...]:
    try:
        return implementation(node, inputs)
    except CaptureError as error:
        raise CaptureError(f"The {node.place} {error.message}.") from error
