"""From image bytes to pixels: the picture that a photo viewer shows, or an error that names what is wrong.

The structure of a file is read here before Pillow sees it, and Pillow is handed the parts that make the picture and no
others. So the size is checked before anything is decoded, damaged metadata cannot refuse or change a sound picture, and
none of the warnings that Pillow gives about metadata can arise; silencing them would change the whole process.
"""

import re
import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from io import BytesIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.WebPImagePlugin import WebPImageFile

from pathlens.errors import InvalidRequestError

ACCEPTED_FORMATS = "JPEG, PNG and WebP"

_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_PNG_PICTURE_CHUNKS = frozenset({b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"})
_PNG_GREY, _PNG_COLOUR = 0, 2

# A marker that a length follows, or the end of the image. Decoders skip padding and stray bytes before it.
_JPEG_NEXT_SEGMENT = re.compile(rb"\xff[\x02-\xcf\xd9-\xfe]")
_JPEG_FRAME_HEADERS = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_JPEG_START_OF_SCAN, _JPEG_END_OF_IMAGE, _JPEG_EXIF, _JPEG_COMMENT = 0xDA, 0xD9, 0xE1, 0xFE
# JFIF and Adobe segments say which colour space the samples are in; the other application segments are metadata.
_JPEG_METADATA = frozenset({*range(0xE0, 0xF0), _JPEG_COMMENT}) - {0xE0, 0xEE}
# Every scan of a progressive JPEG passes over the whole picture, so a small file of many scans costs minutes to decode.
# An encoder that refines every coefficient of every colour bit by bit stays below this number.
_MAX_JPEG_SCANS = 200
# A file of empty segments or chunks costs seconds, too. libpng writes 8 KiB a chunk, 50,000 for the largest pictures.
_MAX_PARTS = 100_000

_EXIF_ORIENTATION, _EXIF_SHORT = 0x0112, 3

_OTHER_FORMATS = (
    (0, b"GIF8", "GIF"),
    (0, b"BM", "BMP"),
    (0, b"II*\x00", "TIFF"),
    (0, b"MM\x00*", "TIFF"),
    (4, b"ftypavi", "AVIF"),
    (4, b"ftyphe", "HEIC"),
    (4, b"ftypmif1", "HEIC"),
    (0, b"\x00\x00\x00\x0cjP  ", "JPEG 2000"),
    (0, b"\x00\x00\x00\x0cJXL ", "JPEG XL"),
    (0, b"%PDF-", "PDF"),
)


@dataclass(frozen=True)
class DecodingLimits:
    """What is decoded at most.

    Attributes:
        max_pixels: Width × height. Pillow itself refuses WebP of more than twice `PIL.Image.MAX_IMAGE_PIXELS` (179
            million pixels unless the application changes it); for JPEG and PNG this limit alone counts.
    """

    max_pixels: int = 50_000_000


_DEFAULT_LIMITS = DecodingLimits()


@dataclass(frozen=True)
class _Source:
    """A file as its structure describes it, before a pixel is decoded.

    Attributes:
        reader: Pillow's reader of the format, called directly: `Image.open` would apply Pillow's own size limit.
        size: Width and height in pixels.
        data: The file without its metadata.
        exif: The EXIF block, empty without one.
        colour_key: The one sample value (grey) or three (RGB) that mean "transparent", as Pillow's pixels express them.
    """

    reader: type[ImageFile]
    size: tuple[int, int]
    data: bytes
    exif: bytes = b""
    colour_key: tuple[int, ...] = ()


def decode_image(data: bytes, limits: DecodingLimits = _DEFAULT_LIMITS) -> NDArray[np.uint8]:
    """Decode a JPEG, PNG or WebP file into the picture that a photo viewer shows.

    EXIF orientation is applied, transparency is laid over white, grey, palette and CMYK become RGB, of 16-bit samples
    the high byte counts, and of an animation the first frame (in a PNG, the picture that it shows where animation is
    unknown). ICC profiles are not applied, because classifiers are trained without.

    Args:
        data: The file's bytes.
        limits: The largest picture that is decoded.

    Returns:
        uint8 [H, W, 3], RGB in [0, 255]; writable and contiguous.

    Raises:
        InvalidRequestError: IMAGE_EMPTY without bytes; IMAGE_TOO_LARGE above the limit, before any pixel is decoded;
            IMAGE_UNDECODABLE for another format and for a truncated or damaged file.
    """
    if not data:
        raise InvalidRequestError("The image is empty: it has no bytes.", reason="IMAGE_EMPTY", field="image")
    source = _read_structure(data, limits)
    try:
        with source.reader(BytesIO(source.data)) as image:
            if image.size == source.size:
                image.load()
                return _upright(_to_rgb(image, source.colour_key), image.info.get("exif", source.exif))
    except Image.DecompressionBombError as error:
        raise _too_large(source.size, 2 * (Image.MAX_IMAGE_PIXELS or 0)) from error
    except Exception as error:
        # Pillow meets damage with OSError, SyntaxError, ValueError, struct.error, MemoryError and others.
        raise _damaged(source) from error
    raise _damaged(source)


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
    _check_size((width, height), limits)
    if pixels.ndim == 2:
        pixels = np.repeat(pixels[:, :, None], 3, axis=2)
    return np.ascontiguousarray(pixels)


def _read_structure(data: bytes, limits: DecodingLimits) -> _Source:
    if data.startswith(b"\xff\xd8\xff"):
        return _read_jpeg(data, limits)
    if data.startswith(_PNG_SIGNATURE):
        return _read_png(data, limits)
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return _read_webp(data, limits)
    for offset, magic, name in _OTHER_FORMATS:
        if data.startswith(magic, offset):
            raise _undecodable(f"The image is {name}; send one of {ACCEPTED_FORMATS}.", {"format": name})
    raise _undecodable(f"The bytes are not an image of a known format; send one of {ACCEPTED_FORMATS}.")


def _read_jpeg(data: bytes, limits: DecodingLimits) -> _Source:
    kept = [data[:2]]
    size: tuple[int, int] | None = None
    exif = b""
    position = 2
    for _ in range(_MAX_PARTS):
        found = _JPEG_NEXT_SEGMENT.search(data, position)
        if found is None:
            raise _truncated("JPEG")
        position, marker = found.start(), found.group()[1]
        if marker in (_JPEG_START_OF_SCAN, _JPEG_END_OF_IMAGE):
            break
        length = int.from_bytes(data[position + 2 : position + 4], "big")
        segment = data[position : position + 2 + length]
        if len(segment) < max(4, 2 + length):
            raise _truncated("JPEG")
        if marker in _JPEG_FRAME_HEADERS and length >= 7:
            height, width = struct.unpack_from(">HH", segment, 5)
            size = (width, height)
            _check_size(size, limits)
        if marker == _JPEG_EXIF and segment[4:10] == b"Exif\0\0":
            exif = exif or segment[4:]
        if marker not in _JPEG_METADATA:
            kept.append(segment)
        position += len(segment)
    scans = data[position:]
    if size is None or marker != _JPEG_START_OF_SCAN or scans.count(b"\xff\xda") > _MAX_JPEG_SCANS:
        message = f"The JPEG file is damaged: it must hold a picture of at most {_MAX_JPEG_SCANS} scans."
        raise _undecodable(message, {"format": "JPEG", "max_scans": _MAX_JPEG_SCANS})
    return _Source(JpegImageFile, size, b"".join([*kept, scans]), exif)


def _read_png(data: bytes, limits: DecodingLimits) -> _Source:
    header = data[8:33]
    if len(header) < 25:
        raise _truncated("PNG")
    if not header.startswith(b"\x00\x00\x00\x0dIHDR"):
        raise _undecodable("The PNG file is damaged: it does not begin with its header.", {"format": "PNG"})
    width, height, depth, colour_type = struct.unpack_from(">IIBB", header, 8)
    _check_size((width, height), limits)

    # Without its animation chunks an animated PNG is the ordinary PNG that older viewers show.
    kept = [_PNG_SIGNATURE]
    position, exif = len(_PNG_SIGNATURE), b""
    colour_key: tuple[int, ...] = ()
    for _ in range(_MAX_PARTS):
        if position + 12 > len(data):
            raise _truncated("PNG")
        length, kind = struct.unpack_from(">I4s", data, position)
        end = position + 12 + length
        if end > len(data):
            raise _truncated("PNG")
        content = data[position + 8 : end - 4]
        if kind == b"eXIf":
            exif = content
        elif kind == b"tRNS" and colour_type in (_PNG_GREY, _PNG_COLOUR):
            colour_key = _png_colour_key(content, depth, colour_type)
        elif kind in _PNG_PICTURE_CHUNKS:
            # Pillow checks the chunks before the picture data, but not the picture data.
            if zlib.crc32(content, zlib.crc32(kind)) != int.from_bytes(data[end - 4 : end], "big"):
                raise _undecodable("The PNG file is damaged: a checksum is wrong.", {"format": "PNG"})
            kept.append(data[position:end])
        if kind == b"IEND":
            return _Source(PngImageFile, (width, height), b"".join(kept), exif, colour_key)
        position = end
    raise _undecodable(f"The PNG file is damaged: it has more than {_MAX_PARTS} chunks.", {"format": "PNG"})


def _png_colour_key(content: bytes, depth: int, colour_type: int) -> tuple[int, ...]:
    """Return the transparent colour as Pillow's pixels express it; Pillow itself leaves it at the file's bit depth."""
    count = 1 if colour_type == _PNG_GREY else 3
    if len(content) < 2 * count:
        return ()
    samples = struct.unpack_from(f">{count}H", content)
    if depth < 8:
        return tuple(sample * 255 // (2**depth - 1) for sample in samples)
    if depth == 16 and colour_type == _PNG_COLOUR:
        return tuple(sample >> 8 for sample in samples)
    return samples


def _read_webp(data: bytes, limits: DecodingLimits) -> _Source:
    # https://developers.google.com/speed/webp/docs/riff_container; the lossy key frame header is in RFC 6386, 9.1.
    if len(data) < max(16, 8 + int.from_bytes(data[4:8], "little")):
        raise _truncated("WebP")
    kind = data[12:16]
    if kind == b"VP8X":
        width = 1 + int.from_bytes(data[24:27], "little")
        height = 1 + int.from_bytes(data[27:30], "little")
    elif kind == b"VP8L":
        bits = int.from_bytes(data[21:25], "little")
        width, height = 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    elif kind == b"VP8 ":
        width = int.from_bytes(data[26:28], "little") & 0x3FFF
        height = int.from_bytes(data[28:30], "little") & 0x3FFF
    else:
        raise _undecodable("The WebP file is damaged: it does not begin with a picture.", {"format": "WebP"})
    _check_size((width, height), limits)
    return _Source(WebPImageFile, (width, height), data)


def _check_size(size: tuple[int, int], limits: DecodingLimits) -> None:
    width, height = size
    if width == 0 or height == 0:
        raise _undecodable(f"The image is {width} x {height}: it has no pixels.", {"width": width, "height": height})
    if width * height > limits.max_pixels:
        raise _too_large(size, limits.max_pixels)


def _to_rgb(image: Image.Image, colour_key: tuple[int, ...]) -> NDArray[np.uint8]:
    """Return uint8 [H, W, 3] with transparency laid over white."""
    picture = image.convert("L") if image.mode == "1" else image
    opaque: Image.Image | None = None
    if colour_key:
        differs = np.asarray(picture) != np.array(colour_key if len(colour_key) > 1 else colour_key[0])
        opaque = Image.fromarray(differs.any(axis=2) if differs.ndim == 3 else differs)
    if picture.mode == "I;16":
        # Pillow's own conversion clips at 255. The high byte is what it takes of 16-bit colour.
        picture = Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8))
    elif picture.has_transparency_data:
        picture = opaque = picture.convert("RGBA")
    if opaque is not None:
        white = Image.new("RGB", picture.size, "white")
        white.paste(picture.convert("RGB"), mask=opaque)
        picture = white
    return np.array(picture if picture.mode == "RGB" else picture.convert("RGB"))


def _upright(pixels: NDArray[np.uint8], exif: object) -> NDArray[np.uint8]:
    orientation = _orientation(exif) if isinstance(exif, bytes) else 1
    if orientation >= 5:
        pixels = pixels.transpose(1, 0, 2)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return np.ascontiguousarray(pixels)


def _orientation(exif: bytes) -> int:
    """Return the orientation, 1 to 8; 1 (upright) where the block states none or is damaged."""
    tiff = exif.removeprefix(b"Exif\0\0")
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(tiff[:4])
    if order is None:
        return 1
    try:
        (start,) = struct.unpack_from(f"{order}I", tiff, 4)
        (count,) = struct.unpack_from(f"{order}H", tiff, start)
        for entry in range(start + 2, start + 2 + 12 * count, 12):
            tag, kind, _, value = struct.unpack_from(f"{order}HHIH", tiff, entry)
            if tag == _EXIF_ORIENTATION and kind == _EXIF_SHORT and 1 <= value <= 8:
                return int(value)
    except struct.error:
        return 1
    return 1


def _damaged(source: _Source) -> InvalidRequestError:
    name = source.reader.format or ""
    if source.reader is JpegImageFile and b"\xff\xd9" not in source.data:
        return _truncated(name)
    return _undecodable(f"The {name} file is damaged or of an unsupported variant.", {"format": name})


def _truncated(name: str) -> InvalidRequestError:
    return _undecodable(f"The {name} file is truncated: it ends before its picture does.", {"format": name})


def _too_large(size: tuple[int, int], max_pixels: int) -> InvalidRequestError:
    width, height = size
    return InvalidRequestError(
        f"The image is {width} x {height} pixels, more than the {max_pixels} allowed; reduce it before sending.",
        reason="IMAGE_TOO_LARGE",
        field="image",
        metadata={"width": width, "height": height, "max_pixels": max_pixels},
    )


def _undecodable(message: str, metadata: Mapping[str, object] | None = None) -> InvalidRequestError:
    return InvalidRequestError(message, reason="IMAGE_UNDECODABLE", field="image", metadata=metadata)
