"""`pathlens serve` as a process of its own, whose memory and descriptors are its own, with all that belongs to it."""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import defaultdict
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Self

import psutil
from prometheus_client.parser import text_string_to_metric_families

_PATHLENS = "from pathlens.cli import main; main()"
_ADDRESSES = re.compile(r"gRPC +(\S+).*\nmetrics +http://(\S+)/metrics")
_START_SECONDS = 120.0
_MEBIBYTE = 2**20
_GONE = (psutil.NoSuchProcess, psutil.AccessDenied)
_DEFAULTS: Mapping[str, object] = MappingProxyType({})


class ServedProcess:
    """Starts the service on free ports; leaving the context kills whatever of it still lives.

    Args:
        archive: The model to serve.
        folder: Where its output and its log are written.
        settings: As environment variables name them, without the prefix: `GATEWAY__MAX_QUEUED`.

    Attributes:
        address: host:port of the gRPC endpoint.
        log: What it writes about itself.
        temporary: A temporary folder of its own.
        gateway: Its first process; TorchServe's are below it.

    Raises:
        RuntimeError: It ended instead of serving, or did not serve within two minutes.
    """

    def __init__(self, archive: Path, folder: Path, settings: Mapping[str, object] = _DEFAULTS) -> None:
        # A short path: the workers' sockets lie below it.
        self.temporary = Path(tempfile.mkdtemp(prefix="sv"))
        self.log = folder / "serve.log"
        output = folder / "serve.out"
        with output.open("w") as stdout, self.log.open("w") as stderr:
            self._process = subprocess.Popen(
                [sys.executable, "-c", _PATHLENS, "serve", str(archive), "--port", "0", "--metrics-port", "0"],
                env=os.environ
                | {"TMPDIR": str(self.temporary)}
                | {f"PATHLENS_{name}": str(value) for name, value in settings.items()},
                stdout=stdout,
                stderr=stderr,
                # Ctrl-C is for the program that started it, which then ends it.
                start_new_session=True,
            )
        self.gateway = psutil.Process(self._process.pid)
        self._family: set[psutil.Process] = {self.gateway}
        self._ports: set[int] = set()
        try:
            self.address, self._metrics_address = self._addresses(output)
        except BaseException:
            self.close()
            raise
        self._ports |= {int(address.rpartition(":")[2]) for address in (self.address, self._metrics_address)}
        self.workers()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def jvm(self) -> psutil.Process | None:
        """Find TorchServe's JVM; None while there is none."""
        try:
            children = self.gateway.children()
        except _GONE:
            return None
        self._family.update(children)
        for child in children:
            if "org.pytorch.serve.ModelServer" in _words(child):
                self._ports |= _listening(child)
                return child
        return None

    def workers(self) -> list[psutil.Process]:
        """Find TorchServe's workers."""
        jvm = self.jvm()
        try:
            children = jvm.children(recursive=True) if jvm is not None else []
        except _GONE:
            return []
        self._family.update(children)
        return [child for child in children if any("model_service_worker.py" in word for word in _words(child))]

    def processes(self) -> dict[int, str]:
        """Tell the processes of the service: the gateway's, the JVM and its workers.

        Returns:
            What each one is, by process id; a process that was replaced has another one.
        """
        roles = {worker.pid: "worker" for worker in self.workers()}
        if (jvm := self.jvm()) is not None:
            roles[jvm.pid] = "JVM"
        if _is_alive(self.gateway):
            roles[self.gateway.pid] = "gateway"
        return roles

    def memory(self) -> dict[str, float]:
        """Tell the resident memory, in MiB, of each of `processes`."""
        return {
            role: round(psutil.Process(pid).memory_info().rss / _MEBIBYTE, 1) for pid, role in self.processes().items()
        }

    def processor_seconds(self) -> dict[str, float]:
        """Tell how long processors have worked, for each of `processes`."""
        seconds: defaultdict[str, float] = defaultdict(float)
        for pid, role in self.processes().items():
            times = psutil.Process(pid).cpu_times()
            seconds[role] += times.user + times.system
        return seconds

    def counters(self) -> dict[tuple[str, ...], float]:
        """Read the gateway's metrics.

        Returns:
            Values by the name of the metric and the values of its labels, in the order of their names.
        """
        with urllib.request.urlopen(f"http://{self._metrics_address}/metrics") as response:
            text = response.read().decode()
        return {
            (sample.name, *(value for _, value in sorted(sample.labels.items()))): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }

    def terminate(self) -> None:
        """Ask it to finish what it has accepted and to end; asked again, it ends at once."""
        self._process.send_signal(signal.SIGTERM)

    def status(self, seconds: float = 0.0) -> int | None:
        """Wait for its end; the exit status, negative for a signal, or None while it lives."""
        try:
            return self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            return None

    def leftovers(self) -> list[str]:
        """Name what is left of it: processes, files, and ports that somebody listens on."""
        processes = [f"process {one.pid}" for one in self._family if _is_alive(one)]
        files = [f"file {path}" for path in self.temporary.iterdir()]
        return processes + files + [f"port {port}" for port in sorted(self._ports) if _is_open(port)]

    def close(self) -> None:
        """Kill what still lives and remove its temporary folder; its output and its log stay."""
        # Whoever came since the last look.
        self.workers()
        self._process.kill()
        self._process.wait()
        for one in self._family:
            # Without the gateway they end by themselves, too.
            with suppress(*_GONE):
                one.kill()
        shutil.rmtree(self.temporary, ignore_errors=True)

    def _addresses(self, output: Path) -> tuple[str, str]:
        end = time.monotonic() + _START_SECONDS
        while not (found := _ADDRESSES.search(output.read_text())):
            if self.status() is not None:
                raise RuntimeError(f"pathlens serve ended instead of serving:\n{self.log.read_text()}")
            if time.monotonic() > end:
                raise RuntimeError(f"pathlens serve does not serve after {_START_SECONDS:g} s:\n{self.log.read_text()}")
            time.sleep(0.05)
        return found[1], found[2]


def _words(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except _GONE:
        return []


def _listening(process: psutil.Process) -> set[int]:
    try:
        connections = process.net_connections("tcp")
    except _GONE:
        return set()
    return {one.laddr.port for one in connections if one.status == psutil.CONN_LISTEN}


def _is_alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except _GONE:
        return False


def _is_open(port: int) -> bool:
    with socket.socket() as connection:
        connection.settimeout(1.0)
        return connection.connect_ex(("127.0.0.1", port)) == 0
