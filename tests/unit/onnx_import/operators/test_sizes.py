"""Shapes and the arithmetic on them, with known and with free sizes."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.export import Dim

from onnx_nodes import Array, Single, integers, normal
from pathlens.errors import CaptureError
from pathlens.onnx_import.operators import Node, implementation_of
from pathlens.onnx_import.values import Value, as_integers, as_number, as_sizes, as_tensor, is_symbolic, known

POSITIONS = st.one_of(st.integers(-8, 8), st.sampled_from((2**63 - 1, -(2**63))))
STEPS = st.tuples(st.sampled_from(("Add", "Mul", "Div", "Mod")), st.integers(1, 5))


def call(operator: str, *inputs: Value | None, **attributes: object) -> Value:
    node = Node("the node", operator, "", 21, ("",) * len(inputs), ("result",), attributes)
    result = implementation_of(node)(node, inputs)
    return result[0] if isinstance(result, tuple) else result


def computed(sizes: Value, steps: list[tuple[str, int]]) -> list[Any]:
    """Do arithmetic on sizes as exporters write it: on single numbers that are taken out and put together again."""
    for operator, factor in steps:
        first = call("Gather", sizes, np.array(0), axis=0)
        changed = call(operator, first, np.array(factor))
        rest = call("Slice", sizes, integers(1), integers(2**63 - 1))
        whole = call("Concat", rest, call("Unsqueeze", changed, integers(0)), axis=0)
        sizes = call("Where", call("Less", whole, integers(0)), integers(-7), whole)
    return as_sizes(call("Concat", sizes, call("Reshape", call("ReduceProd", sizes), integers(1)), axis=0))


class Sizes(nn.Module):
    def __init__(self, steps: list[tuple[str, int]]) -> None:
        super().__init__()
        self.steps = steps

    def forward(self, images: Tensor) -> Tensor:
        sizes = computed(call("Shape", images), self.steps)
        return torch.stack([images.new_full((), size) for size in sizes])


@given(st.lists(STEPS, min_size=1, max_size=6))
@settings(max_examples=10)
def test_arithmetic_on_a_free_batch_gives_what_it_gives_on_its_value(steps: list[tuple[str, int]]) -> None:
    images, dimensions = torch.zeros(2, 3, 4), ({0: Dim("batch", min=1)},)
    module = torch.export.export(Sizes(steps), (images,), dynamic_shapes=dimensions, strict=False).module()
    for batch in (1, 2, 7):
        expected = computed(integers(batch, 3, 4), steps)
        assert module(torch.zeros(batch, 3, 4)).tolist() == expected


@given(POSITIONS, POSITIONS, st.sampled_from((-3, -2, -1, 1, 2, 3)), st.integers(1, 6))
def test_slices_are_those_of_python_for_arrays_and_tensors(start: int, end: int, step: int, size: int) -> None:
    array = np.arange(2 * size).reshape(2, size)
    for value in (array, torch.from_numpy(array.copy())):
        result = call("Slice", value, integers(start), integers(end), integers(-1), integers(step))
        np.testing.assert_array_equal(np.asarray(result), array[:, start:end:step])


@given(st.permutations([2, 3, 4]), st.integers(0, 2), st.booleans())
def test_a_reshape_finds_the_size_that_is_left_out(sizes: list[int], left_out: int, as_array: bool) -> None:
    array = normal(4, 3, 2)
    wanted = [-1 if axis == left_out else size for axis, size in enumerate(sizes)]
    value = array if as_array else torch.from_numpy(array.copy())
    np.testing.assert_array_equal(np.asarray(call("Reshape", value, integers(*wanted))), array.reshape(sizes))


@pytest.mark.parametrize(("first", "second"), [(7, -2), (-7, 2), (-7, -2), (7, 2), (6, -3)])
def test_whole_numbers_are_divided_towards_zero(first: int, second: int) -> None:
    assert as_sizes(call("Div", integers(first), integers(second))) == [int(first / second)]


def test_a_known_array_stays_one() -> None:
    array = call("Concat", call("Shape", normal(4, 5)), integers(-1), axis=0)
    assert isinstance(array, np.ndarray)
    assert array.dtype == np.int64
    assert array.tolist() == [4, 5, -1]


class Refused(nn.Module):
    def __init__(self, operator: str) -> None:
        super().__init__()
        self.operator = operator

    def forward(self, images: Tensor) -> Tensor:
        sizes = call("Shape", images)
        assert isinstance(sizes, np.ndarray)
        assert is_symbolic(sizes)
        if self.operator == "Cast":
            call("Cast", sizes, to=1)
        elif self.operator == "Sqrt":
            call("Sqrt", sizes)
        elif self.operator == "Add":
            call("Add", images, sizes)
        else:
            as_integers(sizes)
        return images


@pytest.mark.parametrize(
    ("operator", "message"),
    [
        ("Cast", "converts the batch size to float32"),
        ("Sqrt", "something of the batch size that is no whole number"),
        ("Add", "computes with the batch size as if it were a pixel"),
        ("axes", "depends on the batch size"),
    ],
)
def test_a_free_size_is_never_made_a_pixel(operator: str, message: str) -> None:
    with pytest.raises(CaptureError, match=message):
        torch.export.export(
            Refused(operator), (torch.zeros(2, 3, 3),), dynamic_shapes=({0: Dim("batch", min=1)},), strict=False
        )


def test_a_size_that_depends_on_the_image_is_refused() -> None:
    for take in (as_sizes, as_number, as_integers):
        with pytest.raises(CaptureError, match="computed from the image"):
            take(torch.ones(1))


def test_several_numbers_are_not_taken_for_one() -> None:
    with pytest.raises(CaptureError, match=r"shape \[2\] where a single number is expected"):
        as_number(integers(1, 2))


@pytest.mark.parametrize("value", [3, [1, 2], np.int64(3), np.array([1, 2], dtype=object), np.array(1.5)])
def test_numbers_without_symbols_are_plain_arrays(value: Array) -> None:
    assert not is_symbolic(known(value))


def test_a_tensor_made_of_a_known_array_does_not_share_its_memory() -> None:
    array = np.flip(normal(3))
    tensor = as_tensor(array)
    tensor[0] = 100
    assert array[0] != 100


def test_a_squeeze_keeps_a_free_batch() -> None:
    class Squeezed(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            result = call("Squeeze", images)
            assert isinstance(result, Tensor)
            return result

    dimensions = ({0: Dim("batch", min=1)},)
    module = torch.export.export(Squeezed(), (torch.zeros(2, 1, 3),), dynamic_shapes=dimensions, strict=False).module()
    assert module(torch.zeros(1, 1, 3)).shape == (1, 3)


def test_a_constant_of_a_free_shape_is_a_tensor_of_its_type() -> None:
    class Filled(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            filled = call("ConstantOfShape", call("Shape", images), value=integers(5))
            count = call("Range", np.array(0), call("Shape", images, end=1)[0:1].reshape(()), np.array(1))
            assert isinstance(filled, Tensor)
            assert isinstance(count, Tensor)
            return filled + count.reshape(-1, 1)

    dimensions = ({0: Dim("batch", min=1)},)
    module = torch.export.export(Filled(), (torch.zeros(2, 1),), dynamic_shapes=dimensions, strict=False).module()
    assert module(torch.zeros(3, 1)).tolist() == [[5], [6], [7]]


def test_constants_are_known_in_every_form() -> None:
    forms = {"value": integers(3), "value_int": 3, "value_ints": (3,), "value_float": 3.0, "value_floats": (3.0,)}
    for name, value in forms.items():
        constant = Single("Constant", [], {name: value})
        assert np.asarray(call("Constant", **{name: value})).item() == 3, constant
