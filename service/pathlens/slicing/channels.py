"""Which channels of a value depend on the image."""

from dataclasses import dataclass

import torch
from torch import Tensor, fx


@dataclass(frozen=True, eq=False)
class Channels:
    """The channels of one value of a pathway network.

    Attributes:
        varying: Which of them depend on the image, bool [C]. The others are constants.
        axis: The dimension that counts the channels, the first if there are several; None for a value that is taken as
            a whole, with one entry in `varying` that stands for all of it.
        span: How many dimensions count the channels, in row-major order, such as two in the middle of a channel
            shuffle.
    """

    varying: Tensor
    axis: int | None = 1
    span: int = 1

    @classmethod
    def whole(cls, varies: bool) -> "Channels":
        """Return the channels of a value that is taken as a whole."""
        return cls(torch.tensor([varies]), None)

    @property
    def varies(self) -> bool:
        """Whether any of them depends on the image."""
        return bool(self.varying.any())

    @property
    def count(self) -> int:
        """Number of channels, C."""
        return len(self.varying)

    @property
    def first(self) -> int:
        """The first dimension that counts channels."""
        assert self.axis is not None, "a whole value has no channels"  # noqa: S101
        return self.axis

    @property
    def end(self) -> int:
        """The dimension behind those that count channels."""
        return self.first + self.span

    def collapsed(self, dimension: int) -> int:
        """Return what becomes of a dimension when all those that count channels become one."""
        if dimension < self.end:
            return min(dimension, self.first)
        return dimension - self.span + 1


@dataclass(frozen=True, eq=False)
class Source:
    """A value as one call reads it.

    Attributes:
        node: The call that makes the value.
        channels: Its channels along the dimension in which the reading call counts them.
        reads_all: Whether the reading call counts them along another dimension than the value's own, so that it must
            get all of the value, constants included.
    """

    node: fx.Node
    channels: Channels
    reads_all: bool = False
