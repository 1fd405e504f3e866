"""What a `Watch` of the health service says over time."""

import asyncio
import time
from contextlib import suppress
from typing import Any

import grpc
import grpc.aio
from grpc_health.v1 import health_pb2, health_pb2_grpc

SERVING = health_pb2.HealthCheckResponse.SERVING


class HealthWatch:
    """Listens to one health service, from `run` until the call ends.

    Args:
        channel: A connection to the gateway.
        name: Name of the health service.

    Attributes:
        seen: When which status came.
    """

    def __init__(self, channel: grpc.aio.Channel, name: str) -> None:
        self.name = name
        self.seen: list[tuple[float, bool]] = []
        self._channel = channel

    async def run(self) -> None:
        """Listen."""
        stub: Any = health_pb2_grpc.HealthStub(self._channel)
        with suppress(grpc.RpcError, asyncio.CancelledError):
            async for response in stub.Watch(health_pb2.HealthCheckRequest(service=self.name)):
                self.seen.append((time.monotonic(), response.status == SERVING))
