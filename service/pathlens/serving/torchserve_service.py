"""TorchServe alone: one of the two containers of a pod, which share their loopback."""

import logging
import time
from collections.abc import Sequence
from dataclasses import replace

import psutil

from pathlens.gateway import GatewaySettings, TorchServeHealth
from pathlens.model_version import ModelVersion
from pathlens.serving.loop_thread import LoopThread
from pathlens.serving.serving import Report
from pathlens.serving.supervised import Supervised
from pathlens.torchserve import TorchServeSettings
from pathlens.torchserve.clients import other_clients

_logger = logging.getLogger(__name__)
_POLL_SECONDS = 0.25
# A gateway that was cut off is back before that; what is left of its calls may be in the queue.
_ALONE_SECONDS = 1.0


class TorchServeService(Supervised):
    """Starts TorchServe and keeps it alive, for a gateway that is another process; stops when that has gone.

    Probes and Prometheus are answered from the beginning, while the models load, to the end. Archives are not looked at
    again.

    Args:
        settings: What is served, and where it is to be found.
        limits: Those of the gateway: how many of its requests canaries may have to wait for, and their largest message.
        report: Is told in words how far the start is.
    """

    def __init__(
        self,
        settings: TorchServeSettings,
        limits: GatewaySettings = GatewaySettings(),
        report: Report = lambda _words: None,
    ) -> None:
        # A version is unloaded when no call uses it, and only the gateway knows that.
        super().__init__(replace(settings, poll_seconds=0), report)
        self._limits = limits.for_workers(settings.workers)
        self._health: TorchServeHealth | None = None

    @property
    def endpoints(self) -> Sequence[tuple[str, str]]:
        """What it listens on: a word and an address each, while it runs."""
        health = self._running
        return [
            ("inference", self.torchserve.inference_address),
            ("management", self.torchserve.management_address),
            ("health", health.address),
            ("metrics", f"http://{health.metrics_address}/metrics"),
        ]

    @property
    def _drain_seconds(self) -> float:
        return self._torchserve_settings.drain_seconds

    def _break_off_start(self) -> None:
        # A gateway may have found the models a moment before us.
        has_clients = self.torchserve.is_running and self._clients() > 0
        self.stop(None if has_clients else 0)

    def _start(self) -> None:
        self._loop = LoopThread()
        # Known before it is started, so that an interrupted start is undone.
        self._health = TorchServeHealth(self._torchserve_settings, self._limits, [self._collector])
        self._loop.run(self._health.start())
        backend = self._health.backend
        loop = self._loop

        def check(version: ModelVersion) -> None:
            loop.run(backend.admit(self._canary(version), version))

        self._start_torchserve(check)
        loop.run(backend.resume(self.torchserve.inference_address))
        self._supervise(backend, loop)

    def _announce_stop(self) -> None:
        if self._loop is not None and self._health is not None:
            self._loop.run(self._health.announce_stop())

    def _finish_calls(self, end: float) -> None:
        """Wait until nobody else has been connected to TorchServe for a moment."""
        last_seen = time.monotonic()
        # Without a JVM nobody can be connected; it is not started again, as the supervisor has ended.
        while self.torchserve.is_running and time.monotonic() < end:
            if self._clients():
                last_seen = time.monotonic()
            elif time.monotonic() - last_seen > _ALONE_SECONDS:
                return
            time.sleep(_POLL_SECONDS)
        if time.monotonic() >= end > last_seen:
            _logger.warning("A gateway is still connected after drain_seconds; TorchServe ends nevertheless")

    def _clients(self) -> int:
        port = int(self.torchserve.inference_address.rpartition(":")[2])
        try:
            return other_clients(port)
        except (psutil.Error, OSError) as error:
            # Rather wait for nothing than end calls.
            _logger.warning("It cannot be told who is connected to TorchServe: %s", error)
            return 1

    def _close(self) -> None:
        health, self._health = self._health, None
        loop, self._loop = self._loop, None
        if loop is None:
            return
        try:
            if health is not None:
                loop.run(health.stop())
        finally:
            loop.close()

    @property
    def _running(self) -> TorchServeHealth:
        if self._health is None:
            raise RuntimeError("TorchServe is not running; call start first")
        return self._health
