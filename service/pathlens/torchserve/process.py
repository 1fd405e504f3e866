"""TorchServe as a child process."""

import contextlib
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

from pathlens.errors import ServerStartError
from pathlens.model_version import ModelVersion
from pathlens.torchserve.command import java_command
from pathlens.torchserve.instance import LOOPBACK, InstanceFolder, free_ports
from pathlens.torchserve.jvm import Jvm
from pathlens.torchserve.management import Management
from pathlens.torchserve.readiness import Readiness
from pathlens.torchserve.relay import LogRelay
from pathlens.torchserve.served_models import ServedModels
from pathlens.torchserve.settings import TorchServeSettings
from pathlens.torchserve.stored_archive import ArchiveStore, StoredArchive
from pathlens.torchserve.worker_restarts import WorkerRestarts

_Answer = TypeVar("_Answer")

_START_ATTEMPTS = 5


class TorchServe:
    """One TorchServe on loopback: a context manager that starts it and leaves no process and no folder behind.

    It serves private copies of the archives, made by the first start. After `end` it starts again, on other ports if
    they are not fixed, with the versions that were adopted by then; after `stop`, with the archives as they are on
    disk. Starting, waiting, adopting and stopping belong to one thread at a time; the properties may be read from any.

    Args:
        settings: How it is run.

    Raises:
        BundleError: An archive is missing, damaged, or not the one that was pinned.
        ServerStartError: Two archives hold models of the same name and version, or a pin belongs to none.
    """

    def __init__(self, settings: TorchServeSettings) -> None:
        self._settings = settings
        self._models = ServedModels.of(settings).all()
        self._store: ArchiveStore | None = None
        self._served: tuple[StoredArchive, ...] = ()
        self._folder: InstanceFolder | None = None
        self._jvm: Jvm | None = None
        self._relay: LogRelay | None = None
        self._worker_restarts = WorkerRestarts()

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
            BundleError: An archive cannot be copied, or is no longer the one that was pinned.
        """
        if self.is_running:
            return
        # A JVM that has died leaves a folder, and perhaps a worker.
        self.end(drain_seconds=0)
        restarted = self._store is not None
        try:
            self._launch(self._store or self._filled_store())
        except BaseException:
            if restarted:
                self.end(drain_seconds=0)
            else:
                self.stop(drain_seconds=0)
            raise

    def wait_until_ready(
        self,
        canary: Callable[[ModelVersion], object],
        timeout: float | None = None,
        progress: Callable[[str], None] | None = None,
    ) -> None:
        """Wait until every model has loaded and has answered a canary prediction.

        Args:
            canary: Makes one prediction with that version; raises when it fails.
            timeout: Seconds for each model, from when the one before it was ready: they load side by side, and may have
                to share a processor. None means the settings' `load_timeout_seconds`.
            progress: Told in a few words what is waited for.

        Raises:
            ServerStartError: The JVM ended, a model cannot be loaded, a canary keeps failing, or the time is up. The
                message quotes the log.
        """
        jvm = self._started
        with Management(self.management_address) as management:
            seconds = self._settings.load_timeout_seconds if timeout is None else timeout
            readiness = Readiness(management, jvm.journal, lambda: jvm.is_running, seconds)
            for archive in self._served:
                if progress is not None:
                    progress(f"loading {archive.version}")
                readiness.wait_for(archive, canary)
                self._worker_restarts.loaded(archive.version)
                if progress is not None:
                    progress(f"{archive.version} is ready")

    def load(self, archive: StoredArchive, canary: Callable[[ModelVersion], _Answer]) -> _Answer:
        """Load another version beside what is served, and wait until it has answered a canary prediction.

        May be called in any thread. A version that does not load is unloaded again. What was loaded is forgotten by the
        next start, unless it is adopted.

        Args:
            archive: A copy in `store`.
            canary: Makes one prediction with that version; raises when it fails.

        Returns:
            What the canary returned.

        Raises:
            ServerStartError: The JVM ended, the model cannot be loaded, the canary keeps failing, or the time is up.
                The message quotes the log.
        """
        jvm = self._started
        timeout = self._settings.load_timeout_seconds
        with Management(self.management_address) as management:
            readiness = Readiness(management, jvm.journal, lambda: jvm.is_running, timeout)
            management.register(archive, self._settings.workers)
            try:
                answer = readiness.wait_for(archive, canary)
                self._worker_restarts.loaded(archive.version)
                return answer
            except BaseException:
                if jvm.is_running:
                    # Or TorchServe would try to load it for minutes.
                    with contextlib.suppress(ServerStartError):
                        management.unregister(archive.version, self._other_version(archive.version))
                raise

    def adopt(self, archive: StoredArchive) -> None:
        """Serve a version that was loaded after each start, too.

        Args:
            archive: What was loaded.
        """
        self._served = (*self._served, archive)

    def abandon(self, archive: StoredArchive) -> None:
        """Serve a version no more after the next start; it is not unloaded by this.

        Args:
            archive: One of `served`.
        """
        self._served = tuple(one for one in self._served if one != archive)

    def unload(self, version: ModelVersion) -> None:
        """Unload a version, which nothing may be asked any more. May be called in any thread.

        Args:
            version: What to unload.

        Raises:
            ServerStartError: TorchServe does not do it.
        """
        self._worker_restarts.unloaded(version)
        with Management(self.management_address) as management:
            management.unregister(version, self._other_version(version))

    def end(self, drain_seconds: float = 30) -> None:
        """Let TorchServe finish what it has accepted, then end it and its workers; the copies of the archives stay.

        Does nothing if it does not run.

        Args:
            drain_seconds: How long accepted requests may take; after that, everything is killed.
        """
        self._worker_restarts.unloaded()
        jvm, self._jvm = self._jvm, None
        folder, self._folder = self._folder, None
        relay, self._relay = self._relay, None
        try:
            if jvm is not None:
                jvm.end(drain_seconds)
        finally:
            if relay is not None:
                relay.stop()
            if folder is not None:
                folder.remove()

    def stop(self, drain_seconds: float = 30) -> None:
        """Let TorchServe finish what it has accepted, then end it and its workers, and remove its folders.

        Does nothing if it was not started or has been stopped.

        Args:
            drain_seconds: How long accepted requests may take; after that, everything is killed.
        """
        try:
            self.end(drain_seconds)
        finally:
            store, self._store = self._store, None
            self._served = ()
            if store is not None:
                store.remove()

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
        served = [archive.model for archive in self._served] or self._models
        return tuple(dict.fromkeys(model.name for model in served))

    @property
    def served(self) -> tuple[StoredArchive, ...]:
        """The versions that a start serves: those of the archives, without the abandoned and with the adopted ones."""
        return self._served

    @property
    def store(self) -> ArchiveStore:
        """Where the copies of the archives are, from the first start to `stop`.

        Raises:
            ServerStartError: It was not started.
        """
        if self._store is None:
            raise _not_started()
        return self._store

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
    def worker_restarts(self) -> int:
        """Workers that TorchServe has replaced after they had ended, in all its lives; may be read from any thread."""
        return self._worker_restarts.total

    @property
    def log_path(self) -> Path:
        """The log file; `stop` removes it."""
        return self._started.journal.log

    @property
    def _started(self) -> Jvm:
        jvm = self._jvm
        if jvm is None:
            raise _not_started()
        return jvm

    def _other_version(self, version: ModelVersion) -> ModelVersion | None:
        others = [one.version for one in self._served if one.version.name == version.name and one.version != version]
        return max(others, default=None)

    def _filled_store(self) -> ArchiveStore:
        # Hours may have passed since the archives were looked at.
        self._models = ServedModels.of(self._settings).all()
        self._store = ArchiveStore(self._settings.archive_sha256)
        self._served = tuple(self._store.take(model.archive) for model in self._models)
        return self._store

    def _launch(self, store: ArchiveStore) -> None:
        self._folder = InstanceFolder(store.folder)
        self._folder.fill(self._settings, self._served)
        command = java_command(self._settings, self._folder)
        self._relay = LogRelay(self._folder.log, self._worker_restarts)
        self._relay.start()
        for _ in range(_START_ATTEMPTS):
            ports = free_ports(self._settings.inference_port, self._settings.management_port)
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


def _not_started() -> ServerStartError:
    return ServerStartError("TorchServe is not started: call start() first, or use it in a `with` statement.")
