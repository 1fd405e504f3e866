"""Putting values together and taking parts of them."""

import numpy as np
import torch
from torch import SymInt, Tensor
from torch.nn import functional as F

from pathlens.errors import CaptureError
from pathlens.onnx_import.operators.registry import Node, operator
from pathlens.onnx_import.values import (
    Inputs,
    Size,
    Value,
    as_integers,
    as_number,
    as_sizes,
    as_tensor,
    first_tensor,
    is_known,
    known,
    optional,
    required,
    required_tensor,
)

_BEFORE_ANY_POSITION = -(2**31)
_MODES = {"constant": "constant", "reflect": "reflect", "edge": "replicate", "wrap": "circular"}


@operator("Concat")
def concatenate(node: Node, inputs: Inputs) -> Value:
    """Put values one after another along an axis."""
    axis = node.attributes["axis"]
    arrays = [value for value in inputs if is_known(value)]
    if len(arrays) == len(inputs):
        return known(np.concatenate(arrays, axis))
    return torch.cat([required_tensor(inputs, position) for position in range(len(inputs))], axis)


@operator("Split")
def split(node: Node, inputs: Inputs) -> tuple[Value, ...]:
    """Cut into parts of given sizes, or into as many as there are outputs."""
    value, given = required(inputs, 0), optional(inputs, 1)
    axis = node.attributes.get("axis", 0)
    if given is not None:
        sizes = as_integers(given)
    else:
        # With an uneven number, the last part is the smaller one.
        parts = node.attributes.get("num_outputs", len(node.outputs))
        total = int(value.shape[axis])
        largest = -(-total // parts)
        sizes = [largest] * (parts - 1) + [total - largest * (parts - 1)]
    if is_known(value):
        return tuple(known(part) for part in np.split(value, np.cumsum(sizes)[:-1], axis))
    return torch.split(value, sizes, axis)


@operator("Slice")
def take_slice(_node: Node, inputs: Inputs) -> Value:
    """Take every so-manyth element between two positions of some axes."""
    value = required(inputs, 0)
    starts, ends = as_sizes(required(inputs, 1)), as_sizes(required(inputs, 2))
    given_axes, given_steps = optional(inputs, 3), optional(inputs, 4)
    axes = list(range(len(starts))) if given_axes is None else as_integers(given_axes)
    steps = [1] * len(starts) if given_steps is None else as_integers(given_steps)
    taken: list[slice] = [slice(None)] * value.ndim
    reversed_axes = []
    for axis, start, end, step in zip((axis % value.ndim for axis in axes), starts, ends, steps, strict=True):
        if step > 0:
            taken[axis] = slice(_within_range(start), _within_range(end), step)
        else:
            # torch takes no negative steps: the axis is reversed and the positions are counted from its other end.
            first, last = _backwards(start, end, value.shape[axis])
            taken[axis] = slice(first, last, -step)
            reversed_axes.append(axis)
    if is_known(value):
        return known(np.flip(value, tuple(reversed_axes))[tuple(taken)])
    return (value.flip(reversed_axes) if reversed_axes else value)[tuple(taken)]


def _within_range(position: Size) -> Size:
    # Exporters write the smallest integer for "from the first", which torch shortens with a warning.
    return position if isinstance(position, SymInt) else max(position, _BEFORE_ANY_POSITION)


def _backwards(start: Size, end: Size, size: Size) -> tuple[int, int]:
    if isinstance(start, SymInt) or isinstance(end, SymInt) or isinstance(size, SymInt):
        raise CaptureError("reverses an axis whose size depends on the batch size; keep the batch as it is")
    # Counted from the start, and no further than one position before it.
    first, last = (min(max(number + size if number < 0 else number, -1), size - 1) for number in (start, end))
    return size - 1 - first, size - 1 - last


@operator("Gather")
def gather(node: Node, inputs: Inputs) -> Value:
    """Take whole slices at given positions of one axis."""
    value, positions = required(inputs, 0), required(inputs, 1)
    axis = node.attributes.get("axis", 0) % value.ndim
    if is_known(value) and is_known(positions):
        return known(np.take(value, positions, axis))
    tensor = as_tensor(value, first_tensor(inputs))
    if is_known(positions) and positions.ndim == 0:
        return tensor.select(axis, as_number(positions))
    chosen = _from_the_start(positions, tensor, axis)
    if chosen.ndim == 1:
        return tensor.index_select(axis, chosen)
    taken = tensor.index_select(axis, chosen.reshape(-1))
    return taken.reshape([*tensor.shape[:axis], *chosen.shape, *tensor.shape[axis + 1 :]])


@operator("GatherElements")
def gather_elements(node: Node, inputs: Inputs) -> Value:
    """Take single elements at given positions of one axis."""
    tensor = required_tensor(inputs, 0)
    axis = node.attributes.get("axis", 0) % tensor.ndim
    return tensor.gather(axis, _from_the_start(required(inputs, 1), tensor, axis))


def _from_the_start(positions: Value, tensor: Tensor, axis: int) -> Tensor:
    """Turn positions counted from the end into such counted from the start, which torch wants."""
    if is_known(positions) and not (positions < 0).any():
        return as_tensor(positions.astype(np.int64), tensor)
    chosen = as_tensor(positions, tensor).to(torch.int64)
    return torch.where(chosen < 0, chosen + tensor.shape[axis], chosen)


@operator("Pad")
def pad(node: Node, inputs: Inputs) -> Value:
    """Add positions around a value; negative numbers cut."""
    tensor, pads = required_tensor(inputs, 0), as_integers(required(inputs, 1))
    filler, given_axes = optional(inputs, 2), optional(inputs, 3)
    axes = list(range(tensor.ndim)) if given_axes is None else [axis % tensor.ndim for axis in as_integers(given_axes)]
    ends = {axis: (pads[number], pads[number + len(axes)]) for number, axis in enumerate(axes)}
    # torch counts the axes from the last one.
    backwards = [end for axis in reversed(range(tensor.ndim)) for end in ends.get(axis, (0, 0))]
    mode = node.attributes.get("mode", "constant")
    if mode == "constant":
        return F.pad(tensor, backwards, value=0 if filler is None else as_number(filler))
    if any(backwards[-4:]):
        raise CaptureError(f"pads the batch or the channels with mode {mode!r}; only positions can be padded that way")
    return F.pad(tensor, backwards[:-4], _MODES[mode])
