import importlib.util
import json
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from pathlens.classifier.decoding import decode_image
from pathlens.classifier.preprocessing import Colour, Interpolation, Preprocessing

FIXTURES = Path(os.environ.get("PATHLENS_FIXTURES", Path(__file__).parents[4] / "shared" / "fixtures"))
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
UNSCALED: dict[str, Any] = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}
UNSCALED_GREY: dict[str, Any] = {"mean": (0.0,), "std": (1.0,), "colour": Colour.GREY}

Pixels = NDArray[np.uint8]


def noise(height: int, width: int) -> Pixels:
    return np.random.default_rng(height * 1000 + width).integers(0, 256, (height, width, 3), dtype=np.uint8)


def random_map(height: int, width: int) -> NDArray[np.float32]:
    return np.random.default_rng(0).normal(size=(height, width)).astype(np.float32)


def as_bytes(values: NDArray[np.float32]) -> NDArray[np.int64]:
    """The resampled pixels [height, width, C] of an input that was neither shifted nor scaled."""
    return np.moveaxis(values * 255, 0, 2).round().astype(np.int64)


class TestValues:
    def test_an_image_of_the_right_size_is_only_normalised(self) -> None:
        pixels = noise(12, 10)
        expected = (pixels.astype(np.float32) / 255 - np.array(MEAN, np.float32)) / np.array(STD, np.float32)
        assert np.array_equal(Preprocessing(12, 10, mean=MEAN, std=STD).apply(pixels), expected.transpose(2, 0, 1))

    @pytest.mark.parametrize("interpolation", Interpolation)
    @pytest.mark.parametrize("shorter_side", [None, 10])
    def test_no_filter_changes_an_image_of_the_right_size(
        self, interpolation: Interpolation, shorter_side: int | None
    ) -> None:
        preprocessing = Preprocessing(10, 10, interpolation=interpolation, resize_shorter_side=shorter_side, **UNSCALED)
        assert np.array_equal(as_bytes(preprocessing.apply(noise(10, 10))), noise(10, 10))

    @pytest.mark.parametrize("interpolation", Interpolation)
    def test_a_crop_without_scaling_changes_no_pixel(self, interpolation: Interpolation) -> None:
        preprocessing = Preprocessing(8, 6, resize_shorter_side=12, interpolation=interpolation, **UNSCALED)
        assert np.array_equal(as_bytes(preprocessing.apply(noise(12, 20))), noise(12, 20)[2:10, 7:13])

    def test_bgr_is_rgb_in_reverse(self) -> None:
        pixels = noise(20, 30)
        rgb = Preprocessing(8, 8, **UNSCALED)
        bgr = Preprocessing(8, 8, colour=Colour.BGR, **UNSCALED)
        assert np.array_equal(bgr.apply(pixels), rgb.apply(pixels)[::-1])

    def test_mean_and_std_follow_the_order_of_the_classifier(self) -> None:
        white = np.full((4, 4, 3), 255, dtype=np.uint8)
        values = Preprocessing(4, 4, mean=(0.0, 0.5, 1.0), std=(1.0, 0.5, 2.0), colour=Colour.BGR).apply(white)
        assert values[:, 0, 0].tolist() == [1.0, 1.0, 0.0]

    @pytest.mark.parametrize("colour", Colour)
    def test_a_picture_gives_what_its_pixels_give(self, colour: Colour) -> None:
        channels = 1 if colour is Colour.GREY else 3
        preprocessing = Preprocessing(8, 6, mean=(0.4,) * channels, std=(0.2,) * channels, colour=colour)
        pixels = np.random.default_rng(0).integers(0, 256, (19, 23, 3), np.uint8)
        expected = preprocessing.apply(pixels)
        np.testing.assert_array_equal(preprocessing.apply_to_picture(Image.fromarray(pixels)), expected)

    def test_grey_is_the_luma_of_the_image(self) -> None:
        values = Preprocessing(6, 6, **UNSCALED_GREY).apply(noise(6, 6))
        assert np.allclose(values[0] * 255, noise(6, 6) @ [0.299, 0.587, 0.114], atol=0.51)

    @pytest.mark.parametrize("colour", Colour)
    @pytest.mark.parametrize("shape", [(7, 9), (50, 40), (1, 1), (1, 300), (300, 1)])
    @pytest.mark.parametrize("shorter_side", [None, 16])
    def test_the_input_is_contiguous_float32_of_the_stated_size(
        self, colour: Colour, shape: tuple[int, int], shorter_side: int | None
    ) -> None:
        channels = 1 if colour is Colour.GREY else 3
        preprocessing = Preprocessing(
            16, 12, mean=(0.5,) * channels, std=(0.5,) * channels, colour=colour, resize_shorter_side=shorter_side
        )
        values = preprocessing.apply(noise(*shape))
        assert values.dtype == np.float32
        assert values.shape == (preprocessing.channels, 16, 12)
        assert values.flags.c_contiguous

    @pytest.mark.parametrize(
        "pixels",
        [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 4), np.uint8), np.zeros((4, 4, 3)), np.zeros((0, 4, 3), np.uint8)],
    )
    def test_what_is_no_rgb_image_is_refused(self, pixels: NDArray[Any]) -> None:
        with pytest.raises(ValueError, match="expected uint8"):
            Preprocessing(4, 4, **UNSCALED).apply(pixels)


class TestResampling:
    @pytest.mark.parametrize("interpolation", Interpolation)
    @pytest.mark.parametrize("shape", [(60, 80), (5, 9)])
    def test_a_warp_is_the_resize_of_pillow(self, interpolation: Interpolation, shape: tuple[int, int]) -> None:
        pixels = noise(*shape)
        expected = Image.fromarray(pixels).resize((20, 16), Image.Resampling[interpolation.name])
        preprocessing = Preprocessing(16, 20, interpolation=interpolation, **UNSCALED)
        assert np.array_equal(as_bytes(preprocessing.apply(pixels)), np.asarray(expected))

    @pytest.mark.parametrize("interpolation", [Interpolation.BILINEAR, Interpolation.BICUBIC])
    @pytest.mark.parametrize("shape", [(60, 97), (97, 60), (33, 33), (10, 40), (7, 5)])
    def test_a_crop_is_a_resize_followed_by_a_cut(self, interpolation: Interpolation, shape: tuple[int, int]) -> None:
        pixels = noise(*shape)
        height, width = (32 * side // min(shape) for side in shape)
        resized = Image.fromarray(pixels).resize((width, height), Image.Resampling[interpolation.name])
        top, left = round((height - 24) / 2), round((width - 28) / 2)
        expected = np.asarray(resized)[top : top + 24, left : left + 28].astype(int)
        preprocessing = Preprocessing(24, 28, resize_shorter_side=32, interpolation=interpolation, **UNSCALED)
        # Pillow reads the rectangle in single precision, which may tip a value that lies between two levels.
        assert np.abs(as_bytes(preprocessing.apply(pixels)) - expected).max() <= 1

    def test_reducing_does_not_alias(self) -> None:
        stripes = np.zeros((64, 64, 3), dtype=np.uint8)
        stripes[:, ::2] = 255
        values = Preprocessing(8, 8, **UNSCALED).apply(stripes)
        assert np.abs(values - 0.5).max() < 0.02

    def test_a_very_long_image_is_cropped_without_being_resized_whole(self) -> None:
        strip = np.zeros((1, 1_000_000, 3), dtype=np.uint8)
        assert Preprocessing(224, 224, resize_shorter_side=256, **UNSCALED).apply(strip).shape == (3, 224, 224)


class TestPlacing:
    @pytest.mark.parametrize("shape", [(60, 80), (224, 224), (17, 301), (9, 5)])
    @pytest.mark.parametrize("size", [(32, 32), (16, 40)])
    def test_a_warped_square_comes_back_at_its_place(self, shape: tuple[int, int], size: tuple[int, int]) -> None:
        square_comes_back(Preprocessing(*size, **UNSCALED_GREY), shape)

    @pytest.mark.parametrize("shape", [(60, 80), (80, 60), (224, 224), (40, 101), (20, 25)])
    def test_a_cropped_square_comes_back_at_its_place(self, shape: tuple[int, int]) -> None:
        square_comes_back(Preprocessing(24, 32, resize_shorter_side=40, **UNSCALED_GREY), shape)

    def test_a_map_of_the_right_size_comes_back_unchanged(self) -> None:
        values = random_map(12, 10)
        assert np.array_equal(Preprocessing(12, 10, **UNSCALED).place(values, 12, 10), values)

    def test_a_crop_without_scaling_comes_back_unchanged_amid_zeros(self) -> None:
        values = random_map(8, 6)
        expected = np.zeros((12, 20), dtype=np.float32)
        expected[2:10, 7:13] = values
        placed = Preprocessing(8, 6, resize_shorter_side=12, **UNSCALED).place(values, 12, 20)
        assert np.array_equal(placed, expected)

    @settings(max_examples=200)
    @given(
        size=st.tuples(st.integers(1, 20), st.integers(1, 20)),
        image=st.tuples(st.integers(1, 60), st.integers(1, 60)),
        margin=st.one_of(st.none(), st.integers(0, 20)),
    )
    def test_a_constant_map_is_constant_where_seen_and_zero_elsewhere(
        self, size: tuple[int, int], image: tuple[int, int], margin: int | None
    ) -> None:
        preprocessing = Preprocessing(
            *size, resize_shorter_side=None if margin is None else max(size) + margin, **UNSCALED
        )
        placed = preprocessing.place(np.full(size, 3, dtype=np.float32), *image)
        left, top, right, bottom = preprocessing.seen(*image)
        expected = np.zeros(image)
        expected[math.floor(top) : math.ceil(bottom), math.floor(left) : math.ceil(right)] = 3
        assert np.allclose(placed, expected)

    @pytest.mark.parametrize("shorter_side", [None, 40])
    def test_a_ramp_over_the_input_is_the_ramp_over_the_image(self, shorter_side: int | None) -> None:
        preprocessing = Preprocessing(32, 32, resize_shorter_side=shorter_side, **UNSCALED)
        left, _, right, _ = preprocessing.seen(100, 130)
        ramp = np.tile((np.arange(32) + 0.5) / 32, (32, 1)).astype(np.float32)
        placed = preprocessing.place(ramp, 100, 130)
        columns = np.arange(130) + 0.5
        inside = (columns > left + 3) & (columns < right - 3)
        assert np.allclose(placed[50, inside], (columns[inside] - left) / (right - left), atol=1e-4)

    def test_a_reduced_copy_of_the_image_receives_the_reduced_map(self) -> None:
        values = random_map(16, 16)
        preprocessing = Preprocessing(16, 16, resize_shorter_side=20, **UNSCALED)
        whole, reduced = preprocessing.place(values, 400, 600), preprocessing.place(values, 200, 300)
        assert np.abs(whole.reshape(200, 2, 300, 2).mean((1, 3)) - reduced).max() < 0.1

    def test_a_map_of_another_size_is_refused(self) -> None:
        with pytest.raises(ValueError, match=r"values have shape \[3, 4\]; expected \[4, 4\]"):
            Preprocessing(4, 4, **UNSCALED).place(np.zeros((3, 4), dtype=np.float32), 8, 8)


def square_comes_back(preprocessing: Preprocessing, shape: tuple[int, int]) -> None:
    """Send a bright square at the centre through both directions and compare its outline."""
    height, width = shape
    rows, columns = slice(2 * height // 5, 3 * height // 5 + 1), slice(2 * width // 5, 3 * width // 5 + 1)
    pixels = np.zeros((height, width, 3), dtype=np.uint8)
    pixels[rows, columns] = 255
    placed = preprocessing.place(preprocessing.apply(pixels)[0], height, width)
    found_rows, found_columns = np.nonzero(placed > 0.5)
    left, top, right, bottom = preprocessing.seen(height, width)
    # An edge is known within a pixel of the image or of the input, whichever is coarser.
    row_tolerance = max(1.0, (bottom - top) / preprocessing.height)
    column_tolerance = max(1.0, (right - left) / preprocessing.width)
    assert abs(found_rows.min() - rows.start) <= row_tolerance
    assert abs(found_rows.max() + 1 - rows.stop) <= row_tolerance
    assert abs(found_columns.min() - columns.start) <= column_tolerance
    assert abs(found_columns.max() + 1 - columns.stop) <= column_tolerance


class TestValidation:
    @pytest.mark.parametrize(
        ("changes", "named"),
        [
            ({"height": 0}, "height is 0"),
            ({"width": -3}, "width is -3"),
            ({"resize_shorter_side": 0}, "resize_shorter_side is 0"),
            ({"resize_shorter_side": 9}, "resize_shorter_side is 9, .* at least 10"),
            ({"mean": (0.5,)}, "mean is .* give 3"),
            ({"mean": (0.5, 0.5, math.nan)}, "mean is .*nan"),
            ({"std": (1.0, 1.0)}, "std is .* give 3"),
            ({"std": (1.0, 0.0, 1.0)}, "std is .* above 0"),
            ({"std": (1.0, -1.0, 1.0)}, "std is .* above 0"),
            ({"std": (1.0, math.inf, 1.0)}, "std is .*inf"),
            ({"colour": Colour.GREY}, "mean is .* give 1 finite numbers for colour grey"),
        ],
    )
    def test_an_impossible_value_is_named(self, changes: dict[str, Any], named: str) -> None:
        with pytest.raises(ValueError, match=named):
            Preprocessing(**{"height": 10, "width": 8, **UNSCALED, **changes})

    @pytest.mark.parametrize(
        ("changes", "named"),
        [
            ({"size": 3}, "unknown preprocessing keys .*size"),
            ({"height": 8.5}, "height is 8.5"),
            ({"height": True}, "height is True"),
            ({"width": "8"}, "width is '8'"),
            ({"resize_shorter_side": "8"}, "resize_shorter_side is '8'"),
            ({"mean": 0.5}, "mean is 0.5"),
            ({"mean": ["a", 0, 0]}, "mean is"),
            ({"std": [1, 1, True]}, "std is"),
            ({"std": [1, 1, 0]}, "std is"),
            ({"interpolation": "magic"}, "interpolation is 'magic'; choose from"),
            ({"colour": "RGB"}, "colour is 'RGB'; choose from"),
            ({"colour": None}, "colour is None"),
        ],
    )
    def test_an_impossible_json_value_is_named(self, changes: dict[str, Any], named: str) -> None:
        with pytest.raises(ValueError, match=named):
            Preprocessing.from_json({**Preprocessing(8, 8, **UNSCALED).to_json(), **changes})

    @pytest.mark.parametrize("key", ["height", "width", "mean", "std"])
    def test_a_missing_json_value_is_named(self, key: str) -> None:
        values = Preprocessing(8, 8, **UNSCALED).to_json()
        del values[key]
        with pytest.raises(ValueError, match=f"{key}.* missing"):
            Preprocessing.from_json(values)


class TestJson:
    @pytest.mark.parametrize("colour", Colour)
    @pytest.mark.parametrize("interpolation", Interpolation)
    @pytest.mark.parametrize("shorter_side", [None, 256])
    def test_an_object_survives_json(
        self, colour: Colour, interpolation: Interpolation, shorter_side: int | None
    ) -> None:
        channels = 1 if colour is Colour.GREY else 3
        preprocessing = Preprocessing(
            224,
            200,
            mean=MEAN[:channels],
            std=STD[:channels],
            resize_shorter_side=shorter_side,
            interpolation=interpolation,
            colour=colour,
        )
        assert Preprocessing.from_json(json.loads(json.dumps(preprocessing.to_json()))) == preprocessing

    def test_optional_json_values_have_the_defaults_of_the_class(self) -> None:
        values = {"height": 8, "width": 8, "mean": [0, 0, 0], "std": [1, 1, 1]}
        assert Preprocessing.from_json(values) == Preprocessing(8, 8, **UNSCALED)


@pytest.mark.parametrize("name", ["squeezenet1_1", "mobilenet_v2"])
def test_a_fixture_photograph_is_prepared_as_its_network_expects(name: str) -> None:
    photographs = sorted(FIXTURES.glob("imagenet_val/*.JPEG"))[:3]
    if not photographs:
        pytest.skip(f"no fixtures in {FIXTURES}")
    torch = pytest.importorskip("torch")
    specification = importlib.util.spec_from_file_location("networks", FIXTURES / "networks.py")
    assert specification is not None
    assert specification.loader is not None
    networks = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(networks)
    _, side, mean, std = networks.CLASSIFIERS[name]
    for path in photographs:
        pixels = decode_image(path.read_bytes())
        warped = np.array(Image.fromarray(pixels).resize((side, side), Image.Resampling.BILINEAR))
        expected = networks.preprocess(name, torch.from_numpy(warped).permute(2, 0, 1)[None])[0].numpy()
        values = Preprocessing(side, side, mean=mean, std=std).apply(pixels)
        assert np.allclose(values, expected, rtol=0, atol=1e-6)
