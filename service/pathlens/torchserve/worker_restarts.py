"""Counting the workers that TorchServe has replaced."""

import threading
import time

from pathlens.model_version import ModelVersion


class WorkerRestarts:
    """Counts the workers of loaded versions that have ended and that TorchServe starts again.

    TorchServe's log tells of every one, also of those that nobody looked at between two deaths. What fails while its
    version is being loaded does not count, nor do those that go with their version or with the JVM. May be used in any
    thread.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._loaded: dict[ModelVersion, float] = {}
        self._total = 0

    @property
    def total(self) -> int:
        """How many there have been; never decreases."""
        return self._total

    def loaded(self, version: ModelVersion) -> None:
        """Count for a version from now on; all its workers have loaded it.

        Args:
            version: The version.
        """
        with self._lock:
            self._loaded[version] = time.time()

    def unloaded(self, *versions: ModelVersion) -> None:
        """Count no more for some versions.

        Args:
            versions: Those that are about to be unloaded; none means all.
        """
        with self._lock:
            for version in versions or tuple(self._loaded):
                self._loaded.pop(version, None)

    def retried(self, thread: str, moment: float) -> None:
        """Take note that TorchServe starts a worker again.

        Args:
            thread: Name of its thread in TorchServe: `W-9000-digits_1.0`.
            moment: When, in seconds since 1970.
        """
        _, _, name = thread.removeprefix("W-").partition("-")
        with self._lock:
            for version, since in self._loaded.items():
                if name == f"{version.name}_{version.version}" and moment >= since:
                    self._total += 1
