"""Convolutions over one, two or three axes."""

import operator as python
from collections.abc import Sequence
from dataclasses import replace

from torch.nn import functional as F

from pathlens.onnx_import.operators.registry import Node, operator
from pathlens.onnx_import.operators.window import Window, pad_image, window_of
from pathlens.onnx_import.values import Inputs, Value, optional_tensor, required_tensor

_CONVOLUTIONS = (F.conv1d, F.conv2d, F.conv3d)
_TRANSPOSED = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)


@operator("Conv")
def convolution(node: Node, inputs: Inputs) -> Value:
    """Convolve, padding the image beforehand where torch cannot."""
    images, weight, bias = required_tensor(inputs, 0), required_tensor(inputs, 1), optional_tensor(inputs, 2)
    window = window_of(node, images, weight.shape[2:])
    padding = window.before
    if not window.is_symmetric:
        images, padding = pad_image(images, window.before, window.after), (0,) * window.axes
    function = _CONVOLUTIONS[window.axes - 1]
    groups = node.attributes.get("group", 1)
    return function(images, weight, bias, window.strides, padding, window.dilations, groups)


@operator("ConvTranspose")
def transposed_convolution(node: Node, inputs: Inputs) -> Value:
    """Convolve with fractional strides, cutting the result where torch cannot."""
    images, weight, bias = required_tensor(inputs, 0), required_tensor(inputs, 1), optional_tensor(inputs, 2)
    window = window_of(node, images, weight.shape[2:])
    more = tuple(node.attributes.get("output_padding", [0] * window.axes))
    window, more = _fit_output(node, window, more)
    padding = window.before if window.is_symmetric else (0,) * window.axes
    function = _TRANSPOSED[window.axes - 1]
    groups = node.attributes.get("group", 1)
    result = function(images, weight, bias, window.strides, padding, more, groups, window.dilations)
    if window.is_symmetric:
        return result
    return pad_image(result, [-pad for pad in window.before], [-pad for pad in window.after])


def _fit_output(node: Node, window: Window, more: Sequence[int]) -> tuple[Window, tuple[int, ...]]:
    """Choose the padding so that the output has the size the node asks for, if it asks for one."""
    automatic = node.attributes.get("auto_pad", "NOTSET")
    wanted = node.attributes.get("output_shape")
    if wanted is None and automatic not in ("SAME_UPPER", "SAME_LOWER"):
        return window, tuple(more)
    full = [
        (size - 1) * stride + extent + extra
        for size, stride, extent, extra in zip(window.sizes, window.strides, window.extents, more, strict=True)
    ]
    # output_shape may name the spatial axes alone or all of them.
    targets = wanted[-window.axes :] if wanted else map(python.mul, window.sizes, window.strides)
    total = [size - target for size, target in zip(full, targets, strict=True)]
    if wanted:
        more = [extra + max(-pad, 0) for extra, pad in zip(more, total, strict=True)]
    less = tuple(max(pad, 0) // 2 for pad in total)
    rest = tuple(max(pad, 0) - part for pad, part in zip(total, less, strict=True))
    before, after = (less, rest) if automatic == "SAME_UPPER" else (rest, less)
    return replace(window, before=before, after=after), tuple(more)
