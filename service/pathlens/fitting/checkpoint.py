"""Checkpoints of a fit: what is done is on disk, so that the same command goes on where it was interrupted."""

import fcntl
import json
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch

from pathlens.errors import FitError
from pathlens.files import write_whole

INTERVAL = 30.0
"""Seconds between two checkpoints of a training: what an interruption costs at most."""


class Checkpoint:
    """A folder with the state of an unfinished fit; one process writes it at a time.

    Args:
        folder: Where; made if missing.
        settings: Everything that the result depends on, as JSON values.
        writes: Whether this process writes; the others of a group only read.
        restart: Whether to discard what another fit left there.

    Raises:
        FitError: If the folder holds an unfinished fit with other settings, or another process is writing it.
    """

    def __init__(self, folder: Path, settings: Mapping[str, object], writes: bool, restart: bool = False) -> None:
        self._folder = folder
        self._writes = writes
        self._saved = time.monotonic()
        self._lock = None
        header = json.dumps(settings, sort_keys=True, indent=2)
        if writes:
            folder.mkdir(parents=True, exist_ok=True)
            self._lock = (folder / "lock").open("w")
            try:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                self._claim(header, restart)
            except BlockingIOError as error:
                self._lock.close()
                raise FitError(f"Another fit is writing {folder}; wait for it, or choose another --out.") from error
            except FitError:
                self._lock.close()
                raise

    def _claim(self, header: str, restart: bool) -> None:
        path = self._folder / "settings.json"
        if path.is_file() and path.read_text(encoding="utf-8") != header:
            if not restart:
                raise FitError(
                    f"{self._folder} holds an unfinished fit with other settings, images or another classifier; go on "
                    "with those, or discard it with --restart."
                )
            restart = True
        if restart:
            self.discard()
        with write_whole(path) as file:
            file.write(header.encode())

    def __enter__(self) -> Self:
        """Return itself; it is released on the way out."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Let others write."""
        if self._lock is not None:
            self._lock.close()

    def load(self, stage: str) -> Any:
        """Return the state of a stage, on the CPU, or None without one.

        Raises:
            FitError: If the file is damaged.
        """
        path = self._folder / f"{stage}.pt"
        if not path.is_file():
            return None
        try:
            return torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # what torch raises for damage is not one family
            raise FitError(f"{path} is damaged; discard the unfinished fit with --restart.") from error

    def save(self, stage: str, state: object) -> None:
        """Store the state of a stage: tensors, numbers and containers of them."""
        if self._writes:
            with write_whole(self._folder / f"{stage}.pt") as file:
                torch.save(state, file)
        self._saved = time.monotonic()

    @property
    def is_due(self) -> bool:
        """Whether the last checkpoint was long ago."""
        return time.monotonic() - self._saved > INTERVAL

    def discard(self) -> None:
        """Forget what was stored: nothing of it can be used."""
        if self._writes:
            for path in [*self._folder.glob("*.pt"), self._folder / "settings.json"]:
                path.unlink(missing_ok=True)
