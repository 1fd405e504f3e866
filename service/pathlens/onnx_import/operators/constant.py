"""Constants, types, and values that pass unchanged."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import SymInt

from pathlens.errors import CaptureError
from pathlens.onnx_import.operators.registry import Node, operator
from pathlens.onnx_import.values import Inputs, Value, as_number, as_sizes, is_known, is_symbolic, required

_TYPES: dict[np.dtype[Any], torch.dtype] = {
    np.dtype(name): getattr(torch, name)
    for name in ("float32", "float64", "int8", "int16", "int32", "int64", "uint8", "bool")
}


@operator("Constant")
def constant(node: Node, _inputs: Inputs) -> Value:
    """Return the value that the node holds."""
    attributes = node.attributes
    for name, kind in (("value_float", np.float32), ("value_floats", np.float32)):
        if name in attributes:
            return np.asarray(attributes[name], dtype=kind)
    for name in ("value_int", "value_ints"):
        if name in attributes:
            return np.asarray(attributes[name], dtype=np.int64)
    if "value" in attributes:
        return np.asarray(attributes["value"])
    raise CaptureError(f"holds {', '.join(attributes) or 'nothing'}; expected numbers")


@operator("ConstantOfShape")
def constant_of_shape(node: Node, inputs: Inputs) -> Value:
    """Return a value in which every element is the same."""
    sizes = as_sizes(required(inputs, 0))
    element: NDArray[np.generic] = np.asarray(node.attributes.get("value", np.zeros(1, dtype=np.float32))).reshape(())
    if any(isinstance(size, SymInt) for size in sizes):
        return torch.full(sizes, element.item(), dtype=_TYPES[element.dtype])
    return np.full(sizes, element)


@operator("Range")
def count(_node: Node, inputs: Inputs) -> Value:
    """Count from a start to a limit."""
    arrays = [required(inputs, position) for position in range(3)]
    start, limit, step = map(as_number, arrays)
    if any(isinstance(number, SymInt) for number in (start, limit, step)):
        return torch.arange(start, limit, step)
    return np.arange(start, limit, step, dtype=arrays[0].dtype)  # type: ignore[arg-type]


@operator("Identity")
def identity(_node: Node, inputs: Inputs) -> Value:
    """Return the value itself."""
    return required(inputs, 0)


@operator("Cast")
def cast(node: Node, inputs: Inputs) -> Value:
    """Convert to another type."""
    # Not every installation has the package, and this module is also imported where no ONNX file is read.
    from onnx import helper

    return _convert(required(inputs, 0), helper.tensor_dtype_to_np_dtype(node.attributes["to"]))


@operator("CastLike")
def cast_like(_node: Node, inputs: Inputs) -> Value:
    """Convert to the type of another value."""
    value, like = required(inputs, 0), required(inputs, 1)
    if is_known(like):
        return _convert(value, np.dtype(np.int64) if is_symbolic(like) else like.dtype)
    names = {torch_type: numpy_type for numpy_type, torch_type in _TYPES.items()}
    return _convert(value, names[like.dtype])


def _convert(value: Value, wanted: np.dtype[Any]) -> Value:
    if wanted not in _TYPES:
        raise CaptureError(
            f"converts to {wanted}; give a classifier in float32, which is what explanations are made in"
        )
    if not is_known(value):
        return value if value.dtype == _TYPES[wanted] else value.to(_TYPES[wanted])
    if not is_symbolic(value):
        return value.astype(wanted)
    if np.issubdtype(wanted, np.integer):
        return value
    raise CaptureError(f"converts the batch size to {wanted}; keep sizes whole numbers in the model's forward")
