"""Images on their way to the classifier: read and preprocessed by other processes while this one computes."""

import multiprocessing
import os
import signal
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import forkserver, resource_tracker
from multiprocessing.context import ForkServerContext
from types import FrameType

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from pathlens.classifier.images import ImageSource
from pathlens.classifier.preprocessing import Preprocessing
from pathlens.errors import FitError, PathlensError

# The fork server's UNIX socket lies in a temporary folder, and the system cuts such paths off near 108 characters;
# multiprocessing's own part of the path takes about 30.
_LONGEST_BASE = 60
_SHORT_BASE = "/tmp"  # noqa: S108 - multiprocessing makes a private folder there


class ImageReader:
    """Reads and preprocesses images in worker processes, ahead of the computation.

    A few batches per worker are in memory, never all images. What is read does not depend on the number of workers.

    Args:
        images: What to read.
        preprocessing: From pixels to the classifier's input.
        workers: Processes that read; 0 reads in this one. There are never more than processors.

    Raises:
        ValueError: If there are fewer than 0 workers.
        FitError: By `read`, if no process can be started for them.
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
            # Forked from this process, which may have threads and gRPC, a worker could crash.
            multiprocessing_context=_fork_server() if workers else None,
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


def _fork_server() -> ForkServerContext:
    """Start the process that workers are forked from, with all that they import, unless it runs already."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["__main__", __name__])
    # This one lets the signal through when it starts.
    resource_tracker.ensure_running()
    # The terminal sends Ctrl-C to all processes. The parent ends its workers, which inherit the mask; their own
    # tracebacks would hide its one.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        with _short_temporary_folder():
            forkserver.ensure_running()
    except OSError as error:
        raise FitError(
            f"No process that reads images can be started ({error}): set TMPDIR to a writable folder whose path has at"
            f" most {_LONGEST_BASE} characters, or give --workers 0."
        ) from error
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return context


@contextmanager
def _short_temporary_folder() -> Iterator[None]:
    before = tempfile.tempdir
    if len(tempfile.gettempdir()) > _LONGEST_BASE:
        tempfile.tempdir = _SHORT_BASE
    try:
        yield
    finally:
        tempfile.tempdir = before


@contextmanager
def _interrupts_held() -> Iterator[None]:
    """Let a Ctrl-C wait: workers that are half started would stay."""
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
