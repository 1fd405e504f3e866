"""The windows that convolutions and pooling slide over an image."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional as F

from pathlens.onnx_import.operators.registry import Node


@dataclass(frozen=True)
class Window:
    """A window, one number per spatial axis.

    Attributes:
        sizes: Of the image.
        kernel: Number of positions that the window reads.
        strides: Steps between windows.
        dilations: Distances between the positions within a window.
        before: Padding at the start.
        after: Padding at the end.
    """

    sizes: tuple[int, ...]
    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    before: tuple[int, ...]
    after: tuple[int, ...]

    @property
    def extents(self) -> tuple[int, ...]:
        """From the first to the last position of a window."""
        return tuple((size - 1) * step + 1 for size, step in zip(self.kernel, self.dilations, strict=True))

    @property
    def is_symmetric(self) -> bool:
        """Whether the padding is the same at both ends and none of it cuts."""
        return self.before == self.after and min(self.before) >= 0

    def output_sizes(self, ceil_mode: bool) -> tuple[int, ...]:
        """Return the numbers of windows; `ceil_mode` also counts one that only starts within the image."""
        return tuple(map(_windows, self._padded(), self.extents, self.strides, self._reach(), [ceil_mode] * self.axes))

    def missing(self, ceil_mode: bool) -> tuple[int, ...]:
        """Return by how much the last windows reach beyond the padded image."""
        starts = zip(self.output_sizes(ceil_mode), self.strides, strict=True)
        ends = [(count - 1) * stride + extent for (count, stride), extent in zip(starts, self.extents, strict=True)]
        return tuple(max(end - padded, 0) for end, padded in zip(ends, self._padded(), strict=True))

    @property
    def axes(self) -> int:
        """Number of spatial axes."""
        return len(self.sizes)

    def _padded(self) -> tuple[int, ...]:
        return tuple(map(sum, zip(self.before, self.sizes, self.after, strict=True)))

    def _reach(self) -> tuple[int, ...]:
        return tuple(map(sum, zip(self.before, self.sizes, strict=True)))


def _windows(padded: int, extent: int, stride: int, reach: int, ceil_mode: bool) -> int:
    room = padded - extent
    if not ceil_mode:
        return room // stride + 1
    count = -(-room // stride) + 1
    return count - 1 if (count - 1) * stride >= reach else count


def window_of(node: Node, images: Tensor, kernel: Sequence[int]) -> Window:
    """Read the window of a convolution or pooling over images [B, C, ...]."""
    sizes, axes = tuple(images.shape[2:]), images.ndim - 2
    strides = tuple(node.attributes.get("strides", [1] * axes))
    dilations = tuple(node.attributes.get("dilations", [1] * axes))
    pads = tuple(node.attributes.get("pads", [0] * (2 * axes)))
    automatic = node.attributes.get("auto_pad", "NOTSET")
    if automatic == "VALID":
        pads = (0,) * (2 * axes)
    window = Window(sizes, tuple(kernel), strides, dilations, pads[:axes], pads[axes:])
    if automatic not in ("SAME_UPPER", "SAME_LOWER"):
        return window
    total = [
        max((-(-size // stride) - 1) * stride + extent - size, 0)
        for size, stride, extent in zip(sizes, strides, window.extents, strict=True)
    ]
    # Of an odd number of padded positions, one more stands at the end (upper) or at the start (lower).
    less, more = tuple(pad // 2 for pad in total), tuple(pad - pad // 2 for pad in total)
    before, after = (less, more) if automatic == "SAME_UPPER" else (more, less)
    return Window(sizes, window.kernel, strides, dilations, before, after)


def pad_image(images: Tensor, before: Sequence[int], after: Sequence[int], value: float = 0.0) -> Tensor:
    """Pad the spatial axes of images [B, C, ...]; negative numbers cut."""
    if not any(before) and not any(after):
        return images
    # torch counts the axes from the last one.
    pads = [pad for ends in zip(reversed(before), reversed(after), strict=True) for pad in ends]
    return F.pad(images, pads, value=value)
