"""Corrupted images in the manner of CIFAR-10-C (Hendrycks & Dietterich, ICLR 2019): the same kinds and severities."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import gaussian_filter

Pixels = NDArray[np.uint8]

SEVERITIES = (1, 3, 5)
"""The severities, of five, that are looked at."""


def corrupted(images: Pixels, name: str, severity: int) -> Pixels:
    """Corrupt images.

    Args:
        images: uint8 [N, H, W, 3].
        name: One of `CORRUPTIONS`.
        severity: From 1 to 5.
    """
    parameters, corrupt = CORRUPTIONS[name]
    draw = np.random.default_rng(0)
    values = [corrupt(image / 255, parameters[severity - 1], draw) for image in images]
    return (np.clip(np.stack(values), 0, 1) * 255).round().astype(np.uint8)


def _noise(image: NDArray[np.float64], deviation: float, draw: np.random.Generator) -> NDArray[np.float64]:
    return image + draw.normal(scale=deviation, size=image.shape)


def _blur(image: NDArray[np.float64], deviation: float, draw: np.random.Generator) -> NDArray[np.float64]:
    blurred: NDArray[np.float64] = gaussian_filter(image, (deviation, deviation, 0), mode="nearest")
    return blurred


def _contrast(image: NDArray[np.float64], share: float, draw: np.random.Generator) -> NDArray[np.float64]:
    mean: NDArray[np.float64] = image.mean(axis=(0, 1), keepdims=True)
    return (image - mean) * share + mean


def _pixelate(image: NDArray[np.float64], share: float, draw: np.random.Generator) -> NDArray[np.float64]:
    height, width = image.shape[:2]
    picture = Image.fromarray((image * 255).round().astype(np.uint8))
    small = picture.resize((int(width * share), int(height * share)), Image.Resampling.BOX)
    pixels: Pixels = np.asarray(small.resize((width, height), Image.Resampling.BOX))
    return pixels.astype(np.float64) / 255


Corruption = Callable[[NDArray[np.float64], float, np.random.Generator], NDArray[np.float64]]
CORRUPTIONS: dict[str, tuple[tuple[float, ...], Corruption]] = {
    "Gaussian noise": ((0.04, 0.06, 0.08, 0.09, 0.10), _noise),
    "Gaussian blur": ((0.4, 0.6, 0.7, 0.8, 1.0), _blur),
    "contrast": ((0.75, 0.5, 0.4, 0.3, 0.15), _contrast),
    "pixelate": ((0.95, 0.9, 0.85, 0.75, 0.65), _pixelate),
}
