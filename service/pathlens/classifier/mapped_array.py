"""An array in a file that several processes read."""

import os
import weakref
from collections.abc import Callable
from multiprocessing.reduction import DupFd
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray


class MappedArray:
    """A read-only array that is mapped from a file, whatever becomes of the file's name.

    A process that is started with it maps the same file and is sent none of its contents.

    Args:
        descriptor: Of the open file; it may be closed afterwards.
        offset: Where the elements begin in the file.
        shape: Of the array.
        order: "C" if the last index changes fastest, "F" if the first does.

    Attributes:
        values: The array.
    """

    def __init__(self, descriptor: int, offset: int, shape: tuple[int, ...], order: Literal["C", "F"]) -> None:
        self._descriptor = os.dup(descriptor)
        weakref.finalize(self, os.close, self._descriptor)
        self._layout = (offset, shape, order)
        with os.fdopen(os.dup(descriptor), "rb") as file:
            self.values: NDArray[np.uint8] = np.memmap(file, np.uint8, "r", offset, shape, order)

    def __reduce__(self) -> tuple[Callable[..., "MappedArray"], tuple[Any, ...]]:
        """Describe how another process makes the same object."""
        return _received, (DupFd(self._descriptor), *self._layout)


def _received(shared: Any, offset: int, shape: tuple[int, ...], order: Literal["C", "F"]) -> MappedArray:
    descriptor: int = shared.detach()
    try:
        return MappedArray(descriptor, offset, shape, order)
    finally:
        os.close(descriptor)
