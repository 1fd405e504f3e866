"""Gradients of operators as operators that ONNX has.

The table serves a tracer: what it names is replaced by what the functions here call.
"""

# ruff: noqa: ARG001 - the functions take what the ATen operators take, used or not

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._decomp import core_aten_decompositions

from pathlens.onnx_export.separable import separable_gradients

aten = torch.ops.aten

Operator = torch._ops.OpOverload


def decompositions() -> dict[Operator, Callable[..., Any]]:
    """Return what stands in for the operators of gradients, by operator.

    Operators of the classifier itself stay as they are: ONNX has most of them, and where it has not, PyTorch's exporter
    knows what they are made of.
    """
    table = {
        operator: function
        for operator, function in core_aten_decompositions().items()  # type: ignore[no-untyped-call]
        if isinstance(operator, Operator) and "backward" in str(operator)
    }
    del table[aten.threshold_backward.default]
    return {
        **table,
        aten.convolution_backward.default: convolution_backward,
        aten.hardtanh_backward.default: hardtanh_backward,
        aten.slice_backward.default: slice_backward,
        aten.constant_pad_nd.default: pad,
        aten.clamp.default: _clamp,
        aten.rrelu_with_noise.default: _rrelu,
        aten.rrelu_with_noise_backward.default: _rrelu_backward,
        aten.view.default: _view,
        **separable_gradients(),
    }


def hardtanh_backward(grad: Tensor, values: Tensor, least: float, most: float) -> Tensor:
    """Compute the gradient from the output, which the forward pass has computed anyway and ends with in one kernel."""
    inside = aten.hardtanh(values, least, most)
    return grad * ((inside > least) & (inside < most)).to(grad.dtype)  # type: ignore[no-any-return]


def slice_backward(grad: Tensor, sizes: Sequence[int], dimension: int, start: int, end: int, step: int) -> Tensor:
    """Put zeros around and between what a slice has taken."""
    dimension %= grad.ndim
    size, taken = sizes[dimension], grad.shape[dimension]
    if dimension == 0:
        if isinstance(size, torch.SymInt) and start == 0 and step == 1:
            return grad.clone()
        return NotImplemented  # type: ignore[no-any-return]
    start = max(0, min(size, start + size if start < 0 else start))
    if step > 1:
        columns = grad.unsqueeze(dimension + 1)
        spread = pad(columns, [0, 0] * (grad.ndim - dimension - 1) + [0, step - 1], 0.0)
        grad = spread.flatten(dimension, dimension + 1)
    after = size - start - taken * step
    return pad(grad, [0, 0] * (grad.ndim - dimension - 1) + [start, after], 0.0) if start or after else grad.clone()


@torch.library.custom_op("pathlens::pad", mutates_args=())
def pad(values: Tensor, margins: Sequence[int], value: float = 0.0) -> Tensor:
    """Do what `aten.constant_pad_nd` does, whose own code would turn the free batch size into a number.

    Args:
        values: Of any shape.
        margins: Before and after, of the last dimension first; negative ones crop.
        value: Of the margins.
    """
    result: Tensor = aten.constant_pad_nd(values, margins, value)
    return result


@pad.register_fake
def _(values: Tensor, margins: Sequence[int], value: float = 0.0) -> Tensor:
    sizes = list(values.shape)
    for place in range(len(margins) // 2):
        sizes[-1 - place] = sizes[-1 - place] + margins[2 * place] + margins[2 * place + 1]
    return values.new_empty(sizes)


def _clamp(values: Tensor, least: float | None = None, most: float | None = None) -> Tensor:
    # Numbers of two types are more than PyTorch's exporter can take.
    if not values.is_floating_point() or not any(type(limit) is int for limit in (least, most)):
        return NotImplemented  # type: ignore[no-any-return]
    result: Tensor = aten.clamp(values, *(None if limit is None else float(limit) for limit in (least, most)))
    return result


def _rrelu(values: Tensor, noise: Tensor, lower: float = 1 / 8, upper: float = 1 / 3, *_: Any) -> Tensor:
    result: Tensor = aten.leaky_relu(values, (lower + upper) / 2)
    return result


def _rrelu_backward(
    grad: Tensor, values: Tensor, noise: Tensor, lower: float, upper: float, training: bool, is_result: bool
) -> Tensor:
    result: Tensor = aten.leaky_relu_backward(grad, values, (lower + upper) / 2, is_result)
    return result


def _view(values: Tensor, shape: Sequence[int]) -> Tensor:
    # Attention leaves another layout when it is made of plain operators; ONNX has no layouts, so that copies are free.
    if values.is_contiguous():
        return NotImplemented  # type: ignore[no-any-return]
    result: Tensor = aten.view(values.clone(memory_format=torch.contiguous_format), shape)
    return result


def convolution_backward(
    grad: Tensor,
    images: Tensor,
    weight: Tensor,
    bias_sizes: Sequence[int] | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
    output_padding: Sequence[int],
    groups: int,
    output_mask: Sequence[bool],
) -> tuple[Tensor | None, None, None]:
    """Compute the gradient of a convolution with respect to its input, by the arguments of the ATen operator.

    With stride 1 it is itself a convolution, with the kernel turned around. A kernel that is made of the images has a
    gradient, too, which is not written.
    """
    if output_mask[1] or output_mask[2]:
        return NotImplemented  # type: ignore[no-any-return]
    if not output_mask[0]:
        return None, None, None
    sizes = weight.shape[2:]
    if transposed:
        gradient = aten.convolution(grad, weight, None, stride, padding, dilation, False, [0] * len(sizes), groups)
        return gradient, None, None
    if all(step == 1 for step in stride):
        outputs = weight.shape[0] // groups
        inputs = weight.shape[1]
        turned = weight.reshape(groups, outputs, inputs, *sizes).transpose(1, 2)
        turned = turned.reshape(groups * inputs, outputs, *sizes).flip(list(range(2, 2 + len(sizes))))
        margins = [step * (size - 1) - pad for step, size, pad in zip(dilation, sizes, padding, strict=True)]
        if min(margins) >= 0:
            gradient = aten.convolution(grad, turned, None, stride, margins, dilation, False, [0] * len(sizes), groups)
            return gradient, None, None
    rest = [
        images.shape[2 + place]
        - ((grad.shape[2 + place] - 1) * stride[place] - 2 * padding[place] + dilation[place] * (sizes[place] - 1) + 1)
        for place in range(len(sizes))
    ]
    return aten.convolution(grad, weight, None, stride, padding, dilation, True, rest, groups), None, None
