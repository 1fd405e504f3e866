"""Pictures of a map at the size of the image that was sent."""

import numpy as np
from numpy.typing import NDArray

from pathlens.attribution.rendering import render_heatmap, render_overlay
from pathlens.classifier.preprocessing import Preprocessing
from pathlens.explanation import Reduction


def draw_heatmap(
    values: NDArray[np.float32], reduction: Reduction, preprocessing: Preprocessing, pixels: NDArray[np.uint8] | None
) -> bytes:
    """Draw a map as a PNG.

    Args:
        values: Map in the classifier's input, float32 [height, width], or [C, height, width] for `Reduction.NONE`.
        reduction: How the map was reduced.
        preprocessing: Tells where the classifier's input lies in the image.
        pixels: The image, uint8 [H, W, 3]; None draws at the size of the input.
    """
    single = _one_channel(values, reduction)
    if pixels is not None:
        single = preprocessing.place(single, *pixels.shape[:2])
    return render_heatmap(single, signed=reduction is not Reduction.MAGNITUDE_SUM)


def draw_overlay(
    values: NDArray[np.float32], reduction: Reduction, preprocessing: Preprocessing, pixels: NDArray[np.uint8]
) -> bytes:
    """Draw a map over its image as a PNG; arguments as for `draw_heatmap`."""
    placed = preprocessing.place(_one_channel(values, reduction), *pixels.shape[:2])
    return render_overlay(placed, pixels, signed=reduction is not Reduction.MAGNITUDE_SUM)


def _one_channel(values: NDArray[np.float32], reduction: Reduction) -> NDArray[np.float32]:
    if reduction is not Reduction.NONE:
        return values
    strongest = np.abs(values).argmax(0, keepdims=True)
    single: NDArray[np.float32] = np.take_along_axis(values, strongest, 0)[0]
    return single
