"""Pictures of every accepted kind, made in memory, and damage that knows how their files are built."""

import io
import struct
import zlib
from collections.abc import Callable, Sequence
from functools import cache
from random import Random
from typing import TypeAlias

import numpy as np
from PIL import Image

from reliability.fuzz_bytes import damaged

Chunk: TypeAlias = tuple[bytes, bytes]
"""Type and content of a chunk of PNG or WebP; marker and content of a segment of JPEG."""

_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_SIDES = (
    0,
    1,
    2,
    7,
    8,
    9,
    63,
    65,
    255,
    256,
    257,
    1000,
    3000,
    7071,
    7072,
    32767,
    65535,
    2**24 - 1,
    2**31 - 1,
    2**31,
    2**32 - 1,
)
_CONTENTS = (
    b"",
    b"\x00",
    b"\xff" * 4,
    b"\x00" * 300,
    b"\xff" * 300,
    b"Exif\x00\x00II*\x00\x08\x00\x00\x00\xff\xff",
    b"a\x00" * 40,
)
_START_OF_FRAME = tuple(bytes([0xFF, number]) for number in (0xC0, 0xC1, 0xC2, 0xC3, 0xC5, 0xC9, 0xCA))
_START_OF_SCAN, _END_OF_IMAGE = b"\xff\xda", b"\xff\xd9"


@cache
def pictures() -> tuple[bytes, ...]:
    """Encode one small picture in every way that the service accepts.

    Returns:
        Files; the same ones whenever it is asked with the same Pillow.
    """
    noise = np.random.default_rng(0).integers(0, 256, (19, 23, 4), dtype=np.uint8)
    rgba = Image.fromarray(noise, "RGBA")
    rgb, grey = rgba.convert("RGB"), rgba.convert("L")
    palette, wide = rgb.quantize(16), Image.fromarray(noise[..., 0].astype(np.uint16) * 257)
    turned = Image.Exif()
    turned[0x0112], turned[0x010F] = 6, "maker"
    frames = [rgb.rotate(90 * turn) for turn in range(3)]
    files = [
        *(_encoded(picture, "JPEG", quality=60) for picture in (rgb, grey, rgb.convert("CMYK"))),
        _encoded(rgb, "JPEG", progressive=True, quality=60),
        _encoded(rgb, "JPEG", exif=turned, quality=60, subsampling=0, restart_marker_blocks=1),
        *(
            _encoded(picture, "PNG")
            for picture in (rgb, grey, grey.convert("1"), rgba, rgba.convert("LA"), palette, wide)
        ),
        _encoded(palette, "PNG", transparency=3, bits=4),
        _encoded(rgb, "PNG", exif=turned, icc_profile=b"\x00" * 128, transparency=(1, 2, 3)),
        _encoded(rgb, "PNG", save_all=True, append_images=frames),
        _encoded(rgb, "WebP", quality=60),
        _encoded(rgba, "WebP", quality=60),
        _encoded(rgba, "WebP", lossless=True, exif=turned),
        _encoded(frames[0], "WebP", save_all=True, append_images=frames[1:], duration=40),
    ]
    return (*files, _interlaced(noise[..., :3]))


def damaged_picture(draw: Random) -> bytes:
    """Damage a picture in the way that its format allows, or without looking, or both."""
    files = pictures()
    data, donor = draw.choice(files), draw.choice(files)
    if draw.random() < 0.7:
        data = _damaged_structure(draw, data, donor)
    if draw.random() < 0.4:
        data = damaged(draw, data, donor)
    return data


def _encoded(picture: Image.Image, format_name: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, format_name, **options)
    return buffer.getvalue()


def _interlaced(pixels: np.ndarray[tuple[int, ...], np.dtype[np.uint8]]) -> bytes:
    # Pillow writes none. Adam7: start and step of rows and columns of each pass.
    passes = ((0, 8, 0, 8), (0, 8, 4, 8), (4, 8, 0, 4), (0, 4, 2, 4), (2, 4, 0, 2), (0, 2, 1, 2), (1, 2, 0, 1))
    rows = (row for top, down, left, right in passes for row in pixels[top::down, left::right])
    content = b"".join(b"\x00" + row.tobytes() for row in rows if row.size)
    header = struct.pack(">IIBBBBB", pixels.shape[1], pixels.shape[0], 8, 2, 0, 0, 1)
    return _join_png([(b"IHDR", header), (b"IDAT", zlib.compress(content)), (b"IEND", b"")])


def _damaged_structure(draw: Random, data: bytes, donor: bytes) -> bytes:
    split, join, header = _format_of(data)
    chunks = split(data)
    others = _format_of(donor)[0](donor)
    for _ in range(draw.randint(1, 3)):
        headers = draw.random() < 0.5
        chunks = [header(draw, chunk) for chunk in chunks] if headers else _rearranged(draw, chunks, others)
    return join(chunks)


Split: TypeAlias = Callable[[bytes], list[Chunk]]
Join: TypeAlias = Callable[[Sequence[Chunk]], bytes]
Header: TypeAlias = Callable[[Random, Chunk], Chunk]


def _format_of(data: bytes) -> tuple[Split, Join, Header]:
    if data.startswith(_PNG_SIGNATURE):
        return _split_png, _join_png, _png_header
    if data.startswith(b"\xff\xd8"):
        return _split_jpeg, _join_jpeg, _jpeg_header
    return _split_webp, _join_webp, _webp_header


def _rearranged(draw: Random, chunks: list[Chunk], others: list[Chunk]) -> list[Chunk]:
    chunks = list(chunks)
    if not chunks:
        return others
    one, other = draw.randrange(len(chunks)), draw.randrange(len(chunks))
    name, content = chunks[one]
    match draw.randrange(7):
        case 0:
            chunks[one], chunks[other] = chunks[other], chunks[one]
        case 1:
            del chunks[one]
        case 2:
            chunks[one:one] = [chunks[one]] * draw.choice((1, 3, 101))
        case 3:
            chunks.insert(one, draw.choice(others))
        case 4:
            chunks[one] = (name, draw.choice(_CONTENTS))
        case 5:
            chunks[one] = (chunks[other][0], content)
        case _:
            chunks[one] = (name, damaged(draw, content, chunks[other][1]))
    return chunks


def _overwritten(draw: Random, content: bytes, fields: Sequence[tuple[int, str]]) -> bytes:
    """Set one field, given as its position and its format, to a value from the edges."""
    position, kind = draw.choice(fields)
    size = struct.calcsize(kind)
    value = draw.choice(_SIDES) % 2 ** (8 * size)
    return content[:position] + struct.pack(kind, value) + content[position + size :]


def _png_header(draw: Random, chunk: Chunk) -> Chunk:
    name, content = chunk
    match name:
        case b"IHDR":
            sides, kinds = [(0, ">I"), (4, ">I")], [(position, "B") for position in range(8, 13)]
            if draw.random() < 0.5:
                return name, _overwritten(draw, content, sides)
            position, _ = draw.choice(kinds)
            return name, content[:position] + bytes([draw.choice((0, 1, 2, 3, 4, 6, 8, 16, 255))]) + content[
                position + 1 :
            ]
        case b"IDAT" if draw.random() < 0.3:
            # Sound compression of something else: too short, too long, or rows with filters that do not exist.
            return name, zlib.compress(bytes([draw.randrange(256)]) * draw.choice((0, 1, 100, 10_000, 1_000_000)))
        case b"fcTL" | b"acTL" | b"tRNS" | b"eXIf" if content:
            return name, _overwritten(draw, content, [(position, ">I") for position in range(0, len(content), 4)])
    return chunk


def _jpeg_header(draw: Random, chunk: Chunk) -> Chunk:
    name, content = chunk
    if name in _START_OF_FRAME and content:
        if draw.random() < 0.5:
            return name, _overwritten(draw, content, [(1, ">H"), (3, ">H")])
        if draw.random() < 0.3:
            return draw.choice(_START_OF_FRAME), content
        return name, _overwritten(draw, content, [(position, "B") for position in range(len(content))])
    if name == _START_OF_SCAN and draw.random() < 0.5:
        return name, _overwritten(draw, content, [(position, "B") for position in range(10)])
    if len(name) > 1 and content and draw.random() < 0.2:
        return name, _overwritten(draw, content, [(draw.randrange(len(content)), "B")])
    return chunk


def _webp_header(draw: Random, chunk: Chunk) -> Chunk:
    name, content = chunk
    if content and draw.random() < 0.6:
        # The dimensions of all three kinds of header lie in the first ten bytes.
        return name, _overwritten(draw, content, [(draw.randrange(min(10, len(content))), draw.choice(("B", "<H")))])
    return chunk


def _split_png(data: bytes) -> list[Chunk]:
    chunks, position = [], len(_PNG_SIGNATURE)
    while position < len(data):
        (size,) = struct.unpack_from(">I", data, position)
        chunks.append((data[position + 4 : position + 8], data[position + 8 : position + 8 + size]))
        position += 12 + size
    return chunks


def _join_png(chunks: Sequence[Chunk]) -> bytes:
    return _PNG_SIGNATURE + b"".join(
        struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))
        for name, content in chunks
    )


def _split_jpeg(data: bytes) -> list[Chunk]:
    chunks, position = [], 2
    while position < len(data):
        marker = data[position : position + 2]
        if marker == _END_OF_IMAGE:
            chunks.append((marker, b""))
            break
        (size,) = struct.unpack_from(">H", data, position + 2)
        end = position + 2 + size
        if marker == _START_OF_SCAN:
            # Its pixels follow without a length, up to the next marker that is none of theirs.
            while data[end] != 0xFF or data[end + 1] in (0x00, *range(0xD0, 0xD8)):
                end += 1
        chunks.append((marker, data[position + 4 : end]))
        position = end
    return chunks


def _join_jpeg(chunks: Sequence[Chunk]) -> bytes:
    parts = [b"\xff\xd8"]
    for name, content in chunks:
        if name == _END_OF_IMAGE:
            parts.append(name)
        else:
            # Of a scan, the length counts the header alone: one byte, two for each component, and three.
            size = 4 + 2 * content[0] + 2 if name == _START_OF_SCAN and content else len(content) + 2
            parts.append(name + struct.pack(">H", min(size, 65_535)) + content)
    return b"".join(parts)


def _split_webp(data: bytes) -> list[Chunk]:
    chunks, position = [], 12
    while position + 8 <= len(data):
        (size,) = struct.unpack_from("<I", data, position + 4)
        chunks.append((data[position : position + 4], data[position + 8 : position + 8 + size]))
        position += 8 + size + size % 2
    return chunks


def _join_webp(chunks: Sequence[Chunk]) -> bytes:
    content = b"WEBP" + b"".join(
        name + struct.pack("<I", len(content)) + content + b"\x00" * (len(content) % 2) for name, content in chunks
    )
    return b"RIFF" + struct.pack("<I", len(content)) + content
