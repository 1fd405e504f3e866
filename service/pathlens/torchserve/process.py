"""TorchServe as a child process."""

from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

from pathlens.errors import ServerStartError
from pathlens.torchserve.archive import read_archive
from pathlens.torchserve.command import java_command
from pathlens.torchserve.instance import LOOPBACK, InstanceFolder, free_ports
from pathlens.torchserve.jvm import Jvm
from pathlens.torchserve.readiness import Readiness
from pathlens.torchserve.settings import TorchServeSettings

_START_ATTEMPTS = 5


class TorchServe:
    """One TorchServe on loopback: a context manager that starts it and leaves no process and no folder behind.

    It may be started again after a stop, with other ports. Starting, waiting and stopping belong to one thread at a
    time; the properties may be read from any.

    Args:
        settings: How it is run.

    Raises:
        BundleError: An archive is missing or damaged.
        ServerStartError: Two archives hold models of the same name.
    """

    def __init__(self, settings: TorchServeSettings) -> None:
        self._settings = settings
        self._served = tuple(read_archive(archive) for archive in settings.archives)
        for name in self.models:
            if (count := self.models.count(name)) > 1:
                raise ServerStartError(
                    f"{count} archives hold a model named {name!r}: leave out all but one, or rename the others.",
                    metadata={"model": name},
                )
        self._folder: InstanceFolder | None = None
        self._jvm: Jvm | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Start the JVM and wait until it listens; the models load meanwhile. Does nothing if it runs already.

        Raises:
            ServerStartError: Java, Python or TorchServe is missing, or the JVM ends or does not listen.
        """
        if self.is_running:
            return
        # A JVM that has died leaves a folder, and perhaps a worker.
        self.stop(drain_seconds=0)
        try:
            self._launch()
        except BaseException:
            self.stop(drain_seconds=0)
            raise

    def wait_until_ready(
        self, canary: Callable[[str], None], timeout: float = 120, progress: Callable[[str], None] | None = None
    ) -> None:
        """Wait until every model has loaded and has answered a canary prediction.

        Args:
            canary: Makes one prediction with the model of that name; raises when it fails.
            timeout: Seconds for all models together.
            progress: Told in a few words what is waited for.

        Raises:
            ServerStartError: The JVM ended, a model cannot be loaded, a canary keeps failing, or the time is up. The
                message quotes the log.
        """
        jvm = self._started
        with Readiness(self.management_address, jvm.journal, lambda: jvm.is_running, timeout) as readiness:
            for model in self._served:
                if progress is not None:
                    progress(f"loading {model.name}")
                readiness.wait_for(model, canary)
                if progress is not None:
                    progress(f"{model.name} is ready")

    def stop(self, drain_seconds: float = 30) -> None:
        """Let TorchServe finish what it has accepted, then end it and its workers, and remove its folder.

        Does nothing if it was not started or has been stopped.

        Args:
            drain_seconds: How long accepted requests may take; after that, everything is killed.
        """
        jvm, self._jvm = self._jvm, None
        folder, self._folder = self._folder, None
        try:
            if jvm is not None:
                jvm.end(drain_seconds)
        finally:
            if folder is not None:
                folder.remove()

    @property
    def inference_address(self) -> str:
        """Where the gRPC service `InferenceAPIsService` listens, as `host:port`."""
        return f"{LOOPBACK}:{self._started.ports.inference}"

    @property
    def management_address(self) -> str:
        """Where the gRPC service `ManagementAPIsService` listens, as `host:port`."""
        return f"{LOOPBACK}:{self._started.ports.management}"

    @property
    def http_inference_address(self) -> str:
        """Where REST predictions are made, as `host:port`: `curl -T image.jpg http://ADDRESS/predictions/NAME`."""
        return f"{LOOPBACK}:{self._started.ports.http_inference}"

    @property
    def models(self) -> tuple[str, ...]:
        """The names of the models, in the order of the archives."""
        return tuple(model.name for model in self._served)

    @property
    def is_running(self) -> bool:
        """Whether the JVM is alive; the models may still be loading, or broken."""
        jvm = self._jvm
        return jvm is not None and jvm.is_running

    @property
    def pid(self) -> int:
        """Process id of the JVM."""
        return self._started.pid

    @property
    def log_path(self) -> Path:
        """The log file; `stop` removes it."""
        return self._started.journal.log

    @property
    def _started(self) -> Jvm:
        jvm = self._jvm
        if jvm is None:
            raise ServerStartError("TorchServe is not started: call start() first, or use it in a `with` statement.")
        return jvm

    def _launch(self) -> None:
        self._folder = InstanceFolder()
        self._folder.fill(self._settings, self._served)
        command = java_command(self._settings, self._folder)
        for _ in range(_START_ATTEMPTS):
            ports = free_ports()
            self._folder.assign(ports)
            self._jvm = Jvm(command, self._folder, ports)
            if self._jvm.wait_until_listening():
                return
            self._jvm.end(drain_seconds=0)
        raise ServerStartError(
            f"TorchServe found one of its ports taken {_START_ATTEMPTS} times in a row: see which process opens so "
            f"many ports on {LOOPBACK}, and try again.",
            reason="PORTS_TAKEN",
        )
