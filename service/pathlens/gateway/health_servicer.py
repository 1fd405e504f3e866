"""The two calls of grpc.health.v1."""

import asyncio
from collections.abc import Mapping
from typing import Any, NoReturn

import grpc
import grpc.aio
from grpc_health.v1 import health_pb2, health_pb2_grpc

Context = grpc.aio.ServicerContext[Any, Any]


class HealthServicer(health_pb2_grpc.HealthServicer):
    """Answers `Check` and `Watch` with what was told last.

    In the place of grpcio-health-checking's own, which writes to watchers under the lock that a change needs: one
    watcher who reads nothing would keep everybody, and the change itself, waiting for ever.

    Construct it inside a running event loop.
    """

    def __init__(self) -> None:
        self._statuses: dict[str, int] = {}
        self._changed = asyncio.Event()
        self._watchers = 0

    @property
    def watchers(self) -> int:
        """How many calls of `Watch` are in progress."""
        return self._watchers

    def tell(self, statuses: Mapping[str, int]) -> None:
        """Tell how services are from now on, without waiting for anybody.

        Args:
            statuses: A `health_pb2.HealthCheckResponse.ServingStatus` by the name of the service. Others stay.
        """
        self._statuses.update(statuses)
        # One for each change: who waits for the next one must not find it set by this one.
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    async def Check(  # noqa: N802
        self, request: health_pb2.HealthCheckRequest, context: Context
    ) -> health_pb2.HealthCheckResponse:
        """Tell how a service is; NOT_FOUND if there is no such service."""
        if request.service not in self._statuses:
            await context.abort(grpc.StatusCode.NOT_FOUND)
        return self._response(request)

    async def Watch(self, request: health_pb2.HealthCheckRequest, context: Context) -> NoReturn:  # noqa: N802
        """Tell how a service is, and again whenever that has changed; SERVICE_UNKNOWN while there is none.

        What changed and changed back while the caller did not read is not told.
        """
        self._watchers += 1
        try:
            told: health_pb2.HealthCheckResponse | None = None
            while True:
                changed, response = self._changed, self._response(request)
                if response != told:
                    await context.write(response)
                    told = response
                await changed.wait()
        finally:
            self._watchers -= 1

    def _response(self, request: health_pb2.HealthCheckRequest) -> health_pb2.HealthCheckResponse:
        status = self._statuses.get(request.service, health_pb2.HealthCheckResponse.SERVICE_UNKNOWN)
        return health_pb2.HealthCheckResponse(status=health_pb2.HealthCheckResponse.ServingStatus.ValueType(status))
