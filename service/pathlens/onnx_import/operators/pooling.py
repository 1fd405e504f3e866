"""Pooling over windows and over whole images."""

import functools
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from pathlens.errors import CaptureError
from pathlens.onnx_import.operators.registry import Node, operator
from pathlens.onnx_import.operators.window import Window, pad_image, window_of
from pathlens.onnx_import.values import Inputs, Value, as_tensor, required_tensor

_MAXIMA = (F.max_pool1d, F.max_pool2d, F.max_pool3d)
_AVERAGES = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)
_CONVOLUTIONS = (F.conv1d, F.conv2d, F.conv3d)


@operator("MaxPool")
def max_pool(node: Node, inputs: Inputs) -> Value:
    """Take the largest value of each window."""
    if any(node.outputs[1:]):
        raise CaptureError(
            "also gives the positions of the maxima (output Indices), which are not supported; drop them"
        )
    images = required_tensor(inputs, 0)
    window, ceil_mode = _window(node, images)
    pool = _MAXIMA[window.axes - 1]
    if _torch_can_pad(window):
        return pool(images, window.kernel, window.strides, window.before, window.dilations, ceil_mode)
    padded = _pad_for_all_windows(images, window, ceil_mode, -np.inf)
    return pool(padded, window.kernel, window.strides, 0, window.dilations)


@operator("AveragePool")
def average_pool(node: Node, inputs: Inputs) -> Value:
    """Average each window, over the padding too with `count_include_pad`."""
    images = required_tensor(inputs, 0)
    window, ceil_mode = _window(node, images)
    count_padding = bool(node.attributes.get("count_include_pad", 0))
    # Over three axes, torch wants images as large as the window even where there is padding.
    if _torch_can_pad(window) and max(window.dilations) == 1 and window.axes < 3:
        pool = _AVERAGES[window.axes - 1]
        return pool(images, window.kernel, window.strides, window.before, ceil_mode, count_padding)
    counted = as_tensor(_counted_positions(window, ceil_mode, count_padding), images)
    return torch.div(_sum_of_windows(images, window, ceil_mode), counted)


@operator("LpPool")
def norm_pool(node: Node, inputs: Inputs) -> Value:
    """Take the p-norm of each window."""
    images, order = required_tensor(inputs, 0), node.attributes.get("p", 2)
    window, ceil_mode = _window(node, images)
    return torch.pow(_sum_of_windows(torch.pow(images.abs(), order), window, ceil_mode), 1 / order)


@operator("GlobalAveragePool")
def global_average_pool(_node: Node, inputs: Inputs) -> Value:
    """Average each feature map."""
    images = required_tensor(inputs, 0)
    return images.mean(_positions(images), keepdim=True)


@operator("GlobalMaxPool")
def global_max_pool(_node: Node, inputs: Inputs) -> Value:
    """Take the largest value of each feature map."""
    images = required_tensor(inputs, 0)
    return images.amax(_positions(images), keepdim=True)


@operator("GlobalLpPool")
def global_norm_pool(node: Node, inputs: Inputs) -> Value:
    """Take the p-norm of each feature map."""
    images = required_tensor(inputs, 0)
    norm: Tensor = torch.linalg.vector_norm(images, node.attributes.get("p", 2), _positions(images), keepdim=True)
    return norm


def _positions(images: Tensor) -> list[int]:
    return list(range(2, images.ndim))


def _window(node: Node, images: Tensor) -> tuple[Window, bool]:
    return window_of(node, images, node.attributes["kernel_shape"]), bool(node.attributes.get("ceil_mode", 0))


def _torch_can_pad(window: Window) -> bool:
    # torch pads both ends alike, and by half a window at most.
    return window.is_symmetric and all(2 * pad <= size for pad, size in zip(window.before, window.kernel, strict=True))


def _pad_for_all_windows(images: Tensor, window: Window, ceil_mode: bool, value: float) -> Tensor:
    after = [pad + more for pad, more in zip(window.after, window.missing(ceil_mode), strict=True)]
    return pad_image(images, window.before, after, value)


def _sum_of_windows(images: Tensor, window: Window, ceil_mode: bool) -> Tensor:
    padded = _pad_for_all_windows(images, window, ceil_mode, 0.0)
    channels = int(images.shape[1])
    ones = torch.ones(channels, 1, *window.kernel, dtype=images.dtype, device=images.device)
    return _CONVOLUTIONS[window.axes - 1](padded, ones, None, window.strides, 0, window.dilations, channels)


def _counted_positions(window: Window, ceil_mode: bool, count_padding: bool) -> NDArray[Any]:
    """Return how many positions each window averages, [outputs...]: the product of the numbers along each axis."""
    counts = []
    for axis, outputs in enumerate(window.output_sizes(ceil_mode)):
        starts = np.arange(outputs) * window.strides[axis] - window.before[axis]
        positions = starts[:, None] + np.arange(window.kernel[axis]) * window.dilations[axis]
        low = -window.before[axis] if count_padding else 0
        high = window.sizes[axis] + (window.after[axis] if count_padding else 0)
        counts.append(((positions >= low) & (positions < high)).sum(axis=1))
    # A window may see nothing at all; its sum is 0 then, and so is its average.
    return np.asarray(np.maximum(functools.reduce(np.multiply.outer, counts), 1), dtype=np.float32)
