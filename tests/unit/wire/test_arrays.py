"""Tensors and masks on the wire, byte by byte."""

import math
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from pathlens.errors import InvalidRequestError
from pathlens.explanation import TapMask
from pathlens.wire.arrays import mask_from_message, mask_to_message, tensor_from_message, tensor_to_message
from pathlens.wire.v1 import explanation_service_pb2 as pb


def test_floats_are_little_endian_in_row_major_order() -> None:
    message = tensor_to_message(np.array([[1.0, 2.0], [3.0, 4.0]], np.float32))
    assert message.data == struct.pack("<4f", 1, 2, 3, 4)
    assert (message.data_type, list(message.shape)) == (pb.DATA_TYPE_FLOAT32, [2, 2])


def test_bytes_are_in_row_major_order() -> None:
    message = tensor_to_message(np.arange(6, dtype=np.uint8).reshape(2, 3))
    assert message.data == bytes(range(6))
    assert (message.data_type, list(message.shape)) == (pb.DATA_TYPE_UINT8, [2, 3])


@pytest.mark.parametrize("dtype", ["<f4", ">f4"])
def test_the_memory_order_and_byte_order_of_the_sender_do_not_show(dtype: str) -> None:
    values = np.arange(6, dtype=dtype).reshape(3, 2).T
    message = tensor_to_message(values)
    assert message.data == struct.pack("<6f", 0, 2, 4, 1, 3, 5)
    np.testing.assert_array_equal(tensor_from_message(message), values)


@given(shape=st.lists(st.integers(0, 4), max_size=4), extra=st.integers(-64, 64), floats=st.booleans())
@settings(max_examples=100)
def test_a_wrong_number_of_bytes_is_refused(shape: list[int], extra: int, floats: bool) -> None:
    kind, width = (pb.DATA_TYPE_FLOAT32, 4) if floats else (pb.DATA_TYPE_UINT8, 1)
    right = math.prod(shape) * width
    message = pb.Tensor(data_type=kind, shape=shape, data=bytes(max(0, right + extra)))
    if len(message.data) == right:
        assert tensor_from_message(message).shape == tuple(shape)
        return
    with pytest.raises(InvalidRequestError) as caught:
        tensor_from_message(message)
    assert (caught.value.reason, caught.value.field) == ("TENSOR_INVALID", "image.tensor")
    assert str(right) in caught.value.message


@pytest.mark.parametrize("data_type", [pb.DATA_TYPE_UNSPECIFIED, 3, -1])
def test_an_unknown_element_type_is_refused(data_type: pb.DataType.ValueType) -> None:
    with pytest.raises(InvalidRequestError, match="UINT8 or FLOAT32"):
        tensor_from_message(pb.Tensor(data_type=data_type, shape=[1], data=b"1234"))


@pytest.mark.parametrize(
    ("shape", "data"),
    [
        ([-1, -1], b"a"),
        ([-(2**63)], b""),
        ([2**62, 4], b""),
        ([0, 2**62, 2**62], b""),
        ([1] * 65, b"a"),
        ([0] * 1000, b""),
    ],
)
def test_a_shape_that_no_array_can_have_is_refused(shape: list[int], data: bytes) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        tensor_from_message(pb.Tensor(data_type=pb.DATA_TYPE_UINT8, shape=shape, data=data))
    assert caught.value.reason == "TENSOR_INVALID"


def test_the_first_neuron_of_a_byte_is_its_least_significant_bit() -> None:
    mask = np.zeros(10, bool)
    mask[[0, 3, 8]] = True
    message = mask_to_message(TapMask("relu#1", mask))
    assert message.mask == bytes([0b0000_1001, 0b0000_0001])
    assert (message.tap, message.kept, list(message.shape)) == ("relu#1", 3, [10])


@given(mask=hnp.arrays(bool, hnp.array_shapes(max_dims=3, max_side=7)))
@settings(max_examples=100)
def test_bit_number_i_of_a_mask_is_neuron_number_i_in_row_major_order(mask: NDArray[np.bool_]) -> None:
    message = mask_to_message(TapMask("tap", mask))
    bits = [message.mask[i // 8] >> i % 8 & 1 for i in range(8 * len(message.mask))]
    assert bits[: mask.size] == [int(kept) for kept in mask.flat]
    assert not any(bits[mask.size :])
    assert len(message.mask) == math.ceil(mask.size / 8)
    assert message.kept == mask.sum()
    np.testing.assert_array_equal(mask_from_message(message).mask, mask)
