"""Numpy arrays and masks as messages, and back."""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pathlens.errors import InvalidRequestError
from pathlens.explanation import TapMask
from pathlens.wire.v1 import explanation_service_pb2 as pb

_TYPES: dict[int, np.dtype[Any]] = {
    pb.DATA_TYPE_UINT8: np.dtype(np.uint8),
    # "<" is little-endian whatever the machine.
    pb.DATA_TYPE_FLOAT32: np.dtype("<f4"),
}


def tensor_to_message(array: NDArray[np.uint8] | NDArray[np.float32]) -> pb.Tensor:
    """Write an array of uint8 or float32.

    Raises:
        InvalidRequestError: If the array has another type: converting it could change what it means.
    """
    # Of any byte order; to ask for the name takes longer than all else here.
    if (array.dtype.kind, array.dtype.itemsize) not in (("u", 1), ("f", 4)):
        raise InvalidRequestError(
            f"The array is {array.dtype.name}; send pixels as uint8 or the classifier's own input as float32.",
            reason="TENSOR_INVALID",
            field="image.tensor",
            metadata={"data_type": array.dtype.name},
        )
    data_type = pb.DATA_TYPE_UINT8 if array.dtype == np.uint8 else pb.DATA_TYPE_FLOAT32
    data = np.ascontiguousarray(array, dtype=_TYPES[data_type]).tobytes()
    return pb.Tensor(data_type=data_type, shape=array.shape, data=data)


def tensor_from_message(message: pb.Tensor) -> NDArray[np.uint8] | NDArray[np.float32]:
    """Read an array; it shares the message's memory and is read-only.

    Raises:
        InvalidRequestError: If type, shape and number of bytes do not fit together.
    """
    data_type = _TYPES.get(message.data_type)
    shape = tuple(message.shape)
    if data_type is None or min(shape, default=0) < 0:
        raise _invalid(message, "expected data type UINT8 or FLOAT32 and no negative dimension")
    if len(message.data) != math.prod(shape) * data_type.itemsize:
        raise _invalid(message, f"expected {math.prod(shape) * data_type.itemsize} bytes")
    try:
        return np.frombuffer(message.data, data_type).reshape(shape)
    except ValueError as error:
        # The number of bytes fits, yet numpy has no such array: too many dimensions, or an empty one of vast sides.
        raise _invalid(message, "expected the shape of an image") from error


def mask_to_message(part: TapMask) -> pb.TapMask:
    """Write the mask of one tap, bit-packed with the first neuron in the least significant bit."""
    return pb.TapMask(tap=part.tap, shape=part.mask.shape, kept=part.kept, mask=part.pack())


def mask_from_message(message: pb.TapMask) -> TapMask:
    """Read the mask of one tap."""
    return TapMask.unpack(message.tap, tuple(message.shape), message.mask)


def _invalid(message: pb.Tensor, rule: str) -> InvalidRequestError:
    return InvalidRequestError(
        f"Not a tensor: data type {message.data_type}, shape {list(message.shape)} and {len(message.data)} bytes; "
        f"{rule}.",
        reason="TENSOR_INVALID",
        field="image.tensor",
        metadata={"data_type": message.data_type, "shape": list(message.shape), "bytes": len(message.data)},
    )
