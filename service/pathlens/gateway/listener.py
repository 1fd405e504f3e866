"""The gRPC server behind the gateway's port, opened again whenever gRPC has closed it."""

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from contextlib import suppress

import grpc.aio

from pathlens.errors import ServerStartError

_logger = logging.getLogger(__name__)
_POLL_SECONDS = 0.1
# How long a server that takes no calls any more may take to end the last ones.
_LINGER_SECONDS = 0.5
# Whoever ends servers again and again must not fill the memory with those that finish their calls.
_RETIRED_SERVERS = 8

Make = Callable[[], grpc.aio.Server]
Bind = Callable[[grpc.aio.Server, int], int]


def _do_nothing() -> None:
    """Be what a stop calls when nobody wants to be called."""


class Listener:
    """Keeps a port open from `start` to `stop`.

    grpc's asyncio server ends itself when the path of a call is not UTF-8, whoever sends it. The calls that it has are
    finished then, and another server takes over the port. Of those before it, eight are kept at most; the calls of an
    older one are ended.

    Args:
        make: Makes a server with everything that it serves.
        bind: Lets a server listen on a port, and returns the port.
        port: The port; 0 lets the system choose one, which is kept.

    Raises:
        ServerStartError: The port is taken.
    """

    def __init__(self, make: Make, bind: Bind, port: int) -> None:
        self._make = make
        self._bind = bind
        self._server = make()
        self.port = bind(self._server, port)
        self._keeping: asyncio.Task[None] | None = None
        self._retired: deque[grpc.aio.Server] = deque()
        self._ending: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Take calls."""
        await self._server.start()
        self._keeping = asyncio.create_task(self._keep_open())

    async def stop(self, grace: float | None, closed: Callable[[], None] = _do_nothing) -> None:
        """Take no more calls, and end those in progress; may be repeated.

        Args:
            grace: Seconds that they have; None for none.
            closed: Called as soon as callers are told to make no more calls here. What they are answered from then on
                reaches them after that.
        """
        if self._keeping is not None:
            self._keeping.cancel()
            await asyncio.gather(self._keeping, return_exceptions=True)
        while self._retired:
            self._end_oldest()
        stopping = asyncio.gather(self._server.stop(grace), *self._ending)
        # After the first step of the stop, which is the one that tells callers.
        asyncio.get_running_loop().call_soon(closed)
        await stopping

    async def _keep_open(self) -> None:
        while True:
            try:
                await self._server.wait_for_termination(_POLL_SECONDS)
            except Exception as error:
                _logger.error("gRPC has closed port %d after a call that it cannot read: %s", self.port, error)
                await self._open_again()

    async def _open_again(self) -> None:
        self._retired.append(self._server)
        if len(self._retired) > _RETIRED_SERVERS:
            self._end_oldest()
        # From now on `stop` leaves the one before alone: two stops beside each other can crash grpc.
        self._server = self._make()
        while True:
            # The server before may not have closed the port yet.
            with suppress(ServerStartError):
                self._bind(self._server, self.port)
                break
            await asyncio.sleep(_POLL_SECONDS)
        await self._server.start()

    def _end_oldest(self) -> None:
        ending = asyncio.create_task(self._retired.popleft().stop(_LINGER_SECONDS))
        self._ending.add(ending)
        ending.add_done_callback(self._ending.discard)


def find_methods_by_name(server: grpc.aio.Server) -> None:
    """Let a server find every method by its name, before any is added.

    For a method that is registered beforehand, a server that ends itself frees memory into which grpc still writes.

    Args:
        server: The server of a `Listener`.
    """
    server.add_registered_method_handlers = _register_nothing  # type: ignore[assignment, method-assign]


def _register_nothing(_service_name: str, _handlers: object) -> None:
    """Take the place of grpc.aio.Server's own; the same handlers are added by name besides."""
