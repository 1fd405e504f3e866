"""Data-parallel training: the same step in every process, on a share of the batch, with averaged gradients.

PyTorch's own launcher starts the processes (`torchrun --nproc-per-node 2 ...`) and tells each its place; one process
alone needs no launcher.
"""

import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

from pathlens.errors import FitError


@dataclass(frozen=True)
class ProcessGroup:
    """The processes that train together.

    Attributes:
        rank: Number of this process, from 0.
        size: Number of processes.
    """

    rank: int = 0
    size: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this process reports and writes for all."""
        return self.rank == 0

    def share(self, batch: Sequence[int]) -> list[int]:
        """Return what this process reads of a batch."""
        return list(batch[self.rank :: self.size])

    def wait(self) -> None:
        """Wait until all processes are here."""
        self.add(torch.zeros(1))

    def add(self, tensor: Tensor) -> None:
        """Replace a tensor by its sum over the processes, in place."""
        if self.size > 1:
            dist.all_reduce(tensor)

    def average(self, tensors: Iterable[Tensor | None]) -> None:
        """Replace each tensor, all on one device, by its mean over the processes, in place."""
        given = [tensor for tensor in tensors if tensor is not None]
        if self.size == 1 or not given:
            return
        # One message for all of them: the start of a message costs more than its contents.
        flat = torch.cat([tensor.detach().flatten().float() for tensor in given])
        self.add(flat)
        means = torch.split(flat / self.size, [tensor.numel() for tensor in given])
        for tensor, part in zip(given, means, strict=True):
            tensor.detach().copy_(part.view_as(tensor))


@contextmanager
def process_group(device: torch.device) -> Iterator[ProcessGroup]:
    """Join the processes that `torchrun` started; without it, yield a group of one.

    Args:
        device: Of this process, as `local_device` tells it.
    """
    if not dist.is_torchelastic_launched():
        yield ProcessGroup()
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    # Figures are on the CPU wherever gradients are. The first process may survey and test for hours on its own.
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, timeout=timedelta(days=1))
    group = ProcessGroup(dist.get_rank(), dist.get_world_size())
    try:
        yield group
    finally:
        dist.destroy_process_group()
    if not group.is_first:
        # Threads of PyTorch abort an orderly exit at times, and torchrun then ends the first process as well.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)


def local_device(device: torch.device) -> torch.device:
    """Return the GPU of this process where several share a machine; any other device as it is.

    Raises:
        FitError: If all processes were given the same GPU.
    """
    if device.type != "cuda" or not dist.is_torchelastic_launched():
        return device
    if device.index is not None:
        raise FitError(f"The device is {device}, but torchrun started several processes; give --device cuda.")
    return torch.device("cuda", int(os.environ["LOCAL_RANK"]))
