import io
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from pathlens.attribution.rendering import MAX_SIDE, fit_within, render_heatmap, render_overlay

Map = NDArray[np.float32]


def decoded(png: bytes) -> NDArray[np.int64]:
    with Image.open(io.BytesIO(png)) as image:
        assert (image.format, image.mode) == ("PNG", "RGB")
        pixels: NDArray[np.int64] = np.array(image, dtype=np.int64)
    return pixels


def ramp(low: float, high: float, side: int = 40) -> Map:
    return np.linspace(low, high, side * side, dtype=np.float32).reshape(side, side)


def photograph(height: int = 40, width: int = 40) -> NDArray[np.uint8]:
    return np.random.default_rng(5).integers(0, 256, (height, width, 3), dtype=np.uint8)


def lightness_and_colour(colours: NDArray[Any]) -> NDArray[np.float64]:
    """CIELAB [N, 3] of sRGB colours [N, 3] in [0, 255] (IEC 61966-2-1, white point D65)."""
    encoded = colours / 255
    linear = np.where(encoded <= 0.04045, encoded / 12.92, ((encoded + 0.055) / 1.055) ** 2.4)
    to_xyz = np.array(
        [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.119192, 0.9503041]]
    )
    ratio = linear @ to_xyz.T / [0.95047, 1.0, 1.08883]
    x, y, z = np.where(ratio > 216 / 24389, np.cbrt(ratio), (24389 / 27 * ratio + 16) / 116).T
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=1)


def shown(values: list[float], signed: bool) -> NDArray[np.int64]:
    """The colours [N, 3] of single values in a picture."""
    return decoded(render_heatmap(np.array([values], dtype=np.float32), signed)).reshape(-1, 3)


class TestColours:
    @pytest.mark.parametrize("signed", [True, False])
    def test_lightness_grows_with_magnitude(self, signed: bool) -> None:
        lightness = lightness_and_colour(decoded(render_heatmap(ramp(0, 1), signed)).reshape(-1, 3))[:, 0]
        assert np.diff(lightness).min() > -1
        assert lightness[-1] - lightness[0] > 40

    @pytest.mark.parametrize("signed", [True, False])
    def test_equal_steps_of_the_map_are_equal_steps_of_lightness(self, signed: bool) -> None:
        lightness = lightness_and_colour(shown([*np.linspace(0, 1, 9)], signed))[:, 0]
        # The signed colours are smoothed around zero, which makes the first step smaller.
        assert np.diff(lightness).max() < 1.7 * np.diff(lightness).min()

    def test_both_signs_are_equally_light(self) -> None:
        lightness = lightness_and_colour(shown([-1, -0.5, 0, 0.5, 1], signed=True))[:, 0]
        assert lightness[0] == pytest.approx(lightness[4], abs=2)
        assert lightness[1] == pytest.approx(lightness[3], abs=2)

    def test_the_signs_are_red_and_blue(self) -> None:
        negative, positive = shown([-1, 1], signed=True)
        assert negative[2] > 2 * negative[0]
        assert positive[0] > 2 * positive[2]

    @pytest.mark.parametrize("signed", [True, False])
    def test_a_silent_map_is_one_neutral_colour(self, signed: bool) -> None:
        colours = decoded(render_heatmap(np.zeros((5, 7), dtype=np.float32), signed))
        assert colours.shape == (5, 7, 3)
        assert np.ptp(colours.reshape(-1, 3), axis=0).max() == 0
        assert np.ptp(colours[0, 0]) <= 5

    def test_zero_has_the_neutral_colour_in_any_signed_map(self) -> None:
        neutral = decoded(render_heatmap(np.zeros((1, 1), dtype=np.float32), signed=True))[0, 0]
        assert np.array_equal(shown([-3, 0, 1], signed=True)[1], neutral)

    def test_negative_values_count_as_zero_without_sign(self) -> None:
        colours = shown([-1, 0, 1], signed=False)
        assert np.array_equal(colours[0], colours[1])


class TestScale:
    @given(st.floats(1e-30, 1e30), st.booleans())
    def test_a_factor_changes_nothing(self, factor: float, signed: bool) -> None:
        values = ramp(-1, 1) if signed else ramp(0, 1)
        difference = decoded(render_heatmap(values * np.float32(factor), signed)) - decoded(
            render_heatmap(values, signed)
        )
        assert np.abs(difference).max() <= 6

    def test_one_hot_pixel_does_not_blank_the_rest(self) -> None:
        values = ramp(-1, 1)
        hot = values.copy()
        hot[0, 0] = -1e6
        assert np.abs(decoded(render_heatmap(hot, True)) - decoded(render_heatmap(values, True))).max() <= 6

    @pytest.mark.parametrize("signed", [True, False])
    def test_a_single_pixel_in_a_silent_map_is_shown(self, signed: bool) -> None:
        values = np.zeros((100, 100), dtype=np.float32)
        values[50, 50] = 1e-9
        colours = decoded(render_heatmap(values, signed))
        assert np.abs(colours[50, 50] - colours[0, 0]).max() > 100

    @pytest.mark.parametrize("largest", [np.finfo(np.float32).max, np.finfo(np.float32).smallest_subnormal])
    def test_extreme_magnitudes_are_drawn(self, largest: np.float32) -> None:
        values = np.array([[-largest, 0, largest]], dtype=np.float32)
        assert np.array_equal(decoded(render_heatmap(values, True))[0], shown([-1, 0, 1], signed=True))

    @pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
    def test_what_is_not_finite_is_refused(self, value: float) -> None:
        with pytest.raises(ValueError, match="NaN or infinity"):
            render_heatmap(np.full((3, 3), value, dtype=np.float32), signed=True)

    @pytest.mark.parametrize("shape", [(3,), (1, 3, 3), (0, 3)])
    def test_what_is_no_map_is_refused(self, shape: tuple[int, ...]) -> None:
        with pytest.raises(ValueError, match="shape"):
            render_heatmap(np.zeros(shape, dtype=np.float32), signed=True)


class TestOverlay:
    def test_the_image_stays_readable_where_the_map_is_silent(self) -> None:
        pixels = np.repeat(photograph()[:, :, :1], 3, axis=2)
        colours = decoded(render_overlay(np.zeros((40, 40), dtype=np.float32), pixels, signed=True))
        assert np.corrcoef(colours.mean(axis=2).ravel(), pixels.mean(axis=2).ravel())[0, 1] > 0.95

    @pytest.mark.parametrize("signed", [True, False])
    def test_opacity_grows_with_magnitude(self, signed: bool) -> None:
        # What remains of the difference between a black and a white image is what the map lets through.
        values = ramp(0, 1)
        black, white = (np.full((40, 40, 3), level, dtype=np.uint8) for level in (0, 255))
        through = decoded(render_overlay(values, white, signed)) - decoded(render_overlay(values, black, signed))
        opacity = 1 - through[:, :, 0].ravel() / through[0, 0, 0]
        assert np.diff(opacity).min() > -0.02
        assert opacity[0] == 0
        assert opacity[-1] > 0.8

    def test_strong_values_have_the_colours_of_the_heatmap(self) -> None:
        values = np.array([[-1.0, 1.0]], dtype=np.float32)
        over_black = decoded(render_overlay(values, np.zeros((1, 2, 3), dtype=np.uint8), signed=True))
        assert np.abs(over_black - decoded(render_heatmap(values, signed=True))).max() < 30

    def test_a_map_of_another_size_than_the_image_is_refused(self) -> None:
        with pytest.raises(ValueError, match="place the map on the image"):
            render_overlay(np.zeros((4, 4), dtype=np.float32), photograph(), signed=True)


class TestSize:
    @pytest.mark.parametrize("shape", [(1, 1), (3, 50), (64, 48)])
    def test_pictures_have_the_size_of_the_map(self, shape: tuple[int, int]) -> None:
        values = np.zeros(shape, dtype=np.float32)
        assert decoded(render_heatmap(values, True)).shape == (*shape, 3)
        assert decoded(render_overlay(values, photograph(*shape), True)).shape == (*shape, 3)

    @pytest.mark.parametrize(
        ("shape", "fitted"), [((4096, 1024), (2048, 512)), ((10, 5000), (4, 2048)), ((1, 9000), (1, 2048))]
    )
    def test_longer_pictures_are_reduced_in_proportion(self, shape: tuple[int, int], fitted: tuple[int, int]) -> None:
        values = np.zeros(shape, dtype=np.float32)
        assert decoded(render_heatmap(values, True)).shape == (*fitted, 3)
        assert decoded(render_overlay(values, photograph(*shape), True)).shape == (*fitted, 3)

    def test_the_largest_picture_fits_into_a_message(self) -> None:
        noise = np.random.default_rng(0).normal(size=(MAX_SIDE, MAX_SIDE)).astype(np.float32)
        assert len(render_overlay(noise, photograph(MAX_SIDE, MAX_SIDE), True)) < 16 * 2**20

    def test_what_fits_is_left_alone(self) -> None:
        assert np.array_equal(fit_within(photograph(), 40), photograph())

    def test_reducing_takes_means(self) -> None:
        values = np.random.default_rng(0).normal(size=(8, 16)).astype(np.float32)
        assert np.allclose(fit_within(values, 8), values.reshape(4, 2, 8, 2).mean((1, 3)), atol=1e-6)

    @pytest.mark.parametrize("array", [photograph(30, 20), ramp(0, 1)])
    def test_reducing_keeps_the_kind_of_array(self, array: NDArray[Any]) -> None:
        fitted = fit_within(array, 10)
        assert fitted.dtype == array.dtype
        assert fitted.shape[2:] == array.shape[2:]


@pytest.mark.parametrize("signed", [True, False])
def test_the_same_map_gives_the_same_bytes(signed: bool) -> None:
    values = np.random.default_rng(0).normal(size=(30, 30)).astype(np.float32)
    assert render_heatmap(values, signed) == render_heatmap(values.copy(), signed)
    assert render_overlay(values, photograph(30, 30), signed) == render_overlay(
        values.copy(), photograph(30, 30), signed
    )
