"""A program that runs beside this one and ends with it."""

import os
import shutil
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import psutil

from pathlens.errors import ServerStartError

_POLL_SECONDS = 0.05
_START_SECONDS = 60.0
_STOP_SECONDS = 40.0


class Child:
    """Starts a program in a session of its own; `stop` ends it, and everything that it has started.

    Args:
        words: The program and its arguments.
        folder: Where what it writes goes.
        packages: The Debian packages that have the program.
        variables: Of its environment, beside those of this process.

    Attributes:
        output: What it writes to standard output.
        log: What it writes to standard error.
        process: Its first process.

    Raises:
        ServerStartError: There is no such program.
    """

    def __init__(
        self,
        words: Sequence[object],
        folder: Path,
        packages: str = "",
        variables: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        self._name = str(words[0])
        if shutil.which(self._name) is None:
            raise ServerStartError(
                f"There is no program {self._name} on this machine: install it (apt-get install {packages}).",
                reason="PROGRAM_MISSING",
            )
        folder.mkdir(parents=True, exist_ok=True)
        self.output, self.log = folder / "out", folder / "log"
        with self.output.open("w") as output, self.log.open("w") as log:
            # Ctrl-C is for whoever started this, who then ends it.
            self._popen = subprocess.Popen(
                [*map(str, words)], env=os.environ | variables, stdout=output, stderr=log, start_new_session=True
            )
        self.process = psutil.Process(self._popen.pid)

    def wait_until(self, condition: Callable[[], bool], what: str, seconds: float = _START_SECONDS) -> None:
        """Wait for something that the program is about to do.

        Args:
            condition: Tells whether it has.
            what: What that is, an infinitive for the error.
            seconds: How long to wait.

        Raises:
            ServerStartError: It ended, or took too long.
        """
        end = time.monotonic() + seconds
        while not condition():
            if self._popen.poll() is not None or time.monotonic() > end:
                raise ServerStartError(
                    f"{self._name} did not {what}: {self.log.read_text()[-2000:] or 'it wrote nothing'}",
                    reason="PROGRAM_FAILED",
                )
            time.sleep(_POLL_SECONDS)

    def ready(self) -> str:
        """Wait until it says that it is ready, as Prometheus and Alertmanager do; it is stopped if it does not.

        Returns:
            Its address, as `listening` returns it.

        Raises:
            ServerStartError: It ended, or took too long.
        """
        try:
            address = self.listening()
            self.wait_until(lambda: self.answers(f"{address}/-/ready"), "become ready")
        except BaseException:
            self.stop()
            raise
        return address

    def listening(self) -> str:
        """Wait until the program listens on one port.

        Returns:
            host:port.

        Raises:
            ServerStartError: It ended, or took too long.
        """
        self.wait_until(lambda: bool(self._listeners()), "listen")
        return self._listeners()[0]

    def answers(self, address: str) -> bool:
        """Tell whether a page is there.

        Args:
            address: host:port and the path of the page.

        Returns:
            Whether it was answered with success.
        """
        try:
            with urllib.request.urlopen(f"http://{address}", timeout=5.0):
                return True
        except (urllib.error.URLError, OSError):
            return False

    def stop(self) -> None:
        """Ask the program to end, and end what is left of it and of its children."""
        family = [self.process, *self._children()]
        self._popen.terminate()
        try:
            self._popen.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._popen.kill()
            self._popen.wait()
        for one in family:
            try:
                one.kill()
            except psutil.NoSuchProcess:
                continue

    def _children(self) -> list[psutil.Process]:
        try:
            return list(self.process.children(recursive=True))
        except psutil.NoSuchProcess:
            return []

    def _listeners(self) -> list[str]:
        try:
            connections = self.process.net_connections("tcp")
        except psutil.NoSuchProcess:
            return []
        return [f"{one.laddr.ip}:{one.laddr.port}" for one in connections if one.status == psutil.CONN_LISTEN]
