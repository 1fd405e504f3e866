"""Random pictures that a classifier tells apart, whatever their size."""

from io import BytesIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image

_COARSE = 9


def picture(rng: np.random.Generator, width: int, height: int) -> NDArray[np.uint8]:
    """Draw coloured squares under noise: the squares survive the way to the classifier's size, noise alone would not.

    Args:
        rng: Source of randomness.
        width: In pixels.
        height: In pixels.

    Returns:
        uint8 [height, width, 3].
    """
    squares = rng.integers(0, 256, (_COARSE, _COARSE, 3), dtype=np.uint8)
    large = np.asarray(Image.fromarray(squares).resize((width, height), Image.Resampling.NEAREST), dtype=np.int16)
    noise = rng.integers(-48, 49, large.shape, dtype=np.int16)
    pixels: NDArray[np.uint8] = np.clip(large + noise, 0, 255).astype(np.uint8)
    return pixels


def png(pixels: NDArray[np.uint8]) -> bytes:
    """Encode a picture as a PNG."""
    buffer = BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def jpeg(pixels: NDArray[np.uint8], quality: int = 90) -> bytes:
    """Encode a picture as a JPEG."""
    buffer = BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()
