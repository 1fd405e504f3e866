from typing import Any

import numpy as np
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from onnx_nodes import Single, normal

LARGEST = np.finfo(np.float32).max
SAME = ("SAME_UPPER", "SAME_LOWER")


@st.composite
def windows(draw: st.DrawFn) -> tuple[list[int], dict[str, Any]]:
    """Draw the sizes of an image and the attributes of a window that fits into it."""
    axes = draw(st.integers(1, 3))
    numbers = st.lists(st.integers(1, 3), min_size=axes, max_size=axes)
    sizes = draw(st.lists(st.integers(1, 7), min_size=axes, max_size=axes))
    attributes: dict[str, Any] = {"kernel_shape": draw(numbers), "strides": draw(numbers)}
    automatic = draw(st.sampled_from(("NOTSET", "NOTSET", "VALID", *SAME)))
    # ONNX Runtime refuses dilated windows together with automatic padding.
    attributes["dilations"] = draw(numbers) if automatic == "NOTSET" else [1] * axes
    pads = [0] * (2 * axes)
    if automatic == "NOTSET":
        # A window that sees nothing but padding has no average.
        pads = [draw(st.integers(0, min(2, kernel - 1))) for kernel in attributes["kernel_shape"] * 2]
        attributes["pads"] = pads
    else:
        attributes["auto_pad"] = automatic
    extents = [(n - 1) * d + 1 for n, d in zip(attributes["kernel_shape"], attributes["dilations"], strict=True)]
    padded = [size + pads[axis] + pads[axis + axes] for axis, size in enumerate(sizes)]
    strides, kernel = attributes["strides"], attributes["kernel_shape"]
    # Where a window is smaller than its stride, ONNX Runtime cuts the image or refuses it; torch does neither.
    assume(automatic not in SAME or all(size >= stride for size, stride in zip(kernel, strides, strict=True)))
    assume(automatic in SAME or all(extent <= size for extent, size in zip(extents, padded, strict=True)))
    return sizes, attributes


def assert_same(single: Single, opset: int) -> None:
    (result,), (wanted,) = single.by_pathlens(opset), single.by_runtime(opset)
    assert result.shape == wanted.shape
    # The maximum of padding alone is minus infinity to torch and the lowest number to ONNX Runtime.
    np.testing.assert_allclose(np.clip(result, -LARGEST, LARGEST), wanted, 1e-4, 1e-5)


def transposed_sizes(sizes: list[int], attributes: dict[str, Any], more: list[int]) -> list[int]:
    pads = attributes.get("pads", [0] * (2 * len(sizes)))
    return [
        (size - 1) * attributes["strides"][axis]
        + (attributes["kernel_shape"][axis] - 1) * attributes["dilations"][axis]
        + 1
        + more[axis]
        - pads[axis]
        - pads[axis + len(sizes)]
        for axis, size in enumerate(sizes)
    ]


@given(windows(), st.integers(1, 2), st.booleans())
@settings(max_examples=100)
def test_convolutions_of_any_geometry_are_those_of_onnx_runtime(
    window: tuple[list[int], dict[str, Any]], groups: int, has_bias: bool
) -> None:
    sizes, attributes = window
    weight = normal(2 * groups, 3, *attributes["kernel_shape"])
    bias = normal(2 * groups, seed=1) if has_bias else None
    image = normal(2, 3 * groups, *sizes)
    assert_same(Single("Conv", [image, weight, bias], {**attributes, "group": groups}), 13)


@given(windows(), st.integers(1, 2), st.booleans(), st.data())
@settings(max_examples=100)
def test_transposed_convolutions_of_any_geometry_are_those_of_onnx_runtime(
    window: tuple[list[int], dict[str, Any]], groups: int, has_bias: bool, data: st.DataObject
) -> None:
    sizes, attributes = window
    more = [data.draw(st.integers(0, max(0, stride - 1))) for stride in attributes["strides"]]
    assume(min(transposed_sizes(sizes, attributes, more)) > 0)
    weight = normal(3 * groups, 2, *attributes["kernel_shape"])
    bias = normal(2 * groups, seed=1) if has_bias else None
    image = normal(2, 3 * groups, *sizes)
    single = Single("ConvTranspose", [image, weight, bias], {**attributes, "group": groups, "output_padding": more})
    assert_same(single, 13)


@given(windows(), st.booleans())
@settings(max_examples=100)
def test_maxima_over_windows_of_any_geometry_are_those_of_onnx_runtime(
    window: tuple[list[int], dict[str, Any]], ceil_mode: bool
) -> None:
    sizes, attributes = window
    assert_same(Single("MaxPool", [normal(2, 3, *sizes)], {**attributes, "ceil_mode": int(ceil_mode)}), 13)


@given(windows(), st.booleans(), st.booleans())
@settings(max_examples=100)
def test_averages_over_windows_of_any_geometry_are_those_of_onnx_runtime(
    window: tuple[list[int], dict[str, Any]], ceil_mode: bool, count_padding: bool
) -> None:
    sizes, attributes = window
    choices = {"ceil_mode": int(ceil_mode), "count_include_pad": int(count_padding)}
    assert_same(Single("AveragePool", [normal(2, 3, *sizes)], {**attributes, **choices}), 19)


@given(windows(), st.booleans(), st.integers(1, 3))
@settings(max_examples=100)
def test_norms_over_windows_of_any_geometry_are_those_of_onnx_runtime(
    window: tuple[list[int], dict[str, Any]], ceil_mode: bool, order: int
) -> None:
    sizes, attributes = window
    assert_same(Single("LpPool", [normal(2, 3, *sizes)], {**attributes, "ceil_mode": int(ceil_mode), "p": order}), 18)
