"""How single ATen operators are written in ONNX where PyTorch's exporter has no way, or a slow one."""

# ruff: noqa: ARG001 - the functions take what the ATen operators take, used or not

from collections.abc import Callable, Sequence
from typing import Any

import torch

aten = torch.ops.aten

BOOL = 9
"""ONNX's number of the type."""


def lowerings() -> dict[Callable[..., Any], Callable[..., Any]]:
    """Return the functions that write operators, by operator.

    They are made on demand, because `onnxscript` belongs to an optional extra.
    """
    from onnxscript import opset18

    # Functions of it are called with numbers as well, whatever its types say.
    op: Any = opset18

    def threshold_backward(grad_output: Any, self: Any, threshold: float) -> Any:
        # What is not zero behind a ReLU is above it: two casts are cheaper than a comparison and a choice.
        if threshold == 0 and self.producer() is not None and self.producer().op_type == "Relu":
            return op.Mul(grad_output, op.CastLike(op.Cast(self, to=BOOL), grad_output))
        return op.Where(op.Greater(self, op.CastLike(threshold, self)), grad_output, op.CastLike(0.0, grad_output))

    def heaviside(self: Any, values: Any) -> Any:
        above = op.CastLike(op.Greater(self, op.CastLike(0.0, self)), self)
        if values.const_value is not None and not values.const_value.numpy().any():
            return above
        return op.Where(op.Equal(self, op.CastLike(0.0, self)), values, above)

    def max_pool(
        self: Any,
        kernel_size: Sequence[int],
        stride: Sequence[int] = (),
        padding: Sequence[int] = (0, 0),
        dilation: Sequence[int] = (1, 1),
        ceil_mode: bool = False,
    ) -> Any:
        return op.MaxPool(
            self,
            ceil_mode=int(ceil_mode),
            dilations=_pair(dilation),
            kernel_shape=_pair(kernel_size),
            pads=_pair(padding) * 2,
            strides=_pair(stride or kernel_size),
        )

    def max_pool_backward(
        grad_output: Any,
        self: Any,
        kernel_size: Sequence[int],
        stride: Sequence[int],
        padding: Sequence[int],
        dilation: Sequence[int],
        ceil_mode: bool,
        indices: Any,
    ) -> Any:
        flat = op.Constant(value_ints=[-1])
        shape = op.Shape(self)
        zeros = op.Reshape(op.Mul(self, op.CastLike(0.0, self)), flat)
        scattered = op.ScatterElements(
            zeros, op.Reshape(indices, flat), op.Reshape(grad_output, flat), axis=0, reduction="add"
        )
        return op.Reshape(scattered, shape)

    def pad_dimensions(values: Any, margins: Sequence[int], value: float = 0.0) -> Any:
        dimensions = len(values.shape)
        before, after = [0] * dimensions, [0] * dimensions
        for place in range(len(margins) // 2):
            before[-1 - place], after[-1 - place] = margins[2 * place], margins[2 * place + 1]
        return op.Pad(values, op.Constant(value_ints=before + after), op.CastLike(value, values))

    return {
        torch.ops.pathlens.pad.default: pad_dimensions,
        aten.heaviside.default: heaviside,
        aten.threshold_backward.default: threshold_backward,
        aten.max_pool2d_with_indices.default: max_pool,
        aten.max_pool2d_with_indices_backward.default: max_pool_backward,
    }


def _pair(value: Sequence[int] | int) -> list[int]:
    numbers = [value] if isinstance(value, int) else list(value)
    return numbers * 2 if len(numbers) == 1 else numbers
