import io
import struct
import time
import zlib
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image

from pathlens.errors import InvalidRequestError
from pathlens.image_header import check_picture_size, picture_size

LARGEST_FILE = 16 * 2**20
SIGNATURE = b"\x89PNG\r\n\x1a\n"


def encoded(kind: str, size: tuple[int, int] = (40, 24), **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.new(options.pop("mode", "RGB"), size).save(buffer, kind, **options)
    return buffer.getvalue()


def chunk(kind: bytes, content: bytes = b"") -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def segment(marker: int, content: bytes = b"") -> bytes:
    return bytes([0xFF, marker]) + struct.pack(">H", len(content) + 2) + content


JPEG, PNG = encoded("JPEG"), encoded("PNG")


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("JPEG", {}),
        ("JPEG", {"progressive": True}),
        ("JPEG", {"mode": "CMYK"}),
        ("JPEG", {"exif": b"Exif\0\0" + bytes(65_000), "comment": b"\xff" * 60_000}),
        ("JPEG", {"icc_profile": bytes(1_000_000)}),
        ("MPO", {"save_all": True, "append_images": [Image.new("RGB", (8, 8))]}),
        ("PNG", {}),
        ("PNG", {"mode": "I;16"}),
        ("PNG", {"icc_profile": bytes(100_000), "exif": bytes(1000)}),
        ("PNG", {"save_all": True, "append_images": [Image.new("RGB", (40, 24), "red")]}),
        ("WEBP", {}),
        ("WEBP", {"lossless": True}),
        ("WEBP", {"mode": "RGBA"}),
        ("WEBP", {"save_all": True, "append_images": [Image.new("RGB", (40, 24), "red")]}),
    ],
)
@given(size=st.tuples(st.integers(1, 300), st.integers(1, 300)))
@example(size=(1, 300))
def test_the_size_is_the_one_that_pillow_finds(kind: str, options: dict[str, Any], size: tuple[int, int]) -> None:
    resized = [frame.resize(size) for frame in options.get("append_images", [])]
    data = encoded(kind, size, **{**options, **({"append_images": resized} if resized else {})})
    with Image.open(io.BytesIO(data)) as image:
        assert picture_size(data) == image.size == size


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_every_shorter_file_has_the_same_size_or_none(kind: str) -> None:
    data = encoded(kind)
    assert {picture_size(data[:length]) for length in range(len(data))} <= {None, (40, 24)}


@given(st.binary(max_size=200), st.sampled_from([b"", b"\xff\xd8\xff", SIGNATURE, b"RIFF\0\0\0\0WEBPVP8"]))
def test_any_bytes_have_a_size_or_none(content: bytes, magic: bytes) -> None:
    size = picture_size(magic + content)
    assert size is None or all(side >= 0 for side in size)


@given(st.integers(2, len(JPEG) - 1), st.integers(0, 255))
@example(JPEG.index(b"\xff\xda") + 1, 0xD7)
def test_a_changed_jpeg_has_the_size_that_pillow_finds(position: int, value: int) -> None:
    data = JPEG[:position] + bytes([value]) + JPEG[position + 1 :]
    try:
        with Image.open(io.BytesIO(data), formats=["JPEG"]) as image:
            found = image.size
    except Exception:
        return
    assert picture_size(data) == found


def test_the_last_of_several_headers_counts_as_in_pillow() -> None:
    second = chunk(b"IHDR", struct.pack(">IIBBBBB", 8, 9, 8, 2, 0, 0, 0))
    data = PNG[:33] + second + PNG[33:]
    with Image.open(io.BytesIO(data)) as image:
        assert picture_size(data) == image.size == (8, 9)


HOSTILE = {
    "a PNG of tiny chunks": SIGNATURE + chunk(b"prVt") * (LARGEST_FILE // 12),
    "a JPEG of tiny segments": b"\xff\xd8" + segment(0xE5) * (LARGEST_FILE // 4),
    "a JPEG of filling": b"\xff\xd8" + b"\xff" * LARGEST_FILE,
    "a JPEG of junk": JPEG[:20] + bytes(LARGEST_FILE) + JPEG[20:],
    "a JPEG of restarts": b"\xff\xd8" + b"\xff\xd0" * (LARGEST_FILE // 2),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_file_of_endless_parts_is_refused_within_milliseconds(name: str) -> None:
    started = time.thread_time()
    with pytest.raises(InvalidRequestError) as refusal:
        picture_size(HOSTILE[name])
    assert time.thread_time() - started < 0.1
    assert (refusal.value.reason, refusal.value.field) == ("IMAGE_TOO_COMPLEX", "image")


def test_a_jpeg_of_large_segments_tells_its_size() -> None:
    data = JPEG[:2] + segment(0xE5, b"\xff" * 65_533) * 255 + JPEG[2:]
    assert picture_size(data) == (40, 24)


def test_as_many_pixels_as_allowed_pass() -> None:
    check_picture_size((10, 20), 200)


def test_one_pixel_more_is_refused_with_both_numbers() -> None:
    with pytest.raises(InvalidRequestError) as refusal:
        check_picture_size((3, 67), 200)
    assert refusal.value.reason == "IMAGE_TOO_LARGE"
    assert refusal.value.metadata == {"width": "3", "height": "67", "max_pixels": "200"}
