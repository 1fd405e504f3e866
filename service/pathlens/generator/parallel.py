"""Data-parallel training: the same step in every process, on a share of the batch, with averaged gradients.

PyTorch's own launcher starts the processes (`torchrun --nproc-per-node 2 ...`) and tells each its place; one process
alone needs no launcher.
"""

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor


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
        if self.size > 1:
            dist.barrier()

    def average(self, tensors: Iterable[Tensor | None]) -> None:
        """Replace each tensor by its mean over the processes, in place."""
        given = [tensor for tensor in tensors if tensor is not None]
        if self.size == 1 or not given:
            return
        # One message for all of them: the start of a message costs more than its contents.
        flat = torch.cat([tensor.detach().flatten().float() for tensor in given])
        dist.all_reduce(flat)
        for tensor, part in zip(
            given, torch.split(flat.div_(self.size), [tensor.numel() for tensor in given]), strict=True
        ):
            tensor.detach().copy_(part.view_as(tensor))


@contextmanager
def process_group(device: torch.device) -> Iterator[ProcessGroup]:
    """Join the processes that `torchrun` started; without it, yield a group of one."""
    if not dist.is_torchelastic_launched():
        yield ProcessGroup()
        return
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield ProcessGroup(dist.get_rank(), dist.get_world_size())
    finally:
        dist.destroy_process_group()


def local_device(device: torch.device) -> torch.device:
    """Return the GPU of this process where several share a machine; any other device as it is."""
    if device.type == "cuda" and device.index is None and dist.is_torchelastic_launched():
        return torch.device("cuda", int(os.environ["LOCAL_RANK"]))
    return device
