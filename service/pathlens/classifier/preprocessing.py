"""From pixels to the classifier's input, and from a map over that input back onto the image.

Both directions share one geometry: the rectangle of the image that the classifier sees.
"""

import math
from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass, fields
from enum import Enum
from typing import Self, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image


class Colour(Enum):
    """The colour channels of the classifier's input, in their order."""

    RGB = "rgb"
    BGR = "bgr"
    GREY = "grey"
    """One channel: the luma of ITU-R BT.601, 0.299 R + 0.587 G + 0.114 B."""


class Interpolation(Enum):
    """How pixels are resampled: Pillow's filters, which widen when they reduce (antialiasing); `NEAREST` does not."""

    NEAREST = "nearest"
    BOX = "box"
    BILINEAR = "bilinear"
    HAMMING = "hamming"
    BICUBIC = "bicubic"
    LANCZOS = "lanczos"

    @property
    def filter(self) -> Image.Resampling:
        """The filter in Pillow's terms."""
        return Image.Resampling[self.name]


Rectangle = tuple[float, float, float, float]
"""Left, top, right and bottom edge in pixels; the image's own is (0, 0, width, height)."""

_Choice = TypeVar("_Choice", bound=Enum)


@dataclass(frozen=True)
class Preprocessing:
    """How an image becomes the input of a classifier.

    Attributes:
        height: Height of the classifier's input.
        width: Width of the classifier's input.
        mean: Per colour channel in the classifier's own order, subtracted from values in [0, 1].
        std: Per colour channel, divided by after that; above 0.
        resize_shorter_side: None warps the whole image to (height, width). A number scales the image until its shorter
            side has that length and cuts (height, width) from the centre.
        interpolation: How pixels are resampled. An image that has the right size already is not resampled.
        colour: The channels and their order.

    Raises:
        ValueError: A value is impossible; the message names it and the remedy.
    """

    height: int
    width: int
    _: KW_ONLY
    mean: tuple[float, ...]
    std: tuple[float, ...]
    resize_shorter_side: int | None = None
    interpolation: Interpolation = Interpolation.BILINEAR
    colour: Colour = Colour.RGB

    def __post_init__(self) -> None:
        for name, size in (("height", self.height), ("width", self.width)):
            _check_size(name, size)
        if self.resize_shorter_side is not None:
            _check_size("resize_shorter_side", self.resize_shorter_side)
            if self.resize_shorter_side < max(self.height, self.width):
                raise ValueError(
                    f"resize_shorter_side is {self.resize_shorter_side}, too small to cut {self.height} x {self.width} "
                    f"from every image; set it to at least {max(self.height, self.width)}, or to None to warp."
                )
        for name, values in (("mean", self.mean), ("std", self.std)):
            if len(values) != self.channels or not all(math.isfinite(value) for value in values):
                raise ValueError(
                    f"{name} is {values}; give {self.channels} finite numbers for colour {self.colour.value}."
                )
        if min(self.std) <= 0:
            raise ValueError(f"std is {self.std}; every value must be above 0 (1 leaves a channel unscaled).")

    @property
    def channels(self) -> int:
        """Number of colour channels of the classifier's input."""
        return 1 if self.colour is Colour.GREY else 3

    def apply(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Turn an image into the classifier's input.

        Args:
            pixels: uint8 [H, W, 3], RGB in [0, 255].

        Returns:
            float32 [channels, height, width], contiguous: (pixels / 255 - mean) / std of the resampled image.

        Raises:
            ValueError: The pixels have another dtype or shape.
        """
        if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3 or pixels.size == 0:
            raise ValueError(f"pixels are {pixels.dtype} {list(pixels.shape)}; expected uint8 [H, W, 3]")
        return self.apply_to_picture(Image.fromarray(pixels))

    def apply_to_picture(self, picture: Image.Image) -> NDArray[np.float32]:
        """Turn a picture in RGB into the classifier's input, as `apply` does with its pixels, which takes longer."""
        image = picture.convert("L") if self.colour is Colour.GREY else picture
        seen = self.seen(image.height, image.width)
        resized = np.asarray(image.resize((self.width, self.height), self.interpolation.filter, box=seen))
        if self.colour is Colour.BGR:
            resized = resized[:, :, ::-1]
        channels_first = np.moveaxis(resized.reshape(self.height, self.width, self.channels), 2, 0)
        values = np.ascontiguousarray(channels_first, dtype=np.float32)
        values /= 255
        values -= np.array(self.mean, dtype=np.float32)[:, None, None]
        values /= np.array(self.std, dtype=np.float32)[:, None, None]
        return values

    def place(self, values: NDArray[np.float32], image_height: int, image_width: int) -> NDArray[np.float32]:
        """Lay a map over the classifier's input back onto the image that the input was made from.

        Args:
            values: float32 [height, width], finite.
            image_height: Height of the image, or of a reduced copy of it.
            image_width: Width of the same.

        Returns:
            float32 [image_height, image_width]: bilinear interpolation where the classifier looks, 0 elsewhere.

        Raises:
            ValueError: The map is not as large as the classifier's input.
        """
        if values.shape != (self.height, self.width):
            raise ValueError(f"values have shape {list(values.shape)}; expected {[self.height, self.width]}")
        left, top, right, bottom = self.seen(image_height, image_width)
        columns, rows = self.width / (right - left), self.height / (bottom - top)
        # All pixels of which the classifier sees a part. They may reach up to a pixel beyond what it sees, so the map
        # is continued by its edge values.
        first_column, last_column = math.floor(left), math.ceil(right)
        first_row, last_row = math.floor(top), math.ceil(bottom)
        margin = math.ceil(max(columns, rows))
        box = (
            margin + (first_column - left) * columns,
            margin + (first_row - top) * rows,
            margin + (last_column - left) * columns,
            margin + (last_row - top) * rows,
        )
        continued = Image.fromarray(np.pad(values.astype(np.float32, copy=False), margin, mode="edge"))
        size = (last_column - first_column, last_row - first_row)
        placed = np.zeros((image_height, image_width), dtype=np.float32)
        placed[first_row:last_row, first_column:last_column] = np.asarray(
            continued.resize(size, Image.Resampling.BILINEAR, box=box)
        )
        return placed

    def seen(self, image_height: int, image_width: int) -> Rectangle:
        """Return the rectangle of an image that the classifier sees."""
        if self.resize_shorter_side is None:
            return (0.0, 0.0, float(image_width), float(image_height))
        # Lengths and offsets are rounded as torchvision's Resize and CenterCrop do. The resized image itself is never
        # made: that of a 1 x 1,000,000 image would fill the memory.
        shorter = min(image_height, image_width)
        resized_height = self.resize_shorter_side * image_height // shorter
        resized_width = self.resize_shorter_side * image_width // shorter
        top = round((resized_height - self.height) / 2)
        left = round((resized_width - self.width) / 2)
        return (
            left * image_width / resized_width,
            top * image_height / resized_height,
            (left + self.width) * image_width / resized_width,
            (top + self.height) * image_height / resized_height,
        )

    def to_json(self) -> dict[str, object]:
        """Return a dict of JSON values from which `from_json` makes an equal object."""
        return {
            "height": self.height,
            "width": self.width,
            "mean": list(self.mean),
            "std": list(self.std),
            "resize_shorter_side": self.resize_shorter_side,
            "interpolation": self.interpolation.value,
            "colour": self.colour.value,
        }

    @classmethod
    def from_json(cls, values: Mapping[str, object]) -> Self:
        """Read what `to_json` wrote. `resize_shorter_side`, `interpolation` and `colour` may be left out.

        Raises:
            ValueError: A key is unknown or missing, or a value impossible; the message names it and the remedy.
        """
        known = {item.name for item in fields(cls)}
        unknown = sorted(set(values) - known)
        if unknown:
            raise ValueError(f"unknown preprocessing keys {unknown}; known are {sorted(known)}")
        missing = sorted({"height", "width", "mean", "std"} - set(values))
        if missing:
            raise ValueError(f"preprocessing keys {missing} are missing")
        shorter_side = values.get("resize_shorter_side")
        return cls(
            _integer("height", values["height"]),
            _integer("width", values["width"]),
            mean=_numbers("mean", values["mean"]),
            std=_numbers("std", values["std"]),
            resize_shorter_side=None if shorter_side is None else _integer("resize_shorter_side", shorter_side),
            interpolation=_choice("interpolation", values.get("interpolation", "bilinear"), Interpolation),
            colour=_choice("colour", values.get("colour", "rgb"), Colour),
        )


def _check_size(name: str, size: int) -> None:
    if size < 1:
        raise ValueError(f"{name} is {size}; it must be at least 1 pixel.")


def _integer(name: str, value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError(f"{name} is {value!r}; give a whole number of pixels.")
    return value


def _numbers(name: str, value: object) -> tuple[float, ...]:
    if not isinstance(value, list | tuple):
        raise ValueError(f"{name} is {value!r}; give a list with one number per channel.")
    if any(isinstance(number, bool) or not isinstance(number, int | float) for number in value):
        raise ValueError(f"{name} is {value!r}; every element must be a number.")
    return tuple(float(number) for number in value)


def _choice(name: str, value: object, choices: type[_Choice]) -> _Choice:
    for choice in choices:
        if choice.value == value:
            return choice
    raise ValueError(f"{name} is {value!r}; choose from {[choice.value for choice in choices]}.")
