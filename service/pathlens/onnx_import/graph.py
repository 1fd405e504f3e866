"""An ONNX graph as steps that torch can take, and what is known before the first image."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pathlens.errors import CaptureError
from pathlens.onnx_import.messages import first_line
from pathlens.onnx_import.operators import Node, implementation_of
from pathlens.onnx_import.scopes import module_paths
from pathlens.onnx_import.values import Value

if TYPE_CHECKING:
    import onnx

LARGEST_NUMBER_ARRAY = 8
"""A floating array of more elements is a weight; another one may be a bound, a factor or a scale."""

_TAKE_WEIGHTS = frozenset(
    {
        *("Conv", "ConvTranspose", "Gemm", "MatMul", "PRelu"),
        *("BatchNormalization", "GroupNormalization", "InstanceNormalization", "LayerNormalization"),
    }
)
"""Operators whose arrays are weights, however small."""

_SCOPES = "pkg.torch.onnx.name_scopes"


@dataclass(frozen=True)
class Step:
    """One computation.

    Attributes:
        node: The ONNX node, of whose inputs at least one depends on the images.
        module: Qualified name of the module that owns it.
        implementation: Computes its outputs.
    """

    node: Node
    module: str
    implementation: Callable[[Node, Sequence[Value | None]], Value | tuple[Value, ...]]

    def run(self, inputs: Sequence[Value | None]) -> tuple[Value, ...]:
        """Compute the outputs.

        Raises:
            CaptureError: If the node cannot take these inputs.
        """
        try:
            result = self.implementation(self.node, inputs)
        except CaptureError:
            raise
        except Exception as error:
            given = ", ".join(str(list(value.shape)) for value in inputs if value is not None)
            raise CaptureError(
                f"The {self.node.place} cannot compute with {given}: {first_line(error)}. If the "
                "classifier takes images of another size or other channels, give them by --size and --colour."
            ) from error
        return result if isinstance(result, tuple) else (result,)


@dataclass(frozen=True)
class Graph:
    """What an ONNX graph computes.

    Attributes:
        steps: In order of execution.
        constants: What is known, by the name of the value: tensors are weights, arrays are all else.
    """

    steps: tuple[Step, ...]
    constants: dict[str, Value]


def read_graph(model: "onnx.ModelProto") -> Graph:
    """Read the nodes of a model, its weights loaded; whatever does not depend on the images is computed now.

    Raises:
        CaptureError: If an operator or a constant cannot be read; the message names it.
    """
    weights = {name for proto in model.graph.node if proto.op_type in _TAKE_WEIGHTS for name in proto.input}
    constants = {
        tensor.name: _weight_or_number(_array(tensor), tensor.name in weights) for tensor in model.graph.initializer
    }
    opsets = {entry.domain: entry.version for entry in model.opset_import}
    protos = list(model.graph.node)
    scopes = [next((entry.value for entry in proto.metadata_props if entry.key == _SCOPES), "") for proto in protos]
    paths = module_paths([(proto.name, scope) for proto, scope in zip(protos, scopes, strict=True)], constants)
    nodes = [_node(proto, opsets) for proto in protos]
    # All of them first: an operator that cannot be read should show before any work.
    implementations = [implementation_of(node) for node in nodes]
    steps = []
    for step in map(Step, nodes, paths, implementations):
        inputs = [constants.get(name) for name in step.node.inputs]
        if any(name and value is None for name, value in zip(step.node.inputs, inputs, strict=True)):
            steps.append(step)
            continue
        with torch.no_grad():
            results = step.run(inputs)
        constants.update(
            (name, _weight_or_number(value, name in weights))
            for name, value in zip(step.node.outputs, results, strict=False)
            if name
        )
    used = {name for step in steps for name in step.node.inputs} | {value.name for value in model.graph.output}
    return Graph(tuple(steps), {name: value for name, value in constants.items() if name in used})


def _node(proto: "onnx.NodeProto", opsets: dict[str, int]) -> Node:
    domain = "" if proto.domain == "ai.onnx" else proto.domain
    opset = opsets.get(domain, opsets.get("ai.onnx", 1))
    attributes = {attribute.name: _attribute(attribute) for attribute in proto.attribute}
    # Older files may leave nodes without names; then the value that a node makes names it.
    name = proto.name or next(iter(proto.output), "")
    return Node(name, proto.op_type, domain, opset, tuple(proto.input), tuple(proto.output), attributes)


def _attribute(attribute: "onnx.AttributeProto") -> Any:
    import onnx

    value = onnx.helper.get_attribute_value(attribute)
    if isinstance(value, onnx.TensorProto):
        return _array(value)
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    if isinstance(value, int | float):
        return value
    if isinstance(value, onnx.GraphProto | onnx.SparseTensorProto | onnx.TypeProto):
        return value
    return tuple(item.decode(errors="replace") if isinstance(item, bytes) else item for item in value)


def _array(tensor: "onnx.TensorProto") -> NDArray[Any]:
    from onnx import numpy_helper

    try:
        return numpy_helper.to_array(tensor)
    except (ValueError, TypeError, OverflowError) as error:
        raise CaptureError(
            f"The weight {tensor.name!r} of the file cannot be read: {error}. Export it again."
        ) from error


def _weight_or_number(value: Value, is_weight: bool) -> Value:
    """Make weights tensors, and leave numbers arrays."""
    if isinstance(value, Tensor) or not np.issubdtype(value.dtype, np.floating):
        return value
    # The copy is writable and contiguous, which torch asks for.
    return torch.from_numpy(np.array(value)) if is_weight or value.size > LARGEST_NUMBER_ARRAY else value
