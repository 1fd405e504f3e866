"""`pathlens serve` as a process of its own."""

import re
import sys
from collections.abc import Mapping
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from types import MappingProxyType, TracebackType

import psutil

from local.child import Child

_PATHLENS = "from pathlens.cli import main; main()"
_ADDRESSES = re.compile(r"gRPC +(\S+).*\nmetrics +http://(\S+)/metrics")
_HEALTH = re.compile(r"^health +(\S+)", re.MULTILINE)
_DEFAULTS: Mapping[str, object] = MappingProxyType({})
_START_SECONDS = 120.0


class Service(AbstractContextManager["Service"]):
    """Serves an archive on ports of the system's choice, from construction to the end of the context.

    Args:
        archive: The model to serve.
        folder: Where its output and its log go.
        settings: As environment variables name them, without the prefix: `GATEWAY__MAX_QUEUED`.

    Attributes:
        address: host:port of the gRPC endpoint.
        metrics_address: host:port of the metrics.
        health_address: host:port of health in plain text; empty where the settings open no port for it.
        log: Its log.

    Raises:
        ServerStartError: It did not start.
    """

    def __init__(self, archive: Path, folder: Path, settings: Mapping[str, object] = _DEFAULTS) -> None:
        variables = {f"PATHLENS_{name}": str(value) for name, value in settings.items()}
        words = [sys.executable, "-c", _PATHLENS, "serve", archive, "--port", 0, "--metrics-port", 0]
        self._child = Child(words, folder, variables=variables)
        self.log = self._child.log
        try:
            self._child.wait_until(lambda: bool(self._addresses()), "serve", _START_SECONDS)
        except BaseException:
            self._child.stop()
            raise
        self.address, self.metrics_address = self._addresses()
        health = _HEALTH.search(self._child.output.read_text())
        self.health_address = "" if health is None else health[1]

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._child.stop()

    def workers(self) -> list[psutil.Process]:
        """Find TorchServe's workers."""
        found = []
        with suppress(psutil.NoSuchProcess):
            for process in self._child.process.children(recursive=True):
                with suppress(psutil.NoSuchProcess):
                    if any("model_service_worker.py" in word for word in process.cmdline()):
                        found.append(process)
        return found

    def _addresses(self) -> tuple[str, ...]:
        found = _ADDRESSES.search(self._child.output.read_text())
        return () if found is None else (found[1], found[2])
