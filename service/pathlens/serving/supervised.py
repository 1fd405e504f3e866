"""TorchServe with its supervisor, which all share that start one."""

import time
from abc import abstractmethod
from collections.abc import Callable, Sequence

from pathlens.errors import ServerStartError
from pathlens.gateway import Backend, canary
from pathlens.lifecycle import Lifecycle
from pathlens.model_version import ModelVersion
from pathlens.serving.entrance import BackendEntrance
from pathlens.serving.loop_thread import LoopThread
from pathlens.serving.serving import Report, Serving
from pathlens.supervision import Supervisor
from pathlens.torchserve import TorchServe, TorchServeCollector, TorchServeSettings
from pathlens.wire.v1 import explanation_service_pb2 as messages

# However long others have taken, TorchServe may end as it wants to, without being killed.
_LEAST_DRAIN_SECONDS = 1.0


class Supervised(Serving):
    """Starts TorchServe, and starts it again when it has ended or answers nothing.

    Args:
        settings: What is served.
        report: Is told in words how far the start is.

    Attributes:
        torchserve: What is supervised.

    Raises:
        PathlensError: An archive cannot be served.
    """

    def __init__(self, settings: TorchServeSettings, report: Report) -> None:
        self.torchserve = TorchServe(settings)
        self._torchserve_settings = settings
        self._report = report
        self._collector = TorchServeCollector(self.torchserve)
        self._start_seconds = 0.0
        self._loop: LoopThread | None = None
        self._supervisor: Supervisor | None = None

    @property
    def models(self) -> Sequence[str]:
        """Names of the models that are served."""
        return self.torchserve.models

    def stop(self, drain_seconds: float | None = None) -> None:
        """Finish what was accepted, and end every process, as `Serving` asks."""
        seconds = self._drain_seconds if drain_seconds is None else drain_seconds
        end = time.monotonic() + seconds
        try:
            self._announce_stop()
            self._stop_supervisor()
            self._finish_calls(end)
        except BaseException:
            seconds = 0
            raise
        finally:
            # Also when something fails or is interrupted: TorchServe is a process and would live on.
            try:
                self.torchserve.stop(max(_LEAST_DRAIN_SECONDS, end - time.monotonic()) if seconds > 0 else 0)
            finally:
                self._close()

    @property
    @abstractmethod
    def _drain_seconds(self) -> float:
        """How long a stop may take, after the settings."""

    @abstractmethod
    def _announce_stop(self) -> None:
        """Be not ready any more: nobody should choose this service while a restart or a load is broken off."""

    @abstractmethod
    def _finish_calls(self, end: float) -> None:
        """Return when TorchServe may end, which is at the end of the time at the latest."""

    @abstractmethod
    def _close(self) -> None:
        """Put away what is left without TorchServe."""

    @property
    def _failure(self) -> ServerStartError | None:
        return None if self._supervisor is None else self._supervisor.failure

    def _start_torchserve(self, check: Callable[[ModelVersion], object]) -> None:
        self._report("Starting TorchServe")
        began = time.monotonic()
        self.torchserve.start()
        self.torchserve.wait_until_ready(check, progress=self._report)
        self._start_seconds = time.monotonic() - began

    def _supervise(self, backend: Backend, loop: LoopThread) -> None:
        entrance = BackendEntrance(backend, loop, self.torchserve, self._collector)
        self._supervisor = Supervisor(
            self.torchserve,
            self._canary,
            entrance,
            deaf_seconds=self._torchserve_settings.deaf_seconds,
            max_restarts=self._torchserve_settings.max_restarts,
            start_seconds=self._start_seconds,
            meanwhile=Lifecycle(self.torchserve, self._torchserve_settings, self._canary, entrance).step,
        )
        self._supervisor.start()

    def _stop_supervisor(self) -> None:
        supervisor, self._supervisor = self._supervisor, None
        if supervisor is not None:
            supervisor.stop()

    def _canary(self, version: ModelVersion) -> messages.Model:
        # The address may be another one after each restart.
        return canary(self.torchserve.inference_address, version)
