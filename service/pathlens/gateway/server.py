"""The gateway as a whole: server, health, reflection, metrics endpoint and the way to TorchServe."""

import asyncio
import logging
import time
from collections.abc import Iterable
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from prometheus_client.registry import Collector

from pathlens.gateway.backend import Backend
from pathlens.gateway.health import Health
from pathlens.gateway.health_server import HealthServer
from pathlens.gateway.host_and_port import host_and_port
from pathlens.gateway.interceptor import RequestInterceptor
from pathlens.gateway.listener import Listener
from pathlens.gateway.metrics import SERVICE, Metrics
from pathlens.gateway.metrics_server import MetricsServer
from pathlens.gateway.security import Security
from pathlens.gateway.server_factory import ServerFactory
from pathlens.gateway.servicer import ExplanationServicer
from pathlens.gateway.settings import GatewaySettings
from pathlens.model_version import ModelVersion
from pathlens.observability import TracingSettings, start_tracing

if TYPE_CHECKING:
    from pathlens.observability.tracing import Tracing

_logger = logging.getLogger(__name__)
# How long calls that our own bookkeeping does not know may still take: health watchers, and calls that just arrived.
_LINGER_SECONDS = 0.5
# How long a stop waits at most for callers to cease. Each of them is waiting for an answer by then, unless it makes
# calls whatever becomes of those before.
_HOLD_SECONDS = 0.2


@dataclass(frozen=True)
class _Running:
    listener: Listener
    metrics_port: int
    health_server: HealthServer | None
    backend: Backend
    interceptor: RequestInterceptor


class Gateway:
    """Serves applications from `start` to `stop`.

    Readiness is NOT_SERVING until every model has described itself, then SERVING while all of them answer their
    canaries and there is a TorchServe, and NOT_SERVING again from the beginning of the stop. Liveness is SERVING until
    `give_up`.

    Args:
        settings: Addresses and limits.
        upstream_address: host:port of TorchServe's gRPC inference endpoint.
        served: Names and versions under which TorchServe serves the models. Without any, calls get UNAVAILABLE until
            the backend has admitted some and resumes.
        security: TLS and tokens; None means plain text, and that everyone may call.
        tracing: Where spans of calls are sent.
        collectors: What the metrics endpoint exposes beside the gateway's own metrics.
    """

    def __init__(
        self,
        settings: GatewaySettings,
        upstream_address: str,
        served: Iterable[ModelVersion],
        security: Security | None = None,
        tracing: TracingSettings = TracingSettings(),
        collectors: Iterable[Collector] = (),
    ) -> None:
        self._settings = settings
        self._tracing = tracing
        self._end = 0.0
        self._security = security or Security()
        self._upstream_address = upstream_address
        self._served = tuple(served)
        self._state: _Running | None = None
        self._collectors = tuple(collectors)
        self._resources = AsyncExitStack()

    @property
    def address(self) -> str:
        """host:port that applications call.

        Raises:
            RuntimeError: The gateway does not run.
        """
        return host_and_port(self._settings.host, self._running.listener.port)

    @property
    def metrics_address(self) -> str:
        """host:port of the Prometheus endpoint.

        Raises:
            RuntimeError: The gateway does not run.
        """
        return host_and_port(self._settings.metrics_host, self._running.metrics_port)

    @property
    def health_address(self) -> str | None:
        """host:port that probes ask in plain text; None without such a port.

        Raises:
            RuntimeError: The gateway does not run.
        """
        server = self._running.health_server
        return None if server is None else server.address

    async def start(self) -> None:
        """Listen, and ask every model to describe itself.

        A model that cannot answer yet is asked again in the background; until then health says NOT_SERVING.

        Raises:
            ServerStartError: A port is taken, or TorchServe does not serve what it should.
        """
        for warning in self._security.warnings(self._settings.host):
            _logger.warning("%s", warning)
        async with AsyncExitStack() as resources:
            resources.enter_context(self._security.following())
            metrics = Metrics(self._settings.max_class_labels)
            if (certificate := self._security.certificate) is not None:
                metrics.certificate_ends(lambda: certificate.ends.timestamp())
            tracing = start_tracing(self._tracing)
            if tracing is not None:
                # Closed after everything that makes spans, within what the stop has left of its time.
                resources.push_async_callback(self._close_tracing, tracing)
            for collector in self._collectors:
                metrics.registry.register(collector)
            metrics_server = MetricsServer(self._settings.metrics_host, self._settings.metrics_port, metrics.registry)
            resources.push_async_callback(asyncio.to_thread, metrics_server.stop)
            probes = Health(SERVICE)
            metrics.ready.set_function(lambda: probes.tells_ready)
            await probes.begin()
            health_server = self._health_server(probes)
            if health_server is not None:
                await health_server.start()
                resources.push_async_callback(health_server.stop)
            backend = Backend(self._settings, self._upstream_address, self._served, metrics, probes)
            resources.push_async_callback(backend.upstream.close)
            limits = self._settings
            interceptor = RequestInterceptor(metrics, limits.max_message_bytes, limits.max_calls, tracing)
            servicer = ExplanationServicer(self._settings, backend.upstream, backend.directory, metrics)
            servers = ServerFactory(self._settings, self._security, servicer, probes, interceptor)
            listener = Listener(servers.make, servers.bind, self._settings.port)
            resources.push_async_callback(listener.stop, None)
            await listener.start()
            await backend.begin()
            self._state = _Running(listener, metrics_server.port, health_server, backend, interceptor)
            self._resources = resources.pop_all()

    @property
    def backend(self) -> Backend:
        """TorchServe, as this gateway sees it.

        Raises:
            RuntimeError: The gateway does not run.
        """
        return self._running.backend

    async def announce_stop(self) -> None:
        """Be not ready any more, for good, while calls are still taken; does nothing if the gateway does not run."""
        if self._state is not None:
            await self._state.backend.announce_stop()

    async def stop(self, drain_seconds: float | None = None) -> None:
        """Refuse new calls, let the accepted ones finish, and close everything.

        Stopping a gateway that does not run does nothing.

        Args:
            drain_seconds: How long to wait for calls in progress; None means the settings' own.
        """
        if self._state is None:
            return
        state, self._state = self._state, None
        seconds = self._settings.drain_seconds if drain_seconds is None else drain_seconds
        end = self._end = time.monotonic() + seconds
        try:
            await state.backend.end()
            await _stop_server(state, seconds)
            unanswered = await state.backend.upstream.drain(max(0.0, end - time.monotonic()))
            if unanswered:
                _logger.warning("TorchServe still works on %d calls that nobody waits for", unanswered)
        finally:
            # Also when the stop is interrupted.
            await self._resources.aclose()

    async def _close_tracing(self, tracing: "Tracing") -> None:
        await asyncio.to_thread(tracing.close, max(0.0, self._end - time.monotonic()))

    def _health_server(self, probes: Health) -> HealthServer | None:
        port = self._settings.health_port
        return None if port is None else HealthServer(self._settings.host, port, "gateway.health_port", probes)

    @property
    def _running(self) -> _Running:
        if self._state is None:
            raise RuntimeError("The gateway does not run: call start() first.")
        return self._state


async def _stop_server(state: _Running, seconds: float) -> None:
    end = time.monotonic() + seconds
    state.interceptor.refuse()
    with suppress(TimeoutError):
        await asyncio.wait_for(state.interceptor.idle(), seconds)
    # What reaches grpc while it closes, or has not been read by then, ends with CANCELLED as if its caller
    # had left.
    try:
        await state.interceptor.hold(min(end - time.monotonic(), _HOLD_SECONDS))
        # A Watch of the health service never ends by itself and gets no more than a moment. One stop and no second,
        # shorter one beside it: grpc crashes if the time of both is up at once.
        linger = min(max(0.0, end - time.monotonic()), _LINGER_SECONDS)
        await state.listener.stop(linger, state.interceptor.release)
    finally:
        # Also when the stop is interrupted: those who are held wait for this alone.
        state.interceptor.release()
