"""How a benchmark is run."""

from dataclasses import dataclass, field
from pathlib import Path

import torch

PARTS = ("in-process", "handler", "end-to-end", "memory", "growth")
BATCH = 8


@dataclass(frozen=True)
class Settings:
    """How a benchmark is run.

    Attributes:
        folder: Where results and what they are made from are written.
        device: Where passes run; on anything but the CPU only the first part is measured.
        threads: Of every pass on the CPU.
        quick: Whether to run everything once or twice, to see that it works and is right; its times mean nothing.
        seed: Of the order of the runs and of random masks.
    """

    folder: Path
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    threads: int = 1
    quick: bool = False
    seed: int = 0

    @property
    def rounds(self) -> int:
        """Most rounds of interleaved runs."""
        return 1 if self.quick else 50

    @property
    def group_seconds(self) -> float:
        """Time for the runs of one group of rows."""
        return 0.0 if self.quick else 24.0

    @property
    def load_seconds(self) -> float:
        """Length of one step of load."""
        return 1.0 if self.quick else 6.0
