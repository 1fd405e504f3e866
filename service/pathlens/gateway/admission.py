"""How much TorchServe may hold at one time."""

import asyncio
from collections import deque

from pathlens.gateway.upstream_errors import queue_full


class Admission:
    """Counts calls and their bytes from `take` or `turn` to `leave`, and keeps both below their limits.

    A call is always let in when there is no other. What becomes free goes first to those who wait, in the order in
    which they came; a call that does not wait passes them only if it fits beside what is there, where the first of them
    does not.

    Args:
        max_calls: Most calls at a time.
        max_bytes: Most bytes of all their requests.
    """

    def __init__(self, max_calls: int, max_bytes: int) -> None:
        self._max_calls = max_calls
        self._max_bytes = max_bytes
        self._calls = 0
        self._bytes = 0
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    def take(self, size: int) -> None:
        """Let a call in that does not wait.

        Args:
            size: Bytes of its request.

        Raises:
            ResourceExhaustedError: There is no room.
        """
        if not self._fits(size):
            raise queue_full(self._calls, self._max_calls, self._bytes, self._max_bytes)
        self._enter(size)

    async def turn(self, size: int) -> None:
        """Let a call in, as soon as there is room and those who wait already are in.

        Args:
            size: Bytes of its request.
        """
        if not self._waiting and self._fits(size):
            self._enter(size)
            return
        place: tuple[int, asyncio.Future[None]] = (size, asyncio.get_running_loop().create_future())
        self._waiting.append(place)
        try:
            await place[1]
        except asyncio.CancelledError:
            if place in self._waiting:
                self._waiting.remove(place)
                # It may have been the first, too large for the room that the next one fits into.
                self._let_in()
            else:
                # Let in at the moment in which it gave up.
                self.leave(size)
            raise

    def leave(self, size: int) -> None:
        """Give back the room of a call.

        Args:
            size: Bytes of its request, as when it came in.
        """
        self._calls -= 1
        self._bytes -= size
        self._let_in()

    def _fits(self, size: int) -> bool:
        return not self._calls or (self._calls < self._max_calls and self._bytes + size <= self._max_bytes)

    def _enter(self, size: int) -> None:
        self._calls += 1
        self._bytes += size

    def _let_in(self) -> None:
        while self._waiting and self._fits(self._waiting[0][0]):
            size, place = self._waiting.popleft()
            self._enter(size)
            if place.cancelled():
                # Its coroutine gives the room back when it runs.
                continue
            place.set_result(None)
