"""Images on their way to the classifier: read and preprocessed by other processes while this one computes."""

import os
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from pathlens.classifier.images import ImageSource
from pathlens.classifier.preprocessing import Preprocessing
from pathlens.errors import PathlensError


class ImageReader:
    """Reads and preprocesses images in worker processes, ahead of the computation.

    A few batches per worker are in memory, never all images. What is read does not depend on the number of workers.

    Args:
        images: What to read.
        preprocessing: From pixels to the classifier's input.
        workers: Processes that read; 0 reads in this one. There are never more than processors.

    Raises:
        ValueError: If there are fewer than 0 workers.
    """

    def __init__(self, images: ImageSource, preprocessing: Preprocessing, workers: int) -> None:
        if workers < 0:
            raise ValueError(f"workers is {workers}; give 0 or more.")
        self._images = images
        self._dataset = _Inputs(images, preprocessing)
        self._workers = min(workers, _processors())

    def read(self, batches: Sequence[Sequence[int]]) -> Iterator[tuple[list[int], Tensor]]:
        """Read batches of images. Workers run until the last batch is read or the iterator is closed.

        Args:
            batches: The positions of the images of each batch.

        Yields:
            For each batch, in order, the positions that could be read and float32 [B, channels, height, width] on the
            CPU. An image that cannot be read is left out and noted in `images.skipped`; a batch of which nothing can
            be read is left out.
        """
        workers = min(self._workers, len(batches))
        loader = DataLoader(
            self._dataset,
            batch_sampler=[list(batch) for batch in batches],
            num_workers=workers,
            collate_fn=_collate,
            worker_init_fn=_leave_interrupts_to_parent,
            # Forked workers share the mapping of an NPZ file; started anew, each would be sent all of it.
            multiprocessing_context="fork" if workers else None,
            # The loader draws a seed for its workers, which need none; this process's own numbers stay as they are.
            generator=torch.Generator(),
        )
        with _interrupts_held():
            arriving = iter(loader)
        for batch in arriving:
            self._images.reasons.update(batch.unreadable)
            if batch.positions:
                yield batch.positions, torch.from_numpy(batch.inputs)


@dataclass(frozen=True)
class _Input:
    position: int
    values: NDArray[np.float32] | None
    reason: str = ""


@dataclass(frozen=True)
class _Batch:
    """What a worker sends: arrays, as tensors would need shared memory, of which a container has 64 MiB."""

    positions: list[int]
    inputs: NDArray[np.float32]
    unreadable: dict[int, str]


@dataclass(frozen=True)
class _Inputs(Dataset[_Input]):
    images: ImageSource
    preprocessing: Preprocessing

    def __getitem__(self, position: int) -> _Input:
        try:
            return _Input(position, self.preprocessing.apply(self.images.read(position)))
        except (PathlensError, OSError) as error:
            return _Input(position, None, str(error))


def _collate(inputs: list[_Input]) -> _Batch:
    readable = [(item.position, item.values) for item in inputs if item.values is not None]
    return _Batch(
        [position for position, _ in readable],
        np.stack([values for _, values in readable]) if readable else np.empty(0, dtype=np.float32),
        {item.position: item.reason for item in inputs if item.values is None},
    )


def _leave_interrupts_to_parent(_worker: int) -> None:
    # The terminal sends Ctrl-C to all processes. The parent ends its workers; their own tracebacks would hide its one.
    signal.signal(signal.SIGINT, signal.SIG_IGN)


@contextmanager
def _interrupts_held() -> Iterator[None]:
    """Let a Ctrl-C wait: Python loses one that comes while it forks, and a worker that starts would show its own."""
    before = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or before is None:
        yield
        return
    held: list[int] = []

    def hold(number: int, _frame: FrameType | None) -> None:
        held.append(number)

    signal.signal(signal.SIGINT, hold)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if held:
        signal.raise_signal(held[0])


def _processors() -> int:
    """Return how many this process may use; the loader warns of more workers."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
