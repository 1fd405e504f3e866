"""What stands in the place of the gateway where TorchServe is served alone: canaries, probes and metrics."""

import math
from collections.abc import Iterable
from contextlib import AsyncExitStack
from dataclasses import replace

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.registry import Collector

from pathlens.gateway.backend import Backend
from pathlens.gateway.health import Health
from pathlens.gateway.health_server import HealthServer
from pathlens.gateway.host_and_port import host_and_port
from pathlens.gateway.metrics import Metrics
from pathlens.gateway.metrics_server import MetricsServer
from pathlens.gateway.settings import GatewaySettings
from pathlens.torchserve import TorchServeSettings

# Nothing is sent there: the backend is told the address with the first TorchServe.
_NOWHERE = "127.0.0.1:0"
# The largest upstream_timeout_seconds.
_DAY_SECONDS = 86_400.0


class TorchServeHealth:
    """Tells probes and Prometheus how a TorchServe is, whose callers are elsewhere, from `start` to `stop`.

    Liveness is SERVING until the backend gives up; readiness is SERVING while all models answer canaries. A canary that
    gets no answer may wait behind calls that are not seen from here: as long as TorchServe itself answers, it counts as
    failed only after the time that the workers have, at `response_timeout_seconds` each, for all the requests that a
    gateway may have in flight and for the canary.

    Args:
        settings: Where to listen, and where TorchServe will be found.
        limits: Those of the gateway, of which the backend keeps all but `upstream_timeout_seconds`.
        collectors: What the metrics endpoint exposes.
    """

    def __init__(
        self, settings: TorchServeSettings, limits: GatewaySettings, collectors: Iterable[Collector] = ()
    ) -> None:
        self._settings = settings
        self._limits = replace(limits, upstream_timeout_seconds=_longest_wait(settings, limits))
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        for collector in collectors:
            self._registry.register(collector)
        self._resources = AsyncExitStack()
        self._backend: Backend | None = None

    async def start(self) -> None:
        """Listen; the backend has no models yet.

        Raises:
            ServerStartError: A port is taken.
        """
        settings = self._settings
        async with AsyncExitStack() as resources:
            self._metrics_server = MetricsServer(settings.host, settings.metrics_port, self._registry)
            resources.callback(self._metrics_server.stop)
            health = Health()
            await health.begin()
            self._health_server = HealthServer(settings.host, settings.health_port, "torchserve.health_port", health)
            resources.push_async_callback(self._health_server.stop)
            await self._health_server.start()
            # These calls are canaries: what the gateway counts of its own ones is not exposed twice.
            backend = Backend(self._limits, _NOWHERE, (), Metrics(), health, all_calls=False)
            resources.push_async_callback(backend.upstream.close)
            resources.push_async_callback(backend.end)
            await backend.begin()
            self._backend = backend
            self._resources = resources.pop_all()

    @property
    def address(self) -> str:
        """host:port that probes ask."""
        return self._health_server.address

    @property
    def metrics_address(self) -> str:
        """host:port of the Prometheus endpoint."""
        return host_and_port(self._settings.host, self._metrics_server.port)

    @property
    def backend(self) -> Backend:
        """TorchServe, as seen from here.

        Raises:
            RuntimeError: It was not started.
        """
        if self._backend is None:
            raise RuntimeError("Nothing is told of TorchServe's health: call start() first.")
        return self._backend

    async def announce_stop(self) -> None:
        """Be not ready any more, for good, and send no further canaries; does nothing if it was not started."""
        if self._backend is not None:
            await self._backend.end()

    async def stop(self) -> None:
        """Close everything; may be repeated."""
        await self._resources.aclose()


def _longest_wait(settings: TorchServeSettings, limits: GatewaySettings) -> float:
    ahead = math.ceil(limits.requests_in_flight(settings.workers) / settings.workers)
    return min(_DAY_SECONDS, (ahead + 1.0) * settings.response_timeout_seconds)
