"""Resizing of images, as far as torch.nn.functional.interpolate can express what ONNX defines."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import SymInt
from torch.nn import functional as F

from pathlens.errors import CaptureError
from pathlens.onnx_import.operators.registry import Node, operator
from pathlens.onnx_import.values import (
    Inputs,
    Size,
    Value,
    as_sizes,
    is_known,
    optional,
    required_tensor,
)

_LINEAR = ("linear", "bilinear", "trilinear")
_COORDINATES = ("half_pixel", "pytorch_half_pixel", "align_corners", "asymmetric")
_ROUNDINGS: dict[str, Callable[[NDArray[Any]], NDArray[Any]]] = {
    "floor": np.floor,
    "ceil": np.ceil,
    "round_prefer_floor": lambda coordinates: np.ceil(coordinates - 0.5),
    "round_prefer_ceil": lambda coordinates: np.floor(coordinates + 0.5),
}
_NEAREST = {"nearest": ("asymmetric", "floor"), "nearest-exact": ("half_pixel", "round_prefer_ceil")}


@operator("Resize")
def resize(node: Node, inputs: Inputs) -> Value:
    """Resize feature maps to given sizes or by given scales."""
    images, mode = required_tensor(inputs, 0), node.attributes.get("mode", "nearest")
    coordinates = node.attributes.get("coordinate_transformation_mode", "half_pixel")
    if coordinates not in _COORDINATES:
        raise _refusal("coordinate_transformation_mode", coordinates)
    if node.attributes.get("keep_aspect_ratio_policy", "stretch") != "stretch":
        raise _refusal("keep_aspect_ratio_policy", node.attributes["keep_aspect_ratio_policy"])
    sizes = [int(size) for size in images.shape[2:]]
    targets, scales = _targets(node, inputs, images.shape, sizes)
    if targets == sizes and all(scale == 1 for scale in scales or []):
        return images
    if coordinates == "align_corners" and scales and targets != [n * s for n, s in zip(sizes, scales, strict=True)]:
        # ONNX aligns with the corner of a part of a pixel, torch and ONNX Runtime with that of the last whole one.
        raise _refusal("coordinate_transformation_mode", f"align_corners (from {sizes} by {scales})")
    if mode == "nearest":
        rounding = node.attributes.get("nearest_mode", "round_prefer_floor")
        mode = _nearest(coordinates, rounding, sizes, targets, scales)
        return F.interpolate(images, None if scales else targets, scales, mode)
    if coordinates == "asymmetric" or (coordinates == "pytorch_half_pixel" and 1 in targets):
        raise _refusal("coordinate_transformation_mode", f"{coordinates} (mode {mode}, to {targets})")
    for attribute in ("exclude_outside", "antialias"):
        if node.attributes.get(attribute, 0):
            raise _refusal(attribute, 1)
    if mode == "cubic" and (len(sizes) != 2 or node.attributes.get("cubic_coeff_a", -0.75) != -0.75):
        raise _refusal("cubic_coeff_a", f"{node.attributes.get('cubic_coeff_a', -0.75)} (over {len(sizes)} axes)")
    mode = "bicubic" if mode == "cubic" else _LINEAR[len(sizes) - 1]
    align = coordinates == "align_corners"
    return F.interpolate(images, None if scales else targets, scales, mode, align)


def _refusal(attribute: str, value: object) -> CaptureError:
    return CaptureError(
        f"has {attribute}={value}, which torch cannot express; resize with torch.nn.functional.interpolate in the model"
    )


def _targets(
    node: Node, inputs: Inputs, shape: Sequence[Size], sizes: list[int]
) -> tuple[list[int], list[float] | None]:
    """Return the wanted size of every spatial axis, and the scale of each where scales are given."""
    axes = [axis % len(shape) for axis in node.attributes.get("axes", range(len(shape)))]
    scales, wanted = optional(inputs, 2), optional(inputs, 3)
    if is_known(scales) and scales.size:
        factors = dict(zip(axes, map(float, scales.reshape(-1).tolist()), strict=True))
        if factors.get(0, 1.0) != 1 or factors.get(1, 1.0) != 1:
            raise _refusal("scales", list(factors.values()))
        spatial = [factors.get(axis, 1.0) for axis in range(2, len(shape))]
        return [int(np.floor(size * scale)) for size, scale in zip(sizes, spatial, strict=True)], spatial
    if wanted is None:
        raise CaptureError("has scales that are computed from the image; make them constants")
    given = dict(zip(axes, as_sizes(wanted), strict=True))
    for axis in (0, 1):
        size = given.get(axis, shape[axis])
        # What a symbolic size is may not be asked; the batch is never resized.
        if isinstance(size, int) and isinstance(shape[axis], int) and size != shape[axis]:
            raise _refusal("sizes", list(given.values()))
    targets = [given.get(axis, shape[axis]) for axis in range(2, len(shape))]
    if any(isinstance(target, SymInt) for target in targets):
        raise CaptureError("resizes to a size that depends on the batch size; make it a constant")
    return [int(target) for target in targets], None


def _nearest(coordinates: str, rounding: str, sizes: list[int], targets: list[int], scales: list[float] | None) -> str:
    """Return the mode of torch that takes the same positions as ONNX for these sizes."""
    factors = scales or [target / size for target, size in zip(targets, sizes, strict=True)]
    for mode, convention in _NEAREST.items():
        if all(
            np.array_equal(
                _positions(coordinates, rounding, size, target, factor), _positions(*convention, size, target, factor)
            )
            for size, target, factor in zip(sizes, targets, factors, strict=True)
        ):
            return mode
    raise _refusal("nearest_mode", f"{rounding} (coordinate_transformation_mode {coordinates}, {sizes} to {targets})")


def _positions(coordinates: str, rounding: str, size: int, target: int, scale: float) -> NDArray[Any]:
    """Return which position of an axis each position of the result takes."""
    index = np.arange(target)
    if coordinates == "align_corners":
        source = index * ((size - 1) / max(target - 1, 1))
    elif coordinates == "asymmetric":
        source = index / scale
    elif coordinates == "pytorch_half_pixel" and target == 1:
        source = np.zeros(1)
    else:
        source = (index + 0.5) / scale - 0.5
    taken: NDArray[Any] = np.clip(_ROUNDINGS[rounding](source), 0, size - 1)
    return taken
