import io
import os
import struct
import time
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from pathlens.classifier.decoding import DecodingLimits, check_pixels, decode_image
from pathlens.errors import DeadlineExceededError, InvalidRequestError

FIXTURES = Path(os.environ.get("PATHLENS_FIXTURES", Path(__file__).parents[4] / "shared" / "fixtures"))
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
GREY, COLOUR, PALETTE, GREY_ALPHA, COLOUR_ALPHA = 0, 2, 3, 4, 6

Pixels = NDArray[np.uint8]

# Pillow warns of odd metadata and decodes the picture all the same.
odd_metadata = pytest.mark.filterwarnings("ignore::UserWarning:PIL")


def picture(height: int = 24, width: int = 40) -> Pixels:
    """A smooth picture without symmetry, which lossy formats keep well."""
    rows, columns = np.mgrid[:height, :width]
    return np.stack([rows * 255 // height, columns * 255 // width, 60 + 0 * rows], axis=2).astype(np.uint8)


def encode(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=kind, **options)
    return buffer.getvalue()


def encoded_picture(kind: str, **options: Any) -> bytes:
    return encode(Image.fromarray(picture()), kind, **options)


def chunk(kind: bytes, content: bytes = b"") -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png_header(width: int, height: int, depth: int, colour_type: int) -> bytes:
    return PNG_SIGNATURE + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour_type, 0, 0, 0))


def compressed(rows: NDArray[Any]) -> bytes:
    """PNG picture data, each row without a filter; 16-bit samples in network order."""
    big_endian = rows.astype(rows.dtype.newbyteorder(">"))
    return zlib.compress(b"".join(b"\0" + row.tobytes() for row in big_endian))


def png(rows: NDArray[Any], depth: int, colour_type: int, *extra: bytes, width: int | None = None) -> bytes:
    header = png_header(width or rows.shape[1], len(rows), depth, colour_type)
    return header + b"".join(extra) + chunk(b"IDAT", compressed(rows)) + chunk(b"IEND")


def jpeg_with_exif(pixels: Pixels, exif: bytes) -> bytes:
    return encode(Image.fromarray(pixels), "JPEG", quality=95, exif=exif)


def exif_block(orientation: int, order: str = "<") -> bytes:
    magic = b"II*\0" if order == "<" else b"MM\0*"
    entry = struct.pack(f"{order}HHIHH", 0x0112, 3, 1, orientation, 0)
    return magic + struct.pack(f"{order}IH", 8, 1) + entry + struct.pack(f"{order}I", 0)


def refusal(data: bytes, limits: DecodingLimits | None = None) -> InvalidRequestError:
    with pytest.raises(InvalidRequestError) as caught:
        decode_image(data, limits or DecodingLimits())
    assert caught.value.field == "image"
    return caught.value


# How a camera stores an upright picture under each orientation (EXIF 2.32, 4.6.4.A).
STORED: dict[int, Callable[[Pixels], Pixels]] = {
    1: lambda upright: upright,
    2: lambda upright: upright[:, ::-1],
    3: lambda upright: upright[::-1, ::-1],
    4: lambda upright: upright[::-1],
    5: lambda upright: upright.transpose(1, 0, 2),
    6: lambda upright: np.rot90(upright, 1),
    7: lambda upright: np.rot90(upright.transpose(1, 0, 2), 2),
    8: lambda upright: np.rot90(upright, -1),
}


class TestFormats:
    @pytest.mark.parametrize("kind", ["PNG", "WEBP"])
    def test_a_lossless_file_comes_back_exactly(self, kind: str) -> None:
        assert np.array_equal(decode_image(encoded_picture(kind, lossless=True)), picture())

    @pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0}, {"restart_marker_rows": 1}])
    def test_a_jpeg_is_decoded_as_pillow_decodes_it(self, options: dict[str, Any]) -> None:
        data = encoded_picture("JPEG", **options)
        assert np.array_equal(decode_image(data), np.asarray(Image.open(io.BytesIO(data))))

    def test_a_lossy_webp_is_close_to_its_picture(self) -> None:
        difference = decode_image(encoded_picture("WEBP", quality=95)).astype(int) - picture()
        assert np.abs(difference).mean() < 4

    @pytest.mark.parametrize("kind", ["PNG", "WEBP", "JPEG"])
    def test_the_pixels_are_writable_contiguous_uint8(self, kind: str) -> None:
        pixels = decode_image(encoded_picture(kind))
        assert pixels.dtype == np.uint8
        assert pixels.shape == (24, 40, 3)
        assert pixels.flags.c_contiguous
        assert pixels.flags.writeable

    @pytest.mark.parametrize("kind", ["PNG", "WEBP", "JPEG"])
    def test_a_single_pixel_is_an_image(self, kind: str) -> None:
        pixels = decode_image(encode(Image.new("RGB", (1, 1), (255, 255, 255)), kind))
        assert pixels.tolist() == [[[255, 255, 255]]]

    def test_an_interlaced_png_is_decoded(self) -> None:
        # One pixel: the first of the seven passes holds it, and the others are empty.
        header = PNG_SIGNATURE + chunk(b"IHDR", struct.pack(">IIBBBBB", 1, 1, 8, COLOUR, 0, 0, 1))
        data = header + chunk(b"IDAT", compressed(np.array([[9, 8, 7]], dtype=np.uint8))) + chunk(b"IEND")
        assert decode_image(data).tolist() == [[[9, 8, 7]]]

    def test_an_icc_profile_changes_nothing(self) -> None:
        assert np.array_equal(decode_image(encoded_picture("PNG", icc_profile=b"profile")), picture())

    def test_stray_bytes_after_the_picture_are_ignored(self) -> None:
        assert np.array_equal(decode_image(encoded_picture("PNG") + b"trailing"), picture())

    def test_many_threads_decode_at_once(self) -> None:
        files = [encoded_picture(kind, lossless=True) for kind in ("PNG", "WEBP")] * 20
        with ThreadPoolExecutor(8) as pool:
            assert all(np.array_equal(pixels, picture()) for pixels in pool.map(decode_image, files))

    def test_fixture_photographs_decode_as_pillow_decodes_them(self) -> None:
        photographs = sorted(FIXTURES.glob("imagenet_val/*.JPEG"))[:10]
        if not photographs:
            pytest.skip(f"no fixtures in {FIXTURES}")
        for path in photographs:
            with Image.open(path) as expected:
                assert np.array_equal(decode_image(path.read_bytes()), np.asarray(expected.convert("RGB")))


class TestOrientation:
    @pytest.mark.parametrize("orientation", STORED)
    @pytest.mark.parametrize("order", ["<", ">"])
    def test_a_jpeg_is_turned_upright(self, orientation: int, order: str) -> None:
        stored = np.ascontiguousarray(STORED[orientation](picture()))
        pixels = decode_image(jpeg_with_exif(stored, b"Exif\0\0" + exif_block(orientation, order)))
        assert pixels.shape == picture().shape
        assert np.abs(pixels.astype(int) - picture()).mean() < 4

    @pytest.mark.parametrize("orientation", STORED)
    @pytest.mark.parametrize("kind", ["PNG", "WEBP"])
    def test_a_lossless_file_is_turned_upright_exactly(self, kind: str, orientation: int) -> None:
        stored = np.ascontiguousarray(STORED[orientation](picture()))
        data = encode(Image.fromarray(stored), kind, lossless=True, exif=exif_block(orientation))
        assert np.array_equal(decode_image(data), picture())

    @odd_metadata
    def test_exif_that_states_its_orientation_and_is_damaged_elsewhere_turns_the_picture(self) -> None:
        # The second entry, the maker's name, lies outside the block.
        name = struct.pack("<HHII", 0x010F, 2, 40, 0xFFFFFF)
        block = exif_block(3)[:8] + struct.pack("<H", 2) + name + exif_block(3)[10:]
        assert np.array_equal(decode_image(encoded_picture("PNG", exif=block)), picture()[::-1, ::-1])

    def test_a_png_is_turned_by_exif_after_its_picture(self) -> None:
        data = encoded_picture("PNG").removesuffix(chunk(b"IEND")) + chunk(b"eXIf", exif_block(3)) + chunk(b"IEND")
        assert np.array_equal(decode_image(data), picture()[::-1, ::-1])

    @pytest.mark.parametrize(
        "exif",
        [
            b"Exif\0\0",
            b"Exif\0\0garbage",
            b"Exif\0\0" + exif_block(0),
            b"Exif\0\0" + exif_block(9),
            b"Exif\0\0" + exif_block(6)[:12],
            b"Exif\0\0II*\0\xff\xff\xff\xff",
            b"Exif\0\0II*\0\x08\0\0\0\xff\xff" + b"\xff" * 40,
        ],
    )
    @odd_metadata
    def test_damaged_exif_leaves_the_picture_as_it_is(self, exif: bytes) -> None:
        assert np.array_equal(
            decode_image(jpeg_with_exif(picture(), exif)), decode_image(jpeg_with_exif(picture(), b""))
        )


class TestTransparency:
    def test_half_transparent_black_over_white_is_middle_grey(self) -> None:
        assert decode_image(encode(Image.new("RGBA", (2, 2), (0, 0, 0, 128)), "PNG"))[0, 0].tolist() == [127, 127, 127]

    @pytest.mark.parametrize("kind", ["PNG", "WEBP"])
    def test_a_transparent_pixel_is_white_whatever_its_colour(self, kind: str) -> None:
        data = encode(Image.new("RGBA", (2, 2), (200, 10, 10, 0)), kind, lossless=True, exact=True)
        assert (decode_image(data) == 255).all()

    @pytest.mark.parametrize("kind", ["PNG", "WEBP"])
    def test_an_opaque_alpha_channel_changes_nothing(self, kind: str) -> None:
        image = Image.fromarray(picture())
        image.putalpha(255)
        assert np.array_equal(decode_image(encode(image, kind, lossless=True)), picture())

    def test_grey_with_alpha_is_laid_over_white(self) -> None:
        rows = np.array([[[50, 255], [50, 0]]], dtype=np.uint8).reshape(1, 4)
        assert decode_image(png(rows, 8, GREY_ALPHA, width=2))[0, :, 0].tolist() == [50, 255]

    @pytest.mark.parametrize("alphas", [b"\0", b"\xff\0", b"\x00\x80"])
    def test_a_palette_with_transparency_is_laid_over_white(self, alphas: bytes) -> None:
        palette = chunk(b"PLTE", bytes([10, 20, 30, 0, 0, 0]))
        pixels = decode_image(png(np.array([[0, 1]], dtype=np.uint8), 8, PALETTE, palette, chunk(b"tRNS", alphas)))
        for pixel, colour, alpha in zip(pixels[0], ([10, 20, 30], [0, 0, 0]), [*alphas, 255], strict=False):
            assert np.allclose(pixel, 255 - (255 - np.array(colour)) * alpha / 255, atol=1)

    def test_the_colour_key_of_rgb_becomes_white(self) -> None:
        rows = np.array([[1, 2, 3, 1, 2, 4]], dtype=np.uint8)
        key = chunk(b"tRNS", struct.pack(">3H", 1, 2, 3))
        assert decode_image(png(rows, 8, COLOUR, key, width=2)).tolist() == [[[255, 255, 255], [1, 2, 4]]]

    def test_the_colour_key_of_grey_becomes_white(self) -> None:
        data = png(np.array([[7, 8]], dtype=np.uint8), 8, GREY, chunk(b"tRNS", struct.pack(">H", 7)))
        assert decode_image(data)[0, :, 0].tolist() == [255, 8]


class TestColours:
    @pytest.mark.parametrize("kind", ["PNG", "WEBP", "JPEG"])
    def test_grey_becomes_three_equal_channels(self, kind: str) -> None:
        pixels = decode_image(encode(Image.fromarray(picture()).convert("L"), kind))
        assert np.ptp(pixels.astype(int), axis=2).max() <= (0 if kind != "WEBP" else 2)

    def test_one_bit_is_black_and_white(self) -> None:
        assert decode_image(png(np.array([[0b01000000]], dtype=np.uint8), 1, GREY, width=2))[0, :, 0].tolist() == [
            0,
            255,
        ]

    def test_a_palette_becomes_its_colours(self) -> None:
        image = Image.fromarray(picture()).quantize(16)
        assert np.array_equal(decode_image(encode(image, "PNG")), np.asarray(image.convert("RGB")))

    @pytest.mark.parametrize(("depth_type", "per_pixel"), [(GREY, 1), (COLOUR, 3), (GREY_ALPHA, 2), (COLOUR_ALPHA, 4)])
    def test_16_bit_samples_keep_their_whole_range(self, depth_type: int, per_pixel: int) -> None:
        samples = np.arange(0, 65536, 257, dtype=np.uint16)
        rows = np.repeat(samples[None, :, None], per_pixel, axis=2)
        if depth_type in (GREY_ALPHA, COLOUR_ALPHA):
            rows[..., -1] = 65535
        pixels = decode_image(png(rows.reshape(1, -1), 16, depth_type, width=256))
        assert np.array_equal(pixels[0], np.repeat(np.arange(256)[:, None], 3, axis=1))

    def test_a_16_bit_picture_is_the_same_in_grey_and_in_colour(self) -> None:
        samples = np.random.default_rng(0).integers(0, 65536, (8, 8), dtype=np.uint16)
        coloured = np.repeat(samples[:, :, None], 3, axis=2).reshape(8, 24)
        assert np.array_equal(decode_image(png(samples, 16, GREY)), decode_image(png(coloured, 16, COLOUR, width=8)))

    @pytest.mark.parametrize("ink", [(0, 0, 0, 0), (255, 0, 0, 0), (0, 200, 100, 0), (10, 20, 30, 128), (0, 0, 0, 255)])
    def test_cmyk_becomes_the_colour_on_white_paper(self, ink: tuple[int, int, int, int]) -> None:
        data = encode(Image.new("CMYK", (16, 16), ink), "JPEG", quality=100)
        assert b"Adobe" in data
        assert np.abs(decode_image(data).astype(int) - on_paper(ink)).max() <= 3

    @pytest.mark.parametrize("ink", [(0, 0, 0, 0), (200, 50, 50, 0), (60, 120, 90, 40)])
    def test_ycck_becomes_the_colour_on_white_paper(self, ink: tuple[int, int, int, int]) -> None:
        luma, blue, red = Image.new("RGB", (1, 1), ink[:3]).convert("YCbCr").getpixel((0, 0))  # type: ignore[misc]
        # Pillow inverts what it writes, so these four reach the file as Y, Cb, Cr and inverted K.
        data = encode(Image.new("CMYK", (16, 16), (255 - luma, 255 - blue, 255 - red, ink[3])), "JPEG", quality=100)
        transform = data.index(b"Adobe") + 11
        data = data[:transform] + b"\x02" + data[transform + 1 :]
        assert np.abs(decode_image(data).astype(int) - on_paper(ink)).max() <= 4

    def test_an_rgb_jpeg_that_says_so_is_not_taken_for_ycc(self) -> None:
        data = encode(Image.new("RGB", (16, 16), (200, 30, 90)), "JPEG", quality=100, keep_rgb=True)
        assert np.abs(decode_image(data).astype(int) - [200, 30, 90]).max() <= 2


def on_paper(ink: tuple[int, int, int, int]) -> NDArray[np.float64]:
    colour, black = np.array(ink[:3]), ink[3]
    return (255 - colour) * (255 - black) / 255


class TestAnimation:
    def frames(self) -> list[Image.Image]:
        return [Image.fromarray(picture()), Image.new("RGB", (40, 24), (1, 2, 3))]

    @pytest.mark.parametrize("kind", ["PNG", "WEBP"])
    def test_the_first_frame_is_shown(self, kind: str) -> None:
        first, second = self.frames()
        data = encode(first, kind, save_all=True, append_images=[second], lossless=True, duration=100)
        assert np.array_equal(decode_image(data), picture())

    @odd_metadata
    def test_an_animated_png_of_no_frames_shows_its_picture(self) -> None:
        header, rest = encoded_picture("PNG")[:33], encoded_picture("PNG")[33:]
        data = header + chunk(b"acTL", bytes(8)) + rest
        assert np.array_equal(decode_image(data), picture())


class TestMetadata:
    @pytest.mark.parametrize(
        "metadata",
        [
            chunk(b"tEXt", b"Comment\0hello"),
            chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(100_000))),
            chunk(b"iCCP", b"name\0\0garbage"),
            chunk(b"prVt", b"unknown"),
        ],
    )
    def test_metadata_of_a_png_changes_nothing(self, metadata: bytes) -> None:
        data = encoded_picture("PNG")
        assert np.array_equal(decode_image(data[:33] + metadata + data[33:]), picture())

    @pytest.mark.parametrize("content", [b"MPF\0II*\0\x08\0\0\0\xff\xff", b"http://ns.adobe.com/xap/1.0/\0<"])
    @pytest.mark.parametrize("marker", [0xE1, 0xE2, 0xED, 0xFE])
    @odd_metadata
    def test_damaged_metadata_of_a_jpeg_is_ignored(self, marker: int, content: bytes) -> None:
        data = encoded_picture("JPEG")
        segment = bytes([0xFF, marker]) + struct.pack(">H", len(content) + 2) + content
        assert np.array_equal(decode_image(data[:2] + segment + data[2:]), decode_image(data))

    def test_the_first_picture_of_a_multi_picture_jpeg_is_shown(self) -> None:
        data = encode(Image.fromarray(picture()), "MPO", save_all=True, append_images=[Image.new("RGB", (8, 8))])
        assert np.array_equal(decode_image(data), decode_image(encoded_picture("JPEG")))


class TestSize:
    BOMB = png_header(100_000, 100_000, 8, COLOUR) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND")

    def test_a_decompression_bomb_is_refused_by_its_header(self) -> None:
        error = refusal(self.BOMB)
        assert error.reason == "IMAGE_TOO_LARGE"
        assert error.metadata["max_pixels"] == "50000000"

    def test_a_truncated_bomb_is_still_called_too_large(self) -> None:
        assert refusal(self.BOMB[:45]).reason == "IMAGE_TOO_LARGE"

    def test_a_jpeg_header_above_the_limit_is_refused(self) -> None:
        data = bytearray(encoded_picture("JPEG"))
        frame = data.index(b"\xff\xc0")
        data[frame + 5 : frame + 9] = b"\xff\xff\xff\xff"
        assert refusal(bytes(data)).reason == "IMAGE_TOO_LARGE"

    def test_a_webp_canvas_above_the_limit_is_refused(self) -> None:
        frames = [Image.fromarray(picture()), Image.new("RGB", (40, 24))]
        data = bytearray(encode(frames[0], "WEBP", save_all=True, append_images=frames[1:]))
        canvas = data.index(b"VP8X") + 12
        data[canvas : canvas + 6] = (9_999).to_bytes(3, "little") * 2
        error = refusal(bytes(data))
        assert error.reason == "IMAGE_TOO_LARGE"

    @pytest.mark.parametrize("kind", ["PNG", "WEBP", "JPEG"])
    @pytest.mark.parametrize("options", [{}, {"lossless": True}, {"exif": exif_block(1)}])
    def test_the_limit_is_the_largest_size_that_passes(self, kind: str, options: dict[str, Any]) -> None:
        data = encoded_picture(kind, **options)
        assert decode_image(data, DecodingLimits(max_pixels=40 * 24)).shape == (24, 40, 3)
        assert refusal(data, DecodingLimits(max_pixels=40 * 24 - 1)).reason == "IMAGE_TOO_LARGE"

    @pytest.mark.parametrize(("width", "height"), [(0, 0), (0, 5), (5, 0)])
    def test_a_side_of_zero_is_refused(self, width: int, height: int) -> None:
        data = png_header(width, height, 8, GREY) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND")
        assert refusal(data).reason == "IMAGE_UNDECODABLE"


class TestRefusals:
    def test_no_bytes_are_an_empty_image(self) -> None:
        assert refusal(b"").reason == "IMAGE_EMPTY"

    @pytest.mark.parametrize(
        "data", [b"x", b"hello, world", bytes(100), b"\xff\xd8", b"\x89PNG", b"RIFF\x04\0\0\0WAVE"]
    )
    def test_what_is_no_image_is_refused_with_the_accepted_formats(self, data: bytes) -> None:
        error = refusal(data)
        assert error.reason == "IMAGE_UNDECODABLE"
        assert "JPEG, PNG and WebP" in error.message

    @pytest.mark.parametrize("kind", ["GIF", "BMP", "TIFF", "AVIF"])
    def test_another_format_is_named(self, kind: str) -> None:
        error = refusal(encoded_picture(kind))
        assert (error.reason, error.metadata) == ("IMAGE_UNDECODABLE", {"format": kind})
        assert f"is {kind}" in error.message

    @pytest.mark.parametrize("kind", ["PNG", "WEBP", "JPEG"])
    @pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
    def test_a_truncated_file_is_called_truncated(self, kind: str, share: float) -> None:
        data = encode(Image.effect_noise((64, 64), 50).convert("RGB"), kind)
        error = refusal(data[: int(len(data) * share)])
        assert error.reason == "IMAGE_UNDECODABLE"
        assert "truncated" in error.message

    @pytest.mark.parametrize("options", [{}, {"lossless": True}])
    def test_every_shorter_webp_is_refused(self, options: dict[str, Any]) -> None:
        data = encoded_picture("WEBP", **options)
        assert {refusal(data[:length]).reason for length in range(1, len(data))} == {"IMAGE_UNDECODABLE"}

    def test_a_shorter_png_is_refused_unless_every_pixel_is_there(self) -> None:
        data = encoded_picture("PNG")
        for length in range(1, len(data)):
            with suppress(InvalidRequestError):
                assert np.array_equal(decode_image(data[:length]), picture())

    def test_a_png_without_a_picture_is_refused(self) -> None:
        assert refusal(png_header(4, 4, 8, COLOUR) + chunk(b"IEND")).reason == "IMAGE_UNDECODABLE"

    def test_a_jpeg_without_a_picture_is_refused(self) -> None:
        assert refusal(b"\xff\xd8\xff\xd9").reason == "IMAGE_UNDECODABLE"

    def test_an_error_repeats_none_of_the_bytes(self) -> None:
        error = refusal(PNG_SIGNATURE + b"secret-secret-secret-secret-secret")
        assert "secret" not in error.message + "".join(error.metadata.values())


@odd_metadata
class TestFuzzing:
    SEEDS = (
        encoded_picture("PNG"),
        encoded_picture("JPEG", exif=b"Exif\0\0" + exif_block(6)),
        encoded_picture("JPEG", progressive=True),
        encoded_picture("WEBP"),
        encoded_picture("WEBP", lossless=True, exif=exif_block(6)),
        encode(Image.fromarray(picture()).quantize(16), "PNG", transparency=3),
        encode(Image.fromarray(picture()), "PNG", save_all=True, append_images=[Image.new("RGB", (40, 24))]),
        encode(Image.fromarray(picture()), "WEBP", save_all=True, append_images=[Image.new("RGB", (40, 24))]),
        encode(Image.fromarray(picture()).convert("CMYK"), "JPEG"),
    )

    def decode_or_refuse(self, data: bytes) -> None:
        try:
            pixels = decode_image(data, DecodingLimits(max_pixels=1_000_000))
        except InvalidRequestError:
            return
        assert pixels.dtype == np.uint8
        assert pixels.shape[2:] == (3,)

    @settings(max_examples=200)
    @given(st.sampled_from([b"", PNG_SIGNATURE, b"\xff\xd8\xff", b"RIFF\0\0\0\0WEBPVP8X"]), st.binary(max_size=300))
    def test_random_bytes_are_decoded_or_refused(self, magic: bytes, tail: bytes) -> None:
        self.decode_or_refuse(magic + tail)

    @settings(max_examples=400)
    @given(
        st.sampled_from(SEEDS),
        st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.binary(max_size=4), st.integers(0, 4)), max_size=4),
    )
    def test_corrupted_files_are_decoded_or_refused(self, data: bytes, edits: list[tuple[float, bytes, int]]) -> None:
        for place, replacement, removed in edits:
            position = int(place * len(data))
            data = data[:position] + replacement + data[position + removed :]
        self.decode_or_refuse(data)

    @settings(max_examples=200)
    @given(
        st.sampled_from(
            [b"tRNS", b"PLTE", b"eXIf", b"acTL", b"fcTL", b"fdAT", b"tEXt", b"iTXt", b"IHDR", b"IDAT", b"IEND"]
        ),
        st.binary(max_size=40),
        st.sampled_from(
            [(1, GREY), (2, PALETTE), (8, GREY), (8, COLOUR), (8, PALETTE), (16, GREY), (16, COLOUR), (3, 5)]
        ),
    )
    def test_odd_but_well_formed_chunks_are_decoded_or_refused(
        self, kind: bytes, content: bytes, variant: tuple[int, int]
    ) -> None:
        self.decode_or_refuse(png(np.zeros((2, 12), dtype=np.uint8), *variant, chunk(kind, content), width=2))


class TestPixels:
    def test_rgb_passes_as_it_is(self) -> None:
        assert np.array_equal(check_pixels(picture()), picture())

    def test_grey_becomes_three_equal_channels(self) -> None:
        grey = picture()[:, :, 0]
        assert np.array_equal(check_pixels(grey), np.stack([grey] * 3, axis=2))

    def test_the_result_is_contiguous(self) -> None:
        assert check_pixels(picture()[::2, ::-1]).flags.c_contiguous

    @pytest.mark.parametrize(
        "shape", [(), (4,), (4, 4, 1), (4, 4, 4), (3, 4, 4), (1, 4, 4, 3), (0, 4, 3), (4, 0), (0, 0)]
    )
    def test_another_shape_is_refused_by_name(self, shape: tuple[int, ...]) -> None:
        with pytest.raises(InvalidRequestError) as caught:
            check_pixels(np.zeros(shape, dtype=np.uint8))
        assert (caught.value.reason, caught.value.field) == ("TENSOR_INVALID", "image")
        assert caught.value.metadata == {"dtype": "uint8", "shape": str(list(shape))}

    @pytest.mark.parametrize("dtype", [np.int8, np.float32, np.bool_, np.uint16])
    def test_another_dtype_is_refused_by_name(self, dtype: type[Any]) -> None:
        with pytest.raises(InvalidRequestError, match=np.dtype(dtype).name):
            check_pixels(np.zeros((4, 4, 3), dtype=dtype))

    def test_the_size_limit_holds_for_pixels_too(self) -> None:
        with pytest.raises(InvalidRequestError) as caught:
            check_pixels(picture(), DecodingLimits(max_pixels=100))
        assert caught.value.reason == "IMAGE_TOO_LARGE"


def test_a_jpeg_of_endless_scans_is_refused_before_it_is_decoded() -> None:
    scan = b"\xff\xda\x00\x08\x01\x01\x00\x00\x3f\x00"
    data = encode(Image.fromarray(picture()), "JPEG", progressive=True)[:-2] + scan * 101 + b"\xff\xd9"
    with pytest.raises(InvalidRequestError) as refusal:
        decode_image(data)
    assert refusal.value.reason == "IMAGE_TOO_COMPLEX"


def test_a_jpeg_of_endless_exif_segments_is_refused_before_it_is_decoded() -> None:
    segment = b"\xff\xe1\x00\x08Exif\x00\x00"
    data = b"\xff\xd8" + segment * 101 + encode(Image.fromarray(picture()), "JPEG")[2:]
    with pytest.raises(InvalidRequestError) as refusal:
        decode_image(data)
    assert refusal.value.reason == "IMAGE_TOO_COMPLEX"


def test_an_ordinary_progressive_jpeg_is_decoded() -> None:
    data = encode(Image.fromarray(picture()), "JPEG", progressive=True)
    assert decode_image(data).shape == picture().shape


class TestTime:
    # Each of these takes Pillow 2 ms to inflate, and it reads them one by one.
    PROFILE = chunk(b"iCCP", b"name\0\0" + zlib.compress(bytes(2**20), 9))

    def slow(self, where: int) -> bytes:
        data = encoded_picture("PNG")
        return data[:where] + self.PROFILE * 900 + data[where:]

    @pytest.mark.parametrize("where", [33, -12])
    def test_decoding_ends_when_its_time_is_up(self, where: int) -> None:
        started = time.thread_time()
        error = refusal(self.slow(where), DecodingLimits(seconds=0.1))
        assert time.thread_time() - started < 0.5
        assert (error.reason, error.metadata) == ("IMAGE_TOO_SLOW", {"limit": "0.1"})

    def test_an_image_within_its_time_is_decoded(self) -> None:
        assert np.array_equal(decode_image(encoded_picture("PNG"), DecodingLimits(seconds=0.1)), picture())

    @pytest.mark.parametrize("kind", ["PNG", "WEBP", "JPEG"])
    def test_who_waits_no_more_ends_the_decoding_before_the_next_piece(self, kind: str) -> None:
        # Noise, which no format makes smaller than several pieces.
        data = encode(Image.effect_noise((512, 512), 100).convert("RGB"), kind, quality=95)
        pieces = 0

        def before_read() -> None:
            nonlocal pieces
            pieces += 1
            if pieces == total:
                raise DeadlineExceededError("Nobody waits.")

        total = 0
        decode_image(data, before_read=before_read)
        total = pieces
        pieces = 0
        with pytest.raises(DeadlineExceededError):
            decode_image(data, before_read=before_read)
        assert pieces == total > 1

    def test_a_large_jpeg_of_many_scans_is_refused_where_a_small_one_is_not(self) -> None:
        # A thumbnail, or a second picture of the file, counts too: telling them apart would mean to decode the file.
        data = encoded_picture("JPEG", comment=b"\xff\xda" * 30)
        assert decode_image(data).shape == picture().shape
        error = refusal(data, DecodingLimits(max_pixels=40 * 24))
        assert (error.reason, error.metadata["width"], error.metadata["height"]) == ("IMAGE_TOO_COMPLEX", "40", "24")
