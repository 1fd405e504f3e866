"""What the gateway tells probes: the services of grpc.health.v1."""

import time

from grpc_health.v1 import health_pb2

from pathlens.gateway.health_servicer import HealthServicer

LIVENESS = "liveness"
"""Service that is SERVING while whatever fails can be restarted."""

READINESS = "readiness"
"""Service that is SERVING while every model answers; so are the empty name and those that are named beside it."""

_STATUSES = {True: health_pb2.HealthCheckResponse.SERVING, False: health_pb2.HealthCheckResponse.NOT_SERVING}


class Health:
    """Liveness, from the beginning to `give_up`, and readiness, as told until `drain`.

    Construct it inside a running event loop, and call `begin` before the server starts.

    Args:
        services: Full names of the services whose readiness it is.

    Attributes:
        servicer: What answers `Check` and `Watch`.
    """

    def __init__(self, *services: str) -> None:
        self._names = ("", READINESS, *services)
        self.servicer = HealthServicer()
        self._draining = False
        self._unready_since: float | None = time.monotonic()
        self._tells_ready = False

    @property
    def tells_ready(self) -> bool:
        """Whether readiness is SERVING. May be read from any thread."""
        return self._tells_ready

    @property
    def unready_seconds(self) -> float:
        """For how long the models have not answered; 0 while they do. May be read from any thread."""
        since = self._unready_since
        return 0.0 if since is None else time.monotonic() - since

    async def begin(self) -> None:
        """Be alive, and not ready."""
        self.servicer.tell({LIVENESS: _STATUSES[True]})
        await self.ready(False)

    async def ready(self, ready: bool) -> None:
        """Tell whether every model answers; after `drain`, nobody hears of it.

        Args:
            ready: Whether they do.
        """
        if not ready:
            self._unready_since = self._unready_since or time.monotonic()
        else:
            self._unready_since = None
        if not self._draining:
            self._tell_readiness(ready)

    async def reconnected(self) -> None:
        """Count the time without answers from now: the models are new."""
        self._unready_since = time.monotonic()

    async def drain(self) -> None:
        """Not be ready any more. What drains is alive: nobody shall kill it for that."""
        self._draining = True
        self._tell_readiness(False)

    async def give_up(self) -> None:
        """Not be alive any more, nor ready."""
        await self.drain()
        self.servicer.tell({LIVENESS: _STATUSES[False]})

    def _tell_readiness(self, ready: bool) -> None:
        self._tells_ready = ready
        self.servicer.tell(dict.fromkeys(self._names, _STATUSES[ready]))
