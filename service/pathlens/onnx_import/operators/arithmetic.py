"""Arithmetic, comparisons and logic, element by element with broadcasting."""

import functools
import operator as python
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pathlens.errors import CaptureError
from pathlens.onnx_import.operators.registry import Implementation, Node, operator
from pathlens.onnx_import.values import (
    Inputs,
    Value,
    as_operand,
    as_tensor,
    first_tensor,
    is_known,
    is_symbolic,
    known,
    required,
    required_tensor,
)

OnArrays = Callable[..., Any]
OnTensors = Callable[..., Any]


def _unary(on_arrays: OnArrays, on_tensors: OnTensors) -> Implementation:
    def run(_node: Node, inputs: Inputs) -> Value:
        value = required(inputs, 0)
        return _on_arrays(on_arrays, value) if is_known(value) else on_tensors(value)

    return run


def _binary(on_arrays: OnArrays, on_tensors: OnTensors) -> Implementation:
    def run(_node: Node, inputs: Inputs) -> Value:
        return _combine(on_arrays, on_tensors, required(inputs, 0), required(inputs, 1))

    return run


def _variadic(on_arrays: OnArrays, on_tensors: OnTensors) -> Implementation:
    def run(_node: Node, inputs: Inputs) -> Value:
        values = [required(inputs, position) for position in range(len(inputs))]
        return functools.reduce(functools.partial(_combine, on_arrays, on_tensors), values)

    return run


def _combine(on_arrays: OnArrays, on_tensors: OnTensors, first: Value, second: Value) -> Value:
    like = first_tensor((first, second))
    if like is None:
        return _on_arrays(on_arrays, first, second)
    result: Tensor = on_tensors(as_operand(first, like), as_operand(second, like))
    return result


def _on_arrays(function: OnArrays, *values: Value) -> NDArray[Any]:
    try:
        # A division by zero has a result in ONNX, and says nothing.
        with np.errstate(all="ignore"):
            return known(function(*values))
    except TypeError as error:
        if not any(is_known(value) and is_symbolic(value) for value in values):
            raise
        raise CaptureError("computes something of the batch size that is no whole number") from error


operator("Neg")(_unary(np.negative, torch.neg))
operator("Abs")(_unary(np.abs, torch.abs))
operator("Sign")(_unary(np.sign, torch.sign))
operator("Floor")(_unary(np.floor, torch.floor))
operator("Ceil")(_unary(np.ceil, torch.ceil))
operator("Round")(_unary(np.rint, torch.round))
operator("Sqrt")(_unary(np.sqrt, torch.sqrt))
operator("Reciprocal")(_unary(np.reciprocal, torch.reciprocal))
operator("Exp")(_unary(np.exp, torch.exp))
operator("Log")(_unary(np.log, torch.log))
operator("Not")(_unary(np.logical_not, torch.logical_not))

operator("Add")(_binary(np.add, python.add))
operator("Sub")(_binary(np.subtract, python.sub))
operator("Mul")(_binary(np.multiply, python.mul))
operator("Sum")(_variadic(np.add, python.add))

operator("Equal")(_binary(np.equal, python.eq))
operator("Less")(_binary(np.less, python.lt))
operator("Greater")(_binary(np.greater, python.gt))
operator("LessOrEqual")(_binary(np.less_equal, python.le))
operator("GreaterOrEqual")(_binary(np.greater_equal, python.ge))
# Truth values combine bit by bit: `&` takes a tensor and a plain number in either order.
operator("And")(_binary(np.logical_and, python.and_))
operator("Or")(_binary(np.logical_or, python.or_))
operator("Xor")(_binary(np.logical_xor, python.xor))


@operator("Erf")
def erf(_node: Node, inputs: Inputs) -> Value:
    """Compute the error function."""
    return torch.erf(required_tensor(inputs, 0))


def _quotient_of_arrays(first: NDArray[Any], second: NDArray[Any]) -> Any:
    if np.issubdtype(first.dtype, np.floating):
        return first / second
    # ONNX rounds towards zero, numpy and Python down.
    negative = np.logical_xor(first < 0, second < 0)
    return np.where(negative, -(-first // second), first // second)


def _quotient_of_tensors(first: Any, second: Any) -> Tensor:
    tensor = first if isinstance(first, Tensor) else second
    if tensor.is_floating_point():
        quotient: Tensor = first / second
        return quotient
    return torch.div(
        first if isinstance(first, Tensor) else torch.full_like(second, first), second, rounding_mode="trunc"
    )


operator("Div")(_binary(_quotient_of_arrays, _quotient_of_tensors))


@operator("Mod")
def mod(node: Node, inputs: Inputs) -> Value:
    """Compute the remainder, with the sign of the dividend (fmod=1) or of the divisor."""
    as_in_c = node.attributes.get("fmod", 0)
    dividend, divisor = required(inputs, 0), required(inputs, 1)
    like = first_tensor(inputs)
    if like is None:
        return _on_arrays(np.fmod if as_in_c else np.mod, dividend, divisor)
    function = torch.fmod if as_in_c else torch.remainder
    return function(as_tensor(dividend, like), as_tensor(divisor, like))


@operator("Pow")
def power(_node: Node, inputs: Inputs) -> Value:
    """Raise to a power; the result has the type of the base."""
    base, exponent = required(inputs, 0), required(inputs, 1)
    like = first_tensor(inputs)
    if is_known(base) and is_known(exponent):
        return _on_arrays(np.power, base, exponent).astype(base.dtype)
    base = required_tensor(inputs, 0)
    result = torch.pow(base, as_operand(exponent, like if like is not None else base))
    return result if result.dtype == base.dtype else result.to(base.dtype)


def _largest(first: Any, second: Any) -> Tensor:
    tensor, other = (first, second) if isinstance(first, Tensor) else (second, first)
    # A maximum with a number is what a clamp is, and with 0 a ReLU.
    return torch.maximum(tensor, other) if isinstance(other, Tensor) else torch.clamp(tensor, min=other)


def _smallest(first: Any, second: Any) -> Tensor:
    tensor, other = (first, second) if isinstance(first, Tensor) else (second, first)
    return torch.minimum(tensor, other) if isinstance(other, Tensor) else torch.clamp(tensor, max=other)


operator("Max")(_variadic(np.maximum, _largest))
operator("Min")(_variadic(np.minimum, _smallest))


@operator("Mean")
def mean(_node: Node, inputs: Inputs) -> Value:
    """Average several values."""
    values = [required_tensor(inputs, position) for position in range(len(inputs))]
    total = functools.reduce(torch.add, values)
    return total / len(values)


@operator("Where")
def where(_node: Node, inputs: Inputs) -> Value:
    """Choose between two values, element by element."""
    condition, chosen, other = (required(inputs, position) for position in range(3))
    if is_known(condition) and is_known(chosen) and is_known(other):
        return _on_arrays(np.where, condition, chosen, other)
    return torch.where(required_tensor(inputs, 0), required_tensor(inputs, 1), required_tensor(inputs, 2))
