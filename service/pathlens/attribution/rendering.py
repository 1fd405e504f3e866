"""Pictures of a map: the heatmap alone, and the overlay over the image it explains.

Colours are perceptually uniform (Kovesi, arXiv 1509.03700; matplotlib's inferno): equal steps of the map look equally
large. Zero is dark and great magnitudes are bright in both scales, so that what speaks stands out from a dimmed
photograph and what is silent recedes. A signed map has its zero in the middle: red raises the target's logit when the
input value grows, blue lowers it, with equal lightness at equal magnitude.
"""

from functools import lru_cache
from io import BytesIO
from typing import TypeVar

import cmap
import numpy as np
from numpy.typing import NDArray
from PIL import Image

MAX_SIDE = 2048
"""Longest side of a picture in pixels; larger ones are reduced in proportion, because the PNG of a 50-megapixel
photograph would not fit into a message."""

SIGNED_COLOURS = "colorcet:CET_D4"
UNSIGNED_COLOURS = "matplotlib:inferno"

_ROBUST_PERCENTILE = 99.5
"""The magnitude that gets the strongest colour: above it lie a few hot pixels that would blank the rest."""

_HIGHEST_OPACITY = 0.9
_BRIGHTNESS = 0.55
_SATURATION = 0.25

_Value = TypeVar("_Value", np.uint8, np.float32)


def render_heatmap(values: NDArray[np.float32], signed: bool) -> bytes:
    """Draw a map.

    Args:
        values: float32 [H, W], finite; without sign, negative values count as 0.
        signed: Whether the sign means something; zero is then the middle of the colours.

    Returns:
        A PNG, RGB, of the map's size, its longest side reduced to `MAX_SIDE`. The same map gives the same bytes.

    Raises:
        ValueError: The map has another shape, or holds NaN or infinity.
    """
    strength = _strength(values, signed)
    return _encode(_colours(signed)[_colour_index(strength, signed)])


def render_overlay(values: NDArray[np.float32], pixels: NDArray[np.uint8], signed: bool) -> bytes:
    """Draw a map over its image, opaque where the map is strong and clear where it is silent.

    Args:
        values: float32 [H, W], finite; without sign, negative values count as 0.
        pixels: uint8 [H, W, 3], the image; it is dimmed and its colours are weakened.
        signed: Whether the sign means something.

    Returns:
        A PNG, RGB, of the image's size, its longest side reduced to `MAX_SIDE`. The same input gives the same bytes.

    Raises:
        ValueError: Map and image differ in size, or the map holds NaN or infinity.
    """
    if values.shape != pixels.shape[:2]:
        raise ValueError(
            f"the map is {list(values.shape)} and the image {list(pixels.shape)}; place the map on the image"
        )
    strength = _strength(values, signed)
    colours = _colours(signed)[_colour_index(strength, signed)].astype(np.float32)
    # The square root shows the many weak pixels of a gradient map, which is strong in few.
    opacity = _HIGHEST_OPACITY * np.sqrt(np.abs(strength))[:, :, None]
    backdrop = _dim(fit_within(pixels))
    return _encode((backdrop + opacity * (colours - backdrop)).round().astype(np.uint8))


def fit_within(array: NDArray[_Value], max_side: int = MAX_SIDE) -> NDArray[_Value]:
    """Reduce a picture in proportion until its longest side is at most `max_side`; a smaller one stays as it is.

    Args:
        array: float32 [H, W] or uint8 [H, W, 3].
        max_side: Pixels, at least 1.

    Returns:
        An array of the same kind, each value the mean of those it stands for.
    """
    height, width = array.shape[:2]
    longest = max(height, width)
    if longest <= max_side:
        return array
    size = (max(1, round(width * max_side / longest)), max(1, round(height * max_side / longest)))
    return np.asarray(Image.fromarray(array).resize(size, Image.Resampling.BOX), dtype=array.dtype)


def _strength(values: NDArray[np.float32], signed: bool) -> NDArray[np.float32]:
    """Return the map at the size of the picture, in [-1, 1] or, without sign, in [0, 1]."""
    if values.ndim != 2 or values.size == 0:
        raise ValueError(f"the map has shape {list(values.shape)}; expected [H, W]")
    if not np.isfinite(values).all():
        raise ValueError("the map holds NaN or infinity")
    fitted = fit_within(values)
    magnitudes = np.abs(fitted)
    # A map that is silent almost everywhere has the percentile 0.
    scale = np.percentile(magnitudes, _ROBUST_PERCENTILE) or magnitudes.max() or 1.0
    scale = np.float32(scale)
    strength: NDArray[np.float32] = np.clip(fitted, -scale if signed else np.float32(0), scale) / scale
    return strength


def _colour_index(strength: NDArray[np.float32], signed: bool) -> NDArray[np.intp]:
    return (127 + 127 * strength if signed else 255 * strength).round().astype(np.intp)


@lru_cache
def _colours(signed: bool) -> NDArray[np.uint8]:
    """Return the colours as uint8: [255, 3] with sign, so that zero has an entry of its own, otherwise [256, 3]."""
    table = cmap.Colormap(SIGNED_COLOURS if signed else UNSIGNED_COLOURS).lut(255 if signed else 256)
    colours = (table[:, :3] * 255).round().astype(np.uint8)
    colours.setflags(write=False)
    return colours


def _dim(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return the image dark and nearly grey, float32 [H, W, 3], so that it is told apart from the map's colours."""
    grey = np.asarray(Image.fromarray(pixels).convert("L"), dtype=np.float32)[:, :, None]
    dimmed: NDArray[np.float32] = np.float32(_BRIGHTNESS) * (grey + np.float32(_SATURATION) * (pixels - grey))
    return dimmed


def _encode(pixels: NDArray[np.uint8]) -> bytes:
    buffer = BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG", compress_level=4)
    return buffer.getvalue()
