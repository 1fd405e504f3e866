"""How many streams and batches may be in progress, and how many bytes they may hold."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import contextmanager

from pathlens.gateway.call_kind import CallKind
from pathlens.gateway.metrics import Metrics
from pathlens.gateway.settings import GatewaySettings
from pathlens.gateway.upstream_errors import too_many_bulk_calls
from pathlens.wire.v1 import explanation_service_pb2 as messages


class BulkCalls:
    """Counts the streams and batches in progress, whose items wait for room however many wait already.

    A batch counts from its beginning to its end, and a stream while it has items without an answer: a silent one keeps
    nobody out. Batches for which there is no room are refused; streams leave their next items unread until there is.

    Args:
        settings: The limits.
        metrics: Where refusals are counted.
    """

    def __init__(self, settings: GatewaySettings, metrics: Metrics) -> None:
        self._settings = settings
        self._metrics = metrics
        self._calls = 0
        self._bytes = 0
        self._waiting: set[asyncio.Future[None]] = set()

    @contextmanager
    def batch(self, size: int) -> Iterator[None]:
        """Count a batch while it is in progress.

        Args:
            size: Its bytes, which stay in memory until it ends.

        Raises:
            ResourceExhaustedError: As many calls are in progress as may be, or with this one they would have too many
                bytes; the only one may have any size.
        """
        if self._bytes and self._bytes + size > self._settings.max_queued_bytes:
            self._refuse()
        self.begin()
        self.hold(size)
        try:
            yield
        finally:
            self.release(size)
            self.end()

    @contextmanager
    def stream(self) -> Iterator["BulkStream"]:
        """Count what a stream holds while it is in progress."""
        stream = BulkStream(self)
        try:
            yield stream
        finally:
            stream.close()

    @property
    def has_room(self) -> bool:
        """Whether streams may read another item beside those that they have."""
        return self._bytes < self._settings.max_queued_bytes

    def begin(self) -> None:
        """Count a call.

        Raises:
            ResourceExhaustedError: As many are in progress as may be.
        """
        if self._calls >= self._settings.max_bulk_calls:
            self._refuse()
        self._calls += 1

    def end(self) -> None:
        """Count a call no more."""
        self._calls -= 1

    def hold(self, size: int) -> None:
        """Count bytes."""
        self._bytes += size

    def release(self, size: int) -> None:
        """Count bytes no more."""
        self._bytes -= size
        for waiting in self._waiting:
            if not waiting.done():
                waiting.set_result(None)

    async def change(self) -> None:
        """Wait until bytes are counted no more."""
        waiting = asyncio.get_running_loop().create_future()
        self._waiting.add(waiting)
        try:
            await waiting
        finally:
            self._waiting.discard(waiting)

    def _refuse(self) -> None:
        error = too_many_bulk_calls(
            {
                "calls": self._calls,
                "calls_limit": self._settings.max_bulk_calls,
                "bytes": self._bytes,
                "bytes_limit": self._settings.max_queued_bytes,
            }
        )
        self._metrics.refused.labels(CallKind.BULK.value, error.reason).inc()
        raise error


class BulkStream:
    """What one stream has read and not yet answered; `BulkCalls.stream` makes it.

    Args:
        calls: All streams and batches.
    """

    def __init__(self, calls: BulkCalls) -> None:
        self._calls = calls
        self._items = 0
        self._bytes = 0

    async def items(
        self, requests: AsyncIterator[messages.StreamExplainRequest]
    ) -> AsyncGenerator[tuple[messages.StreamExplainRequest, int], None]:
        """Read the stream: one item in any case, and another one beside it when there is room.

        Args:
            requests: The stream.

        Yields:
            The items, each with its bytes, for `answering`.

        Raises:
            ResourceExhaustedError: As many other calls are in progress as may be.
        """
        while True:
            while self._items and not self._calls.has_room:
                await self._calls.change()
            request = await anext(requests, None)
            if request is None:
                return
            if not self._items:
                self._calls.begin()
            size = request.ByteSize()
            self._items += 1
            self._bytes += size
            self._calls.hold(size)
            yield request, size

    @contextmanager
    def answering(self, size: int) -> Iterator[None]:
        """Hold an item until it is answered.

        Args:
            size: Its bytes.
        """
        try:
            yield
        finally:
            self._give_back(1, size)

    def close(self) -> None:
        """Give back what was read and not answered."""
        self._give_back(self._items, self._bytes)

    def _give_back(self, items: int, size: int) -> None:
        self._items -= items
        self._bytes -= size
        if items and not self._items:
            self._calls.end()
        self._calls.release(size)
