"""`pathlens torchserve` and `pathlens gateway` as two processes that share nothing but loopback."""

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import grpc
import psutil
from grpc_health.v1 import health_pb2, health_pb2_grpc
from prometheus_client.parser import text_string_to_metric_families

from pathlens.torchserve.instance import free_ports

PATIENCE_SECONDS = 60
"""On a busy machine; about six seconds on an idle one."""

# Says at its end what it has imported.
_PATHLENS = (
    "import atexit, sys\n"
    "atexit.register(lambda: print('imported', 'torch' if 'torch' in sys.modules else 'no torch'))\n"
    "from pathlens.cli import main\nmain()"
)


class PathlensProcess:
    """One command in a process with a temporary folder of its own.

    Args:
        command: Its name and its arguments.
        folder: Where its output and its log are written.
        settings: As environment variables name them, without the prefix.

    Attributes:
        process: The process.
        temporary: Its temporary folder.
    """

    def __init__(self, command: list[str], folder: Path, settings: Mapping[str, object]) -> None:
        self.temporary = Path(tempfile.mkdtemp(prefix="sp"))
        self._output, self._log = folder / f"{command[0]}.out", folder / f"{command[0]}.log"
        with self._output.open("w") as stdout, self._log.open("w") as stderr:
            self._popen = subprocess.Popen(
                [sys.executable, "-c", _PATHLENS, *command],
                env=os.environ
                | {"TMPDIR": str(self.temporary)}
                | {f"PATHLENS_{name}": str(value) for name, value in settings.items()},
                stdout=stdout,
                stderr=stderr,
                start_new_session=True,
            )
        self.process = psutil.Process(self._popen.pid)

    @property
    def output(self) -> str:
        """What it has printed."""
        return self._output.read_text()

    @property
    def log(self) -> str:
        """What it has logged."""
        return self._log.read_text()

    def printed(self, what: str) -> str:
        """Wait for a line of its output; the address in it."""
        wait_until(lambda: bool(self._found(what)) or self.status() is not None)
        found = self._found(what)
        assert found, self.log
        return found[1]

    def jvm(self) -> psutil.Process | None:
        """Find TorchServe's JVM; None while there is none."""
        with suppress(psutil.Error):
            for child in self.process.children():
                if "org.pytorch.serve.ModelServer" in child.cmdline():
                    return child
        return None

    def worker(self) -> psutil.Process | None:
        """Find TorchServe's worker; None while there is none."""
        with suppress(psutil.Error):
            for child in self.process.children(recursive=True):
                if any("model_service_worker.py" in word for word in child.cmdline()):
                    return child
        return None

    def status(self, seconds: float = 0.0) -> int | None:
        """Wait for its end; the exit status, or None while it lives."""
        try:
            return self._popen.wait(seconds)
        except subprocess.TimeoutExpired:
            return None

    def close(self) -> None:
        """Kill what still lives, and remove its temporary folder."""
        children = self.process.children(recursive=True) if self.process.is_running() else []
        self._popen.kill()
        self._popen.wait()
        for one in children:
            with suppress(psutil.Error):
                one.kill()
        shutil.rmtree(self.temporary, ignore_errors=True)

    def _found(self, what: str) -> re.Match[str] | None:
        return re.search(rf"^{what} +(?:http://)?([^\s/]+)", self.output, re.MULTILINE)


class Split:
    """The two processes of a pod; leaving the context kills whatever of them still lives.

    Args:
        archive: The model to serve.
        folder: Where output and logs are written.
        settings: Of both, as environment variables name them, without the prefix.

    Attributes:
        torchserve: `pathlens torchserve`.
        gateway: `pathlens gateway`.
    """

    def __init__(self, archive: Path, folder: Path, settings: Mapping[str, object]) -> None:
        ports = free_ports()
        self._folder = folder
        self._settings = {
            "TORCHSERVE__INFERENCE_PORT": ports.inference,
            "TORCHSERVE__MANAGEMENT_PORT": ports.management,
            "TORCHSERVE__HEALTH_PORT": ports.http_inference,
            "TORCHSERVE__METRICS_PORT": ports.http_management,
            **settings,
        }
        # The gateway has to wait for TorchServe, and not the other way round.
        self.gateway = PathlensProcess(
            ["gateway", "--port", "0", "--metrics-port", "0"], folder, {**self._settings, "GATEWAY__HEALTH_PORT": 0}
        )
        self.torchserve = self._torchserve(archive)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.gateway.close()
        self.torchserve.close()

    def start_torchserve(self, archive: Path) -> None:
        """Start TorchServe anew, as the system does when its container has ended."""
        self.torchserve.close()
        self.torchserve = self._torchserve(archive)

    def wait_until_ready(self) -> None:
        """Wait until both are."""
        for one in (self.torchserve, self.gateway):
            address = one.printed("health")
            wait_until(lambda address=address: health(address, "readiness") == "SERVING")  # type: ignore[misc]

    def _torchserve(self, archive: Path) -> PathlensProcess:
        return PathlensProcess(["torchserve", str(archive)], self._folder, self._settings)


def health(address: str, service: str) -> str:
    """Ask for the health of a service in plain text; empty if nobody answers."""
    with grpc.insecure_channel(address) as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        try:
            status = stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=5).status
        except grpc.RpcError:
            return ""
        return str(health_pb2.HealthCheckResponse.ServingStatus.Name(status))


def metrics(address: str) -> dict[tuple[str, ...], float]:
    """Read metrics: values by the name and the values of the labels."""
    with urllib.request.urlopen(f"http://{address}/metrics") as response:
        text = response.read().decode()
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def wait_until(condition: Callable[[], bool]) -> None:
    """Wait for a condition."""
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < PATIENCE_SECONDS
        time.sleep(0.05)
