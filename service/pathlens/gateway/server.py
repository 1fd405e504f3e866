"""The gateway as a whole: server, health, reflection, metrics endpoint and the way to TorchServe."""

import asyncio
import logging
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from functools import partial

import grpc.aio
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from pathlens.errors import (
    DeadlineExceededError,
    PathlensError,
    ResourceExhaustedError,
    ServerStartError,
    UnavailableError,
)
from pathlens.gateway.interceptor import RequestInterceptor
from pathlens.gateway.metrics import SERVICE, Metrics
from pathlens.gateway.metrics_server import MetricsServer
from pathlens.gateway.models import ModelDirectory
from pathlens.gateway.servicer import ExplanationServicer
from pathlens.gateway.settings import GatewaySettings
from pathlens.gateway.upstream import Upstream
from pathlens.gateway.watch import Watch
from pathlens.wire.v1 import explanation_service_pb2_grpc

_logger = logging.getLogger(__name__)
_HEALTH_NAMES = ("", SERVICE)
_RETRY_SECONDS = 1.0
# How long calls that our own bookkeeping does not know may still take: health watchers, and calls that just arrived.
_LINGER_SECONDS = 0.5
# gRPC refuses a message without details; so it lets a little more through, which we then refuse with them.
_SPARE_MESSAGE_BYTES = 1024 * 1024
# A call that TorchServe has no room for waits, or is refused at once; so there are seldom many more than it holds.
_CALLS_PER_PLACE = 4


@dataclass(frozen=True)
class _Running:
    server: grpc.aio.Server
    port: int
    metrics_port: int
    upstream: Upstream
    directory: ModelDirectory
    health: health.aio.HealthServicer
    interceptor: RequestInterceptor


class Gateway:
    """Serves applications from `start` to `stop`.

    Health is NOT_SERVING until every model has described itself, then SERVING while all of them answer their canaries,
    and NOT_SERVING again from the beginning of the stop.

    Args:
        settings: Addresses and limits.
        upstream_address: host:port of TorchServe's gRPC inference endpoint.
        model_names: Names under which TorchServe serves the models.
    """

    def __init__(self, settings: GatewaySettings, upstream_address: str, model_names: Sequence[str]) -> None:
        self._settings = settings
        self._upstream_address = upstream_address
        self._model_names = tuple(model_names)
        self._state: _Running | None = None
        self._resources = AsyncExitStack()
        self._keeping_health: asyncio.Task[None] | None = None

    @property
    def address(self) -> str:
        """host:port that applications call.

        Raises:
            RuntimeError: The gateway does not run.
        """
        return _address(self._settings.host, self._running.port)

    @property
    def metrics_address(self) -> str:
        """host:port of the Prometheus endpoint.

        Raises:
            RuntimeError: The gateway does not run.
        """
        return _address(self._settings.metrics_host, self._running.metrics_port)

    async def start(self) -> None:
        """Listen, and ask every model to describe itself.

        A model that cannot answer yet is asked again in the background; until then health says NOT_SERVING.

        Raises:
            ServerStartError: A port is taken, or TorchServe does not serve what it should.
        """
        async with AsyncExitStack() as resources:
            metrics = Metrics()
            metrics_server = MetricsServer(self._settings.metrics_host, self._settings.metrics_port, metrics.registry)
            resources.push_async_callback(asyncio.to_thread, metrics_server.stop)
            upstream = Upstream(self._upstream_address, self._settings, metrics)
            resources.push_async_callback(upstream.close)
            directory = ModelDirectory(self._model_names, upstream)
            health_servicer = health.aio.HealthServicer()
            interceptor = RequestInterceptor(metrics, self._settings.max_message_bytes)
            server = grpc.aio.server(
                interceptors=[interceptor],
                options=self._server_options(),
                maximum_concurrent_rpcs=_CALLS_PER_PLACE * self._settings.max_in_flight,
            )
            resources.push_async_callback(server.stop, None)
            explanation_service_pb2_grpc.add_ExplanationServiceServicer_to_server(
                ExplanationServicer(self._settings, upstream, directory, metrics), server
            )
            health_pb2_grpc.add_HealthServicer_to_server(health_servicer, server)
            reflection.enable_server_reflection((SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME), server)
            await _report_health(health_servicer, False)
            state = _Running(
                server, self._bind(server), metrics_server.port, upstream, directory, health_servicer, interceptor
            )
            await server.start()
            ready = await _ready(state)
            self._keeping_health = asyncio.create_task(_keep_health(state, self._model_names, ready))
            self._state = state
            self._resources = resources.pop_all()

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
        end = time.monotonic() + seconds
        try:
            if self._keeping_health is not None:
                self._keeping_health.cancel()
                await asyncio.gather(self._keeping_health, return_exceptions=True)
            await state.health.enter_graceful_shutdown()
            await _stop_server(state, seconds)
            unanswered = await state.upstream.drain(max(0.0, end - time.monotonic()))
            if unanswered:
                _logger.warning("TorchServe still works on %d calls that nobody waits for", unanswered)
        finally:
            # Also when the stop is interrupted.
            await self._resources.aclose()

    @property
    def _running(self) -> _Running:
        if self._state is None:
            raise RuntimeError("The gateway does not run: call start() first.")
        return self._state

    def _server_options(self) -> list[tuple[str, int]]:
        return [
            ("grpc.max_receive_message_length", self._settings.max_message_bytes + _SPARE_MESSAGE_BYTES),
            ("grpc.max_send_message_length", self._settings.max_message_bytes),
            # Otherwise a second gateway on the same port would start, and take half of the calls.
            ("grpc.so_reuseport", 0),
        ]

    def _bind(self, server: grpc.aio.Server) -> int:
        address = _address(self._settings.host, self._settings.port)
        try:
            return server.add_insecure_port(address)
        except RuntimeError as error:
            raise ServerStartError(
                f"The gateway cannot listen on {address}: choose another port, or 0 for any free one.",
                reason="PORT_UNAVAILABLE",
                metadata={"host": self._settings.host, "port": self._settings.port},
            ) from error


async def _ready(state: _Running) -> bool:
    try:
        await state.directory.refresh()
    except (UnavailableError, ResourceExhaustedError, DeadlineExceededError) as error:
        _logger.warning("The gateway is not ready yet: %s", error.message)
        return False
    except PathlensError as error:
        raise ServerStartError(
            f"The gateway cannot serve: {error.message}", reason=error.reason, metadata=error.metadata
        ) from error
    await _report_health(state.health, True)
    return True


async def _report_health(servicer: health.aio.HealthServicer, serving: bool) -> None:
    for name in _HEALTH_NAMES:
        await servicer.set(
            name, health_pb2.HealthCheckResponse.SERVING if serving else health_pb2.HealthCheckResponse.NOT_SERVING
        )


async def _keep_health(state: _Running, names: Sequence[str], ready: bool) -> None:
    if not ready:
        await _become_ready(state)
    await Watch(names, state.upstream, partial(_report_health, state.health)).run()


async def _become_ready(state: _Running) -> None:
    ready = False
    while not ready:
        await asyncio.sleep(_RETRY_SECONDS)
        try:
            ready = await _ready(state)
        except ServerStartError as error:
            _logger.error("The gateway keeps trying: %s", error.message)


async def _stop_server(state: _Running, seconds: float) -> None:
    end = time.monotonic() + seconds
    state.interceptor.refuse()
    with suppress(TimeoutError):
        await asyncio.wait_for(state.interceptor.idle(), seconds)
    # A Watch of the health service never ends by itself and gets no more than a moment. One stop and no second, shorter
    # one beside it: grpc crashes if the time of both is up at once.
    await state.server.stop(min(max(0.0, end - time.monotonic()), _LINGER_SECONDS))


def _address(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
