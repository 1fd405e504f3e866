"""Single ONNX nodes for tests: computed by pathlens, by ONNX Runtime, and captured by `torch.export`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from pathlens.onnx_import.operators import Node, implementation_of
from pathlens.onnx_import.values import Value

Array = NDArray[Any]


@dataclass(frozen=True, eq=False)
class Single:
    """One node with values to compute with; the first input is the image, the others are stored in the file.

    It is valid in the given opsets; where none are given, in all those that ONNX's checker allows.
    """

    operator: str
    inputs: Sequence[Array | None]
    attributes: Mapping[str, Any]
    outputs: int = 1
    opsets: range | None = None

    @property
    def image(self) -> Array:
        assert self.inputs[0] is not None
        return self.inputs[0]

    def model(self, opset: int) -> onnx.ModelProto:
        names = ["" if value is None else f"input{number}" for number, value in enumerate(self.inputs)]
        outputs = [f"output{number}" for number in range(self.outputs)]
        proto = helper.make_node(self.operator, names, outputs, "the node", **self.attributes)
        given = [(name, value) for name, value in zip(names, self.inputs, strict=True) if value is not None]
        graph = helper.make_graph(
            [proto],
            "single",
            [helper.make_tensor_value_info(name, _element(value), value.shape) for name, value in given[:1]],
            [onnx.ValueInfoProto(name=name) for name in outputs],
            [numpy_helper.from_array(value, name) for name, value in given[1:]],
        )
        # Intermediate version 8 is known to every ONNX Runtime that knows opset 13.
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)

    def is_valid(self, opset: int) -> bool:
        if self.opsets is not None:
            return opset in self.opsets
        return is_valid(self.model(opset).graph.node[0], opset)

    def by_runtime(self, opset: int) -> list[Array]:
        options = onnxruntime.SessionOptions()
        options.log_severity_level, options.intra_op_num_threads = 4, 1
        session = onnxruntime.InferenceSession(
            self.model(opset).SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        first = {"input0": self.inputs[0]} if self.inputs and self.inputs[0] is not None else {}
        results: list[Array] = session.run(None, first)
        return results

    def by_pathlens(self, opset: int) -> list[Array]:
        node = node_of(self.model(opset).graph.node[0], opset)
        return arrays(compute(node, as_read(self.inputs)))


class SideBySide(nn.Module):
    """Several nodes, each in a module of its own and with an image of its own."""

    def __init__(self, singles: Sequence[Single], opset: int) -> None:
        super().__init__()
        self.networks = nn.ModuleList(_Network(single, opset) for single in singles)

    def forward(self, images: list[Tensor]) -> list[Tensor]:
        return [network(image) for network, image in zip(self.networks, images, strict=True)]


class _Network(nn.Module):
    def __init__(self, single: Single, opset: int) -> None:
        super().__init__()
        self.node = node_of(single.model(opset).graph.node[0], opset)
        self.others = as_read(single.inputs)[1:]
        for position, value in enumerate(self.others):
            if isinstance(value, Tensor):
                self.register_buffer(f"weight{position}", value)

    def forward(self, images: Tensor) -> Tensor:
        others = [getattr(self, f"weight{position}", value) for position, value in enumerate(self.others)]
        (result,) = compute(self.node, [images, *others])
        assert isinstance(result, Tensor)
        return result


def node_of(proto: onnx.NodeProto, opset: int) -> Node:
    attributes = {attribute.name: _attribute(attribute) for attribute in proto.attribute}
    return Node(proto.name, proto.op_type, proto.domain, opset, tuple(proto.input), tuple(proto.output), attributes)


def is_valid(proto: onnx.NodeProto, opset: int) -> bool:
    context = onnx.checker.C.CheckerContext()
    context.ir_version, context.opset_imports = 10, {"": opset}
    try:
        onnx.checker.check_node(proto, context)
    except onnx.checker.ValidationError:
        return False
    return True


def as_read(values: Sequence[Array | None]) -> list[Value | None]:
    """Make tensors of the image and of what would be weights: floats, and more than a few of them."""
    return [
        torch.from_numpy(value.copy())
        if value is not None and (number == 0 or (value.size > 8 and np.issubdtype(value.dtype, np.floating)))
        else value
        for number, value in enumerate(values)
    ]


def compute(node: Node, inputs: Sequence[Value | None]) -> tuple[Value, ...]:
    result = implementation_of(node)(node, inputs)
    return result if isinstance(result, tuple) else (result,)


def arrays(values: Sequence[Value]) -> list[Array]:
    return [value.numpy() if isinstance(value, Tensor) else value for value in values]


def normal(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def integers(*values: int) -> Array:
    return np.array(values, dtype=np.int64)


def floats(*values: float) -> Array:
    return np.array(values, dtype=np.float32)


def number(value: float) -> Array:
    return np.array(value, dtype=np.float32)


def _element(value: Array) -> int:
    return helper.np_dtype_to_tensor_dtype(value.dtype)


def _attribute(attribute: onnx.AttributeProto) -> Any:
    value = helper.get_attribute_value(attribute)
    if isinstance(value, TensorProto):
        return numpy_helper.to_array(value)
    if isinstance(value, bytes):
        return value.decode()
    return value if isinstance(value, int | float) else tuple(value)
