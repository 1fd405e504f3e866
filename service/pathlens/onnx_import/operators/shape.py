"""Shapes: reading them, and giving values another one."""

import numpy as np
import torch
from torch import SymInt

from pathlens.onnx_import.operators.registry import Node, operator
from pathlens.onnx_import.values import (
    Inputs,
    Size,
    Value,
    as_integers,
    as_number,
    as_sizes,
    is_known,
    known,
    optional,
    product,
    required,
    required_tensor,
)


@operator("Shape")
def shape(node: Node, inputs: Inputs) -> Value:
    """Return the sizes from axis `start` to axis `end`."""
    sizes = list(required(inputs, 0).shape)
    return known(sizes[node.attributes.get("start", 0) : node.attributes.get("end", len(sizes))])


@operator("Size")
def size(_node: Node, inputs: Inputs) -> Value:
    """Return the number of elements."""
    return known(product(required(inputs, 0).shape))


@operator("Reshape")
def reshape(node: Node, inputs: Inputs) -> Value:
    """Give the elements other sizes; 0 keeps a size and -1 takes what is left."""
    value, wanted = required(inputs, 0), as_sizes(required(inputs, 1))
    if not node.attributes.get("allowzero", 0):
        wanted = [value.shape[axis] if _is(item, 0) else item for axis, item in enumerate(wanted)]
    return value.reshape(wanted)


@operator("Flatten")
def flatten(node: Node, inputs: Inputs) -> Value:
    """Make a matrix: the axes before `axis` are its rows, the others its columns."""
    value, axis = required(inputs, 0), node.attributes.get("axis", 1)
    axis = axis + value.ndim if axis < 0 else axis
    if not is_known(value) and axis == 1 and value.ndim > 1:
        return value.flatten(1)
    return value.reshape([product(value.shape[:axis]), product(value.shape[axis:])])


@operator("Squeeze")
def squeeze(_node: Node, inputs: Inputs) -> Value:
    """Drop axes of size 1: the given ones, or all."""
    value, given = required(inputs, 0), optional(inputs, 1)
    if given is None:
        # A symbolic size is the batch, which is kept even where it happens to be 1.
        axes = [axis for axis, item in enumerate(value.shape) if _is(item, 1)]
    else:
        axes = [axis % value.ndim for axis in as_integers(given)]
    if is_known(value):
        return known(np.squeeze(value, tuple(axes)))
    return value.squeeze(axes)


@operator("Unsqueeze")
def unsqueeze(_node: Node, inputs: Inputs) -> Value:
    """Insert axes of size 1, counted in the result."""
    value, given = required(inputs, 0), as_integers(required(inputs, 1))
    axes = sorted(axis % (value.ndim + len(given)) for axis in given)
    if is_known(value):
        return np.expand_dims(value, axes)
    for axis in axes:
        value = value.unsqueeze(axis)
    return value


@operator("Transpose")
def transpose(node: Node, inputs: Inputs) -> Value:
    """Permute the axes; reverse them where nothing is said."""
    value = required(inputs, 0)
    order = list(node.attributes.get("perm", reversed(range(value.ndim))))
    return np.transpose(value, order) if is_known(value) else value.permute(order)


@operator("Expand")
def expand(_node: Node, inputs: Inputs) -> Value:
    """Broadcast to a shape; a 1 in it keeps the value's own size."""
    value, wanted = required(inputs, 0), as_sizes(required(inputs, 1))
    own: list[Size] = [*[1] * (len(wanted) - value.ndim), *value.shape]
    wanted = [*[1] * (len(own) - len(wanted)), *wanted]
    target = [mine if _is(item, 1) else item for mine, item in zip(own, wanted, strict=True)]
    if is_known(value) and not any(isinstance(item, SymInt) for item in target):
        return np.broadcast_to(value, target)  # type: ignore[arg-type]
    return required_tensor(inputs, 0).expand(target)


@operator("Tile")
def tile(_node: Node, inputs: Inputs) -> Value:
    """Repeat along each axis."""
    value, repeats = required(inputs, 0), as_sizes(required(inputs, 1))
    if is_known(value) and not any(isinstance(item, SymInt) for item in repeats):
        return np.tile(value, repeats)  # type: ignore[arg-type]
    return required_tensor(inputs, 0).repeat(repeats)


@operator("DepthToSpace")
def depth_to_space(node: Node, inputs: Inputs) -> Value:
    """Move blocks of channels to positions; `mode` says whether the block (DCR) or the channel (CRD) comes first."""
    images, block = required_tensor(inputs, 0), node.attributes["blocksize"]
    batch, channels, height, width = images.shape
    kept = channels // block**2
    if node.attributes.get("mode", "DCR") == "DCR":
        blocks = images.reshape(batch, block, block, kept, height, width).permute(0, 3, 4, 1, 5, 2)
    else:
        blocks = images.reshape(batch, kept, block, block, height, width).permute(0, 1, 4, 2, 5, 3)
    return blocks.reshape(batch, kept, height * block, width * block)


@operator("SpaceToDepth")
def space_to_depth(node: Node, inputs: Inputs) -> Value:
    """Move blocks of positions to channels."""
    images, block = required_tensor(inputs, 0), node.attributes["blocksize"]
    batch, channels, height, width = images.shape
    blocks = images.reshape(batch, channels, height // block, block, width // block, block).permute(0, 3, 5, 1, 2, 4)
    return blocks.reshape(batch, channels * block**2, height // block, width // block)


@operator("Trilu")
def triangle(node: Node, inputs: Inputs) -> Value:
    """Keep the upper or lower triangle of matrices."""
    offset = optional(inputs, 1)
    diagonal = 0 if offset is None else as_number(offset)
    keep = torch.triu if node.attributes.get("upper", 1) else torch.tril
    return keep(required_tensor(inputs, 0), diagonal)


def _is(size: Size, number: int) -> bool:
    """Tell whether a size is this number without asking a symbol for its value, which would fix it."""
    return not isinstance(size, SymInt) and size == number
