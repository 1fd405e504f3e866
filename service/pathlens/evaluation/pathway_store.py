"""Instance pathways of an evaluation on disk, for the measures that need those of many images at once."""

import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pathlens.classifier.taps import Tap
from pathlens.errors import EvaluationError
from pathlens.explanation import Granularity
from pathlens.files import write_whole
from pathlens.pathways.contributions import Contributions
from pathlens.pathways.pathway import Pathway, from_flat


@dataclass(frozen=True)
class PathwayStore:
    """Pathways by batch and method, all sparsities of a grid at once.

    Pathways of one score are nested: what a sparse one keeps, every less sparse one keeps as well. So a neuron has one
    number, its level: at how many sparsities of the grid it is kept.

    Attributes:
        folder: Where the files are.
        taps: Of the classifier.
        granularity: What counts as one neuron.
        sparsities: The grid, ascending.
    """

    folder: Path
    taps: tuple[Tap, ...]
    granularity: Granularity
    sparsities: tuple[float, ...]

    def levels(self, contributions: Contributions) -> Tensor:
        """Select at every sparsity of the grid: uint8 [B, N]."""
        kept = [contributions.select(sparsity).flat() for sparsity in self.sparsities]
        return torch.stack(kept).sum(0, dtype=torch.uint8)

    def level_of(self, pathway: Pathway) -> Tensor:
        """Give the neurons of pathways that have a sparsity of their own one level: uint8 [B, N]."""
        return pathway.flat().to(torch.uint8)

    def pathway(self, levels: Tensor, sparsity: float | None) -> Pathway:
        """Return the pathways of one sparsity of the grid, or those that have their own."""
        level = 0 if sparsity is None else self.sparsities.index(sparsity)
        return from_flat(levels > level, self.taps, self.granularity)

    def save(self, batch: int, levels: Mapping[str, Tensor]) -> None:
        """Store a batch.

        Args:
            batch: Its number.
            levels: By method, as `levels` or `level_of` returns them.
        """
        arrays = {name: values.cpu().numpy() for name, values in levels.items()}
        with write_whole(self._path(batch)) as file:
            np.savez_compressed(file, allow_pickle=False, **arrays)

    def load(self, batches: Sequence[int], method: str) -> Tensor:
        """Return the levels of one method over several batches, uint8 [M, N].

        Raises:
            EvaluationError: If a file is gone.
        """
        parts = []
        for batch in batches:
            try:
                # numpy itself would leave a damaged file open.
                with self._path(batch).open("rb") as stream, np.load(stream, allow_pickle=False) as file:
                    parts.append(torch.from_numpy(file[method]))
            except (OSError, KeyError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
                raise EvaluationError(
                    f"{self._path(batch)} is gone or damaged; remove {self.folder} to start anew."
                ) from error
        return torch.cat(parts)

    def _path(self, batch: int) -> Path:
        return self.folder / f"pathways-{batch:05d}.npz"
