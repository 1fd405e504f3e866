"""The size of a picture as its file states it, found without decoding and within a bounded number of steps."""

import struct

from pathlens.errors import InvalidRequestError

# An honest file has a few dozen. What surrounds a picture is looked at piece by piece, so that a file of a million
# empty pieces would take seconds.
_MAX_PARTS = 1000
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
# Frame headers, arithmetic coding included; the three others of the range are tables.
_JPEG_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_JPEG_SCAN = 0xDA
# What has no length: escaped bytes, restarts, the begin and end of an image, and what no file has.
_JPEG_BARE = frozenset({0x00, 0x01, 0xC8, *range(0xD0, 0xDA), *range(0xF0, 0xFE)})


def picture_size(data: bytes) -> tuple[int, int] | None:
    """Read width and height from the header of a JPEG, PNG or WebP file.

    What is not told here is no error: whoever decodes the file finds out what is wrong with it.

    Args:
        data: The file's bytes; only headers are read, of whatever length the file is.

    Returns:
        Width and height of the picture, or of the canvas of an animation; None if the file is of another format, or
        ends or breaks before it says.

    Raises:
        InvalidRequestError: IMAGE_TOO_COMPLEX if more parts come before the picture than any honest file has.
    """
    if data.startswith(b"\xff\xd8\xff"):
        return _jpeg_size(data)
    if data.startswith(_PNG_SIGNATURE):
        return _png_size(data)
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return _webp_size(data)
    return None


def check_picture_size(size: tuple[int, int], max_pixels: int) -> None:
    """Check that a picture is not too large.

    Args:
        size: Its width and height.
        max_pixels: Most pixels.

    Raises:
        InvalidRequestError: IMAGE_TOO_LARGE.
    """
    width, height = size
    if width * height > max_pixels:
        raise InvalidRequestError(
            f"The image is {width} x {height} pixels, more than the {max_pixels} allowed; reduce it before sending.",
            reason="IMAGE_TOO_LARGE",
            field="image",
            metadata={"width": width, "height": height, "max_pixels": max_pixels},
        )


def _jpeg_size(data: bytes) -> tuple[int, int] | None:
    # As Pillow does, the last frame header before the first scan counts.
    size, position, junk = None, 2, 0
    for _ in range(_MAX_PARTS):
        start, position = position, data.find(b"\xff", position)
        if position < 0 or position + 1 >= len(data):
            return size
        junk += position - start
        if junk > _MAX_PARTS:
            break
        marker = data[position + 1]
        if marker == _JPEG_SCAN:
            return size
        if marker == 0xFF:
            position += 1
            continue
        if marker in _JPEG_BARE:
            position += 2
            continue
        if position + 9 > len(data):
            return size
        (length,) = struct.unpack_from(">H", data, position + 2)
        if marker in _JPEG_FRAMES:
            height, width = struct.unpack_from(">HH", data, position + 5)
            size = (width, height)
        position += 2 + length
    raise _too_complex("JPEG", "segments")


def _png_size(data: bytes) -> tuple[int, int] | None:
    # As Pillow does, the last header chunk before the picture counts.
    size, position = None, len(_PNG_SIGNATURE)
    for _ in range(_MAX_PARTS):
        if position + 16 > len(data):
            return size
        length, kind = struct.unpack_from(">I4s", data, position)
        if kind == b"IDAT":
            return size
        if kind == b"IHDR":
            width, height = struct.unpack_from(">II", data, position + 8)
            size = (width, height)
        position += 12 + length
    raise _too_complex("PNG", "chunks")


def _webp_size(data: bytes) -> tuple[int, int] | None:
    if len(data) < 30:
        return None
    kind = data[12:16]
    if kind == b"VP8X":
        return int.from_bytes(data[24:27], "little") + 1, int.from_bytes(data[27:30], "little") + 1
    if kind == b"VP8L" and data[20] == 0x2F:
        bits = int.from_bytes(data[21:25], "little")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    if kind == b"VP8 " and data[23:26] == b"\x9d\x01\x2a":
        width, height = struct.unpack_from("<HH", data, 26)
        return width & 0x3FFF, height & 0x3FFF
    return None


def _too_complex(kind: str, parts: str) -> InvalidRequestError:
    return InvalidRequestError(
        f"The {kind} has {_MAX_PARTS} {parts} or more before its picture; save it again without metadata.",
        reason="IMAGE_TOO_COMPLEX",
        field="image",
        metadata={"format": kind, "limit": _MAX_PARTS},
    )
