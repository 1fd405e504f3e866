"""Convolutions of images whose channels come last in memory, by the fastest kernels that PyTorch has for the CPU.

With one thread, PyTorch computes 1×1 convolutions as matrix products between two changes of the layout, and the
gradient of a depthwise convolution takes twice as long as the convolution. oneDNN has a kernel for the first that needs
no other layout, and the second is a convolution itself: with the kernel turned round.
"""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

_LEAST_WORK = 2**19
"""Multiply-accumulates from which on this pays: with fewer, a call of Python costs more than the kernel saves."""

_DIMENSIONS = 4


def convolve(
    images: Tensor,
    kernel: Tensor,
    bias: Tensor | None = None,
    stride: Sequence[int] = (1, 1),
    padding: Sequence[int] = (0, 0),
    dilation: Sequence[int] = (1, 1),
    groups: int = 1,
) -> Tensor:
    """Compute what `aten.conv2d` computes, but for rounding.

    The gradient of the images is that of `aten.conv2d`, too, and can itself not be differentiated; the kernel and the
    bias get none.

    Args:
        images: [B, C, H, W] in any layout, on any device.
        kernel: Frozen, [O, C / groups, h, w].
        bias: Frozen, [O].
        stride: Along height and width, as all of the following.
        padding: Zeros at each margin.
        dilation: Distance of the kernel's elements.
        groups: Parts that are convolved apart from each other.

    Returns:
        [B, O, H', W'].
    """
    result: Tensor
    # Written so that one number for both directions, which PyTorch allows, is left to it.
    plain = (*stride, *dilation) == (1, 1, 1, 1) and len(padding) == images.ndim - 2 and _suits_onednn(images, kernel)
    if plain and (_is_pointwise(kernel, padding, groups) or _is_depthwise(images, kernel, padding, groups)):
        if torch.is_grad_enabled() and images.requires_grad:
            result = _Convolution.apply(images, kernel, bias, padding, groups)  # type: ignore[no-untyped-call]
            return result
        return _onednn(images, kernel, bias, padding, groups)
    result = torch.ops.aten.conv2d.default(images, kernel, bias, stride, padding, dilation, groups)
    return result


def _suits_onednn(images: Tensor, kernel: Tensor) -> bool:
    return (
        images.ndim == _DIMENSIONS
        and images.device.type == "cpu"
        and images.dtype is kernel.dtype is torch.float32
        and images.is_contiguous(memory_format=torch.channels_last)
        # One channel, or one position, is in both orders at once.
        and not images.is_contiguous()
        and images.numel() * len(kernel) * kernel[0, 0].numel() >= _LEAST_WORK
        and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    )


def _is_pointwise(kernel: Tensor, padding: Sequence[int], groups: int) -> bool:
    return groups == 1 and tuple(kernel.shape[2:]) == (1, 1) and not any(padding)


def _is_depthwise(images: Tensor, kernel: Tensor, padding: Sequence[int], groups: int) -> bool:
    height, width = kernel.shape[2:]
    return images.shape[1] == len(kernel) == groups and padding[0] < height and padding[1] < width


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(
        context: Any, images: Tensor, kernel: Tensor, bias: Tensor | None, padding: Sequence[int], groups: int
    ) -> Tensor:
        context.kernel, context.padding, context.groups = kernel, padding, groups
        return _onednn(images, kernel, bias, padding, groups)

    @staticmethod
    @once_differentiable
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        kernel: Tensor = context.kernel
        turned = kernel.flip(2, 3) if context.groups > 1 else kernel.transpose(0, 1)
        margins = [size - 1 - margin for size, margin in zip(kernel.shape[2:], context.padding, strict=True)]
        gradient = gradient.contiguous(memory_format=torch.channels_last)
        return _onednn(gradient, turned, None, margins, context.groups), None, None, None, None


def _onednn(images: Tensor, kernel: Tensor, bias: Tensor | None, padding: Sequence[int], groups: int) -> Tensor:
    result: Tensor = torch.ops.aten.mkldnn_convolution.default(images, kernel, bias, padding, (1, 1), (1, 1), groups)
    return result


FASTER: Mapping[str, Callable[..., Any]] = MappingProxyType({"aten.conv2d.default": convolve})
"""For `pathlens.classifier.program.build_graph`."""
