"""From image bytes to pixels: the picture that a photo viewer shows, or an error that names what is wrong."""

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from io import BytesIO
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from pathlens.errors import InvalidRequestError, PathlensError
from pathlens.image_header import check_picture_size, picture_size

ACCEPTED_FORMATS = "JPEG, PNG and WebP"

# Pillow opens a JPEG of several pictures (MPO) through "JPEG"; it has no opener of the name "MPO".
_PILLOW_FORMATS = ("JPEG", "PNG", "WEBP")

# An honest JPEG has a few of these, its thumbnails included. Each costs a pass over the picture (scans) or a copy of
# all EXIF data before it, so that a small file of very many would keep a worker busy for hours.
_COSTLY_MARKERS = (b"\xff\xda", b"Exif\x00\x00")
_MAX_COSTLY_MARKERS = 100
# The largest picture may have this many scans, smaller ones more. Encoders make up to about 12, and a pass over 50
# million pixels takes up to 0.06 s.
_MAX_FULL_PASSES = 20

# What Pillow refuses is named by the bytes that its files carry at an offset.
_Signatures = dict[str, tuple[int, bytes | tuple[bytes, ...]]]
_SIGNATURES: _Signatures = {"JPEG": (0, b"\xff\xd8\xff"), "PNG": (0, b"\x89PNG\r\n\x1a\n"), "WebP": (8, b"WEBP")}
_OTHER_SIGNATURES: _Signatures = {
    "GIF": (0, b"GIF8"),
    "BMP": (0, b"BM"),
    "TIFF": (0, (b"II*\x00", b"MM\x00*")),
    "AVIF": (4, b"ftypavi"),
    "HEIC": (4, (b"ftyphe", b"ftypmif1")),
    "JPEG 2000": (4, b"jP  "),
    "JPEG XL": (4, b"JXL "),
    "PDF": (0, b"%PDF-"),
}


@dataclass(frozen=True)
class DecodingLimits:
    """What is decoded at most.

    Attributes:
        max_pixels: Width × height.
        seconds: Time of the processor that reading one file may take. It is looked at between reads of the file: a
            WebP is one read, and what follows the last one is not broken off.
    """

    max_pixels: int = 50_000_000
    seconds: float = 5.0


_DEFAULT_LIMITS = DecodingLimits()
_Decoded = TypeVar("_Decoded")


class _TimedFile(BytesIO):
    """A file whose reads end when the time is up: Pillow reads piece by piece, and works between the reads."""

    def __init__(self, data: bytes, limits: DecodingLimits, before_read: Callable[[], None] | None) -> None:
        super().__init__(data)
        self._seconds = limits.seconds
        # Of this thread alone: a busy machine does not make a file slower than it is.
        self._end = time.thread_time() + limits.seconds
        self._before_read = before_read

    def read(self, size: int | None = -1, /) -> bytes:
        if time.thread_time() > self._end:
            raise InvalidRequestError(
                f"The image took more than {self._seconds:g} s to decode; save it again without metadata, or reduce "
                "it.",
                reason="IMAGE_TOO_SLOW",
                field="image",
                metadata={"limit": f"{self._seconds:g}"},
            )
        if self._before_read is not None:
            self._before_read()
        return super().read(size)


def decode_image(
    data: bytes, limits: DecodingLimits = _DEFAULT_LIMITS, before_read: Callable[[], None] | None = None
) -> NDArray[np.uint8]:
    """Decode an image file into pixels, as `decode_picture` does.

    Returns:
        uint8 [H, W, 3], RGB in [0, 255]; writable and contiguous.
    """
    return _decode(data, limits, before_read, np.array)


def decode_picture(
    data: bytes, limits: DecodingLimits = _DEFAULT_LIMITS, before_read: Callable[[], None] | None = None
) -> Image.Image:
    """Decode a JPEG, PNG or WebP file into the picture that a photo viewer shows.

    EXIF orientation is applied, transparency is laid over white, grey, palette and CMYK become RGB, of 16-bit samples
    the high byte counts, and of an animation the first frame. ICC profiles are not applied, because classifiers are
    trained without. Pillow warns of odd metadata through `warnings`; the picture is decoded all the same.

    Args:
        data: The file's bytes.
        limits: The largest picture that is decoded, and how long it may take.
        before_read: Called before each piece of the file; a `PathlensError` that it raises ends the decoding.

    Returns:
        A picture in RGB.

    Raises:
        InvalidRequestError: IMAGE_EMPTY without bytes; IMAGE_TOO_LARGE above the limit, before any pixel is decoded;
            IMAGE_TOO_COMPLEX for a file made to take long; IMAGE_TOO_SLOW for one that took too long all the same;
            IMAGE_UNDECODABLE for another format and for a truncated or damaged file.
    """
    return _decode(data, limits, before_read, lambda picture: picture)


def _decode(
    data: bytes,
    limits: DecodingLimits,
    before_read: Callable[[], None] | None,
    convert: Callable[[Image.Image], _Decoded],
) -> _Decoded:
    if not data:
        raise InvalidRequestError("The image is empty: it has no bytes.", reason="IMAGE_EMPTY", field="image")
    # Before Pillow looks at the file, which takes the memory of a WebP's whole canvas to open it.
    if (size := picture_size(data)) is not None:
        check_picture_size(size, limits.max_pixels)
    if data.startswith(b"\xff\xd8"):
        _check_jpeg(data, size or (0, 0), limits)
    try:
        with Image.open(_TimedFile(data, limits, before_read), formats=_PILLOW_FORMATS) as image:
            check_picture_size(image.size, limits.max_pixels)
            image.load()
            _turn_upright(image)
            return convert(_to_rgb(image))
    except PathlensError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        # Pillow's own limit is above ours; it looks first.
        raise InvalidRequestError(
            f"The image has more than {limits.max_pixels} pixels; send a smaller one.",
            reason="IMAGE_TOO_LARGE",
            field="image",
            metadata={"max_pixels": limits.max_pixels},
        ) from error
    except Exception as error:
        # Pillow meets damage with OSError, SyntaxError, ValueError, EOFError, struct.error, MemoryError and others, and
        # documents no common base: whatever it raises here, it is the file that cannot be decoded.
        raise _undecodable(data, error) from error


def check_pixels(pixels: NDArray[np.uint8], limits: DecodingLimits = _DEFAULT_LIMITS) -> NDArray[np.uint8]:
    """Check an image that came as a tensor, and turn grey into RGB.

    Args:
        pixels: uint8 [H, W, 3] (RGB) or [H, W] (grey), values in [0, 255].
        limits: The largest picture that is accepted.

    Returns:
        uint8 [H, W, 3], contiguous.

    Raises:
        InvalidRequestError: TENSOR_INVALID for another dtype or shape or a side of 0; IMAGE_TOO_LARGE above the limit.
    """
    is_image = pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[2] == 3)
    if pixels.dtype != np.uint8 or not is_image or pixels.size == 0:
        shape = str(list(pixels.shape))
        raise InvalidRequestError(
            f"The image tensor is {pixels.dtype.name} {shape}; send uint8 [H, W, 3] (RGB) or uint8 [H, W] (grey) with "
            "at least one pixel.",
            reason="TENSOR_INVALID",
            field="image",
            metadata={"dtype": pixels.dtype.name, "shape": shape},
        )
    height, width = pixels.shape[:2]
    check_picture_size((width, height), limits.max_pixels)
    if pixels.ndim == 2:
        pixels = np.repeat(pixels[:, :, None], 3, axis=2)
    return np.ascontiguousarray(pixels)


def _check_jpeg(data: bytes, size: tuple[int, int], limits: DecodingLimits) -> None:
    width, height = size
    scans, exif_segments = map(data.count, _COSTLY_MARKERS)
    if max(scans, exif_segments) > _MAX_COSTLY_MARKERS:
        raise InvalidRequestError(
            f"The JPEG has more than {_MAX_COSTLY_MARKERS} scans or EXIF segments; save it again as a plain JPEG.",
            reason="IMAGE_TOO_COMPLEX",
            field="image",
            metadata={"limit": _MAX_COSTLY_MARKERS},
        )
    if width * height * scans > _MAX_FULL_PASSES * limits.max_pixels:
        raise InvalidRequestError(
            f"The JPEG has {scans} scans of {width} x {height} pixels; save it again as a plain JPEG.",
            reason="IMAGE_TOO_COMPLEX",
            field="image",
            metadata={"scans": scans, "width": width, "height": height},
        )


def _turn_upright(image: Image.Image) -> None:
    # Damaged EXIF must not refuse a sound picture. In place, the picture is turned before Pillow rewrites the EXIF
    # block, so that a block which states its orientation and is damaged elsewhere still counts.
    with suppress(Exception):
        ImageOps.exif_transpose(image, in_place=True)


def _to_rgb(image: Image.Image) -> Image.Image:
    """Return the picture in RGB with transparency laid over white."""
    if image.mode.startswith("I"):
        # 16-bit grey, which Pillow's own conversion clips at 255. The high byte is what it takes of 16-bit colour.
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        picture = image.convert("RGBA")
        white = Image.new("RGB", picture.size, "white")
        white.paste(picture, mask=picture)
        return white
    return image if image.mode == "RGB" else image.convert("RGB")


def _undecodable(data: bytes, error: Exception) -> InvalidRequestError:
    if name := _format_name(data, _SIGNATURES):
        fault = "truncated, damaged or of an unsupported variant"
        if isinstance(error, OSError) and "truncated" in str(error).lower():
            fault = "truncated: it ends before its picture does"
        message = f"The {name} file is {fault}."
    elif name := _format_name(data, _OTHER_SIGNATURES):
        message = f"The image is {name}; send one of {ACCEPTED_FORMATS}."
    else:
        message = f"The bytes are not an image of a known format; send one of {ACCEPTED_FORMATS}."
    metadata = {"format": name} if name else None
    return InvalidRequestError(message, reason="IMAGE_UNDECODABLE", field="image", metadata=metadata)


def _format_name(data: bytes, signatures: _Signatures) -> str:
    return next((name for name, (offset, magic) in signatures.items() if data.startswith(magic, offset)), "")
