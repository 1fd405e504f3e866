"""The values between ONNX nodes: tensors, and numpy arrays of what is known while the file is read.

Shapes and the arithmetic on them never become tensors, so that `torch.export` can follow them with a free batch. A
known array of sizes has dtype int64, or object where a `torch.SymInt` stands among the numbers.
"""

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import SymInt, Tensor
from typing_extensions import TypeIs

from pathlens.errors import CaptureError

Value = Tensor | NDArray[Any]
"""What an ONNX node takes or gives."""

Inputs = Sequence[Value | None]
"""What one node is given; None where an optional input is left out."""

Size = int | SymInt
"""One dimension of a shape."""


def is_known(value: Value | None) -> TypeIs[NDArray[Any]]:
    """Tell whether a value is an array that is known before the first image is seen."""
    return isinstance(value, np.ndarray)


def is_symbolic(array: NDArray[Any]) -> bool:
    """Tell whether a known array holds a symbolic size."""
    return array.dtype == object


def known(values: NDArray[Any] | np.generic | Size | Iterable[Size]) -> NDArray[Any]:
    """Make a known array of numbers and symbolic sizes.

    Args:
        values: One number, several in a row, or an array of any shape. A number may be one of numpy, which gives those
            instead of arrays without dimensions.

    Returns:
        An object array where a symbolic size is among the numbers, else int64 or the array's own type.
    """
    if isinstance(values, np.ndarray | np.generic):
        array = np.asarray(values)
    elif isinstance(values, int | SymInt):
        # numpy would ask a symbol for its value; an assignment does not.
        array = np.empty((), dtype=object)
        array[()] = values
    else:
        items = list(values)
        array = np.empty(len(items), dtype=object)
        for position, item in enumerate(items):
            array[position] = item
    symbolic = array.dtype == object and any(isinstance(item, SymInt) for item in array.flat)
    return array if array.dtype != object or symbolic else array.astype(np.int64)


def required(inputs: Inputs, position: int) -> Value:
    """Return an input that the operator cannot do without.

    Raises:
        CaptureError: If it is left out.
    """
    value = optional(inputs, position)
    if value is None:
        raise CaptureError(f"input {position} is left out; repair the file (onnx.checker.check_model names the fault)")
    return value


def optional(inputs: Inputs, position: int) -> Value | None:
    """Return an input, or None where it is left out."""
    return inputs[position] if position < len(inputs) else None


def required_tensor(inputs: Inputs, position: int) -> Tensor:
    """Return an input as a tensor, on the device of the node's other tensors.

    Raises:
        CaptureError: If it is left out or holds symbolic sizes.
    """
    return as_tensor(required(inputs, position), first_tensor(inputs))


def optional_tensor(inputs: Inputs, position: int) -> Tensor | None:
    """Return an input as a tensor, on the device of the node's other tensors; None where it is left out.

    Raises:
        CaptureError: If it holds symbolic sizes.
    """
    return None if optional(inputs, position) is None else required_tensor(inputs, position)


def first_tensor(inputs: Inputs) -> Tensor | None:
    """Return the first tensor among the inputs, or None where all of them are known."""
    return next((value for value in inputs if isinstance(value, Tensor)), None)


def as_tensor(value: Value, like: Tensor | None = None) -> Tensor:
    """Make a tensor of a value.

    Args:
        value: A tensor, which is returned as it is, or a known array.
        like: The result is put on the device of this tensor; None for the CPU.

    Raises:
        CaptureError: If the value holds symbolic sizes.
    """
    if isinstance(value, Tensor):
        return value
    if is_symbolic(value):
        raise CaptureError(
            "computes with the batch size as if it were a pixel; keep sizes apart from images in the model's forward"
        )
    tensor = torch.from_numpy(value.copy())
    # A move to where the tensor already is would still be a call in the captured program.
    return tensor if like is None or like.device == tensor.device else tensor.to(like.device)


def as_operand(value: Value, like: Tensor) -> Tensor | Any:
    """Make what torch can combine element by element with a tensor.

    A known array of one element becomes a plain number, possibly symbolic: this is what PyTorch code has there, and
    what tells a clamp between 0 and 6 from another one.

    Raises:
        CaptureError: If the value holds several sizes and one of them is symbolic.
    """
    if is_known(value) and value.size == 1 and value.ndim <= like.ndim:
        return as_number(value)
    return as_tensor(value, like)


def as_number(value: Value) -> Any:
    """Return the single number in a known array, possibly symbolic.

    Raises:
        CaptureError: If the value is computed from the image or is no single number.
    """
    array = _known_array(value)
    if array.size != 1:
        raise CaptureError(f"has an input of shape {list(array.shape)} where a single number is expected")
    return array.item()


def as_sizes(value: Value) -> list[Size]:
    """Return the sizes, positions or axes in a known array.

    Raises:
        CaptureError: If the value is computed from the image.
    """
    return list(_known_array(value).reshape(-1).tolist())


def as_integers(value: Value) -> list[int]:
    """Return the numbers in a known array where none may depend on the batch, such as axes and pads.

    Raises:
        CaptureError: If the value is computed from the image or holds a symbolic size.
    """
    array = _known_array(value)
    if is_symbolic(array):
        raise CaptureError("has an axis, pad or repetition that depends on the batch size; make it a constant")
    return [int(item) for item in array.reshape(-1)]


def product(sizes: Iterable[Size]) -> Size:
    """Multiply sizes, symbolic ones too."""
    return math.prod(sizes)


def _known_array(value: Value) -> NDArray[Any]:
    if not is_known(value):
        raise CaptureError(
            "takes a size, a position or a bound that is computed from the image; make it a constant, or compute it "
            "from shapes only"
        )
    return value
