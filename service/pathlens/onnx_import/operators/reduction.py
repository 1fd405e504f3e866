"""Reductions along axes; the axes are an attribute up to opset 17 (ReduceSum: 12) and an input from then on."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pathlens.onnx_import.operators.registry import Node, operator
from pathlens.onnx_import.values import (
    Inputs,
    Value,
    as_integers,
    as_tensor,
    is_known,
    known,
    optional,
    required,
    required_tensor,
)

OnTensor = Callable[[Tensor, list[int], bool], Tensor]


def _register(name: str, on_tensor: OnTensor, on_array: Callable[..., Any] | None = None) -> None:
    @operator(name)
    def run(node: Node, inputs: Inputs) -> Value:
        value = required(inputs, 0)
        axes, keep = _axes(node, inputs, value.ndim), bool(node.attributes.get("keepdims", 1))
        if is_known(value) and on_array is not None:
            return known(on_array(value, axis=tuple(axes), keepdims=keep))
        return on_tensor(as_tensor(value), axes, keep)


def _axes(node: Node, inputs: Inputs, dimensions: int) -> list[int]:
    given: Sequence[int] | None = node.attributes.get("axes")
    if given is None:
        axes_input = optional(inputs, 1)
        given = None if axes_input is None else as_integers(axes_input)
    if given:
        return [axis % dimensions for axis in given]
    return [] if node.attributes.get("noop_with_empty_axes", 0) else list(range(dimensions))


def _sum(value: Tensor, axes: list[int], keep: bool) -> Tensor:
    # torch takes an empty list for all axes.
    return value.sum(axes, keepdim=keep, dtype=value.dtype) if axes else value


def _mean(value: Tensor, axes: list[int], keep: bool) -> Tensor:
    return value.mean(axes, keepdim=keep) if axes else value


def _largest(value: Tensor, axes: list[int], keep: bool) -> Tensor:
    return value.amax(axes, keepdim=keep) if axes else value


def _smallest(value: Tensor, axes: list[int], keep: bool) -> Tensor:
    return value.amin(axes, keepdim=keep) if axes else value


def _product(value: Tensor, axes: list[int], keep: bool) -> Tensor:
    for axis in sorted(axes, reverse=True):
        value = value.prod(axis, keepdim=keep, dtype=value.dtype)
    return value


def _absolute_sum(value: Tensor, axes: list[int], keep: bool) -> Tensor:
    return _sum(value.abs(), axes, keep)


def _sum_of_squares(value: Tensor, axes: list[int], keep: bool) -> Tensor:
    return _sum(value * value, axes, keep)


def _euclidean_norm(value: Tensor, axes: list[int], keep: bool) -> Tensor:
    # Its gradient at 0 is 0; that of a square root of a sum of squares is not a number.
    return torch.linalg.vector_norm(value, 2, axes, keep) if axes else value.abs()


def _logarithm_of_sum(value: Tensor, axes: list[int], keep: bool) -> Tensor:
    return _sum(value, axes, keep).log()


def _logarithm_of_exponentials(value: Tensor, axes: list[int], keep: bool) -> Tensor:
    return value.logsumexp(axes, keepdim=keep) if axes else value


_register("ReduceSum", _sum, np.sum)
_register("ReduceMean", _mean, np.mean)
_register("ReduceMax", _largest, np.max)
_register("ReduceMin", _smallest, np.min)
_register("ReduceProd", _product, np.prod)
_register("ReduceL1", _absolute_sum)
_register("ReduceL2", _euclidean_norm)
_register("ReduceSumSquare", _sum_of_squares)
_register("ReduceLogSum", _logarithm_of_sum)
_register("ReduceLogSumExp", _logarithm_of_exponentials)


@operator("ArgMax", "ArgMin")
def position_of_extreme(node: Node, inputs: Inputs) -> Value:
    """Find where the largest or smallest value along one axis is."""
    value, axis = required_tensor(inputs, 0), node.attributes.get("axis", 0)
    keep, function = (
        bool(node.attributes.get("keepdims", 1)),
        torch.argmax if node.operator == "ArgMax" else torch.argmin,
    )
    if node.attributes.get("select_last_index", 0):
        return torch.rsub(function(value.flip(axis), axis, keepdim=keep), value.shape[axis] - 1)
    return function(value, axis, keepdim=keep)
