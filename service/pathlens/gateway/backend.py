"""TorchServe as those in front of it see it: what it serves, whether that answers, and the way to it."""

import asyncio
import logging
import time
from collections.abc import Iterable

from pathlens.gateway.health import Health
from pathlens.gateway.metrics import Metrics
from pathlens.gateway.models import ModelDirectory
from pathlens.gateway.readiness import Readiness
from pathlens.gateway.settings import GatewaySettings
from pathlens.gateway.upstream import Upstream
from pathlens.gateway.upstream_errors import RESTART_SECONDS
from pathlens.model_version import ModelVersion
from pathlens.wire.v1 import explanation_service_pb2 as messages

_logger = logging.getLogger(__name__)
_IDLE_POLL_SECONDS = 0.05
# How long the series of a retired version stay, for the counts of its last calls to be seen: twice the minute that lies
# between scrapes where nobody sets another time.
_LAST_SCRAPES_SECONDS = 120.0


class Backend:
    """Keeps the way to one TorchServe after the other, and keeps health.

    Construct it inside a running event loop. Without models, it is suspended until some were admitted and `resume` is
    called.

    Args:
        settings: Limits.
        address: host:port of TorchServe's gRPC inference endpoint.
        served: Names and versions under which TorchServe serves the models.
        metrics: Where calls and versions are counted.
        health: Is told whether every model answers.
        all_calls: Whether all calls to TorchServe go through here; the calls of others may keep canaries waiting.

    Attributes:
        upstream: The way to the handlers.
        directory: What is served.
    """

    def __init__(
        self,
        settings: GatewaySettings,
        address: str,
        served: Iterable[ModelVersion],
        metrics: Metrics,
        health: Health,
        *,
        all_calls: bool = True,
    ) -> None:
        self._patience = settings.upstream_timeout_seconds
        self._metrics = metrics
        self._health = health
        self.upstream = Upstream(address, settings, metrics)
        self.directory = ModelDirectory(served, self.upstream)
        self._readiness = Readiness(self.directory, self.upstream, health, self._patience, metrics, all_calls=all_calls)
        self._places = settings.requests_in_flight()
        self._retiring: set[asyncio.Future[None]] = set()
        self._forgetting: dict[ModelVersion, asyncio.TimerHandle] = {}
        for version in self.directory.served:
            metrics.serve(version, self._places)

    @property
    def unready_seconds(self) -> float:
        """For how long readiness has been NOT_SERVING with the present TorchServe; 0 while it is SERVING.

        May be read from any thread.
        """
        return self._health.unready_seconds

    async def begin(self) -> None:
        """Ask every model to describe itself, and keep health from then on.

        A model that cannot answer yet is asked again in the background; until then health says NOT_SERVING.

        Raises:
            ServerStartError: TorchServe does not serve what it should.
        """
        if self.directory.served:
            await self._readiness.begin()
        else:
            self.upstream.suspend(RESTART_SECONDS)

    async def suspend(self, retry_after: float) -> None:
        """Answer calls with UNAVAILABLE, and be not ready, until `resume`: there is no TorchServe for a while.

        Args:
            retry_after: Seconds after which callers may try again.
        """
        self.upstream.suspend(retry_after)
        await self._readiness.end()
        await self._health.ready(False)

    async def resume(self, address: str) -> None:
        """Go on with another TorchServe.

        Args:
            address: host:port of its gRPC inference endpoint.

        Raises:
            ServerStartError: It does not serve what it should.
        """
        await self._health.reconnected()
        await self.upstream.connect(address)
        await self._readiness.begin()

    async def admit(self, model: messages.Model, version: ModelVersion) -> None:
        """Let applications use another version; it answers whoever names none, if it is the newest of its model.

        Args:
            model: What it says about itself.
            version: Name and version under which TorchServe serves it.

        Raises:
            InternalError: It calls itself something else.
        """
        self.directory.add(model, version)
        self._keep_series(version)
        self._metrics.serve(version, self._places)
        self._readiness.follow()

    async def retire(self, version: ModelVersion) -> None:
        """Let no further call use a version, and return when no call does.

        A version that has answered nothing for `upstream_timeout_seconds` is not waited for, and its calls give their
        room to those of others.

        Args:
            version: What TorchServe is about to unload; another one has to be left. May be repeated.
        """
        self._hide(version)
        drain = asyncio.ensure_future(self._idle(version))
        self._retiring.add(drain)
        drain.add_done_callback(self._retiring.discard)
        await asyncio.wait({drain})
        # A stop waits for the calls, and TorchServe ends before it unloads anything.
        if not drain.cancelled():
            self._forget(version)

    async def drop(self, version: ModelVersion) -> None:
        """Let no further call use a version, and wait for none: TorchServe has it no more, and answers nothing of it.

        Args:
            version: What has gone.
        """
        self._hide(version)
        self._forget(version)

    def count_model_change(self, result: str) -> None:
        """Count that a version came, went or was refused. May be called in any thread.

        Args:
            result: One of `MODEL_CHANGES`.
        """
        self._metrics.model_changes.labels(result).inc()

    async def give_up(self) -> None:
        """Be neither ready nor alive: TorchServe cannot be started again."""
        await self._health.give_up()

    async def announce_stop(self) -> None:
        """Be not ready any more, for good, while calls are still taken."""
        await self._health.drain()

    async def end(self) -> None:
        """Be not ready any more, send no further canaries, and let nobody wait for calls of a version."""
        await self._health.drain()
        await self._readiness.end()
        for drain in self._retiring:
            drain.cancel()
        for version in list(self._forgetting):
            self._keep_series(version)

    def _hide(self, version: ModelVersion) -> None:
        self.directory.remove(version)
        self._metrics.retire(version)
        self._readiness.follow()

    def _forget(self, version: ModelVersion) -> None:
        self.upstream.forget(version)
        self._keep_series(version)
        loop = asyncio.get_running_loop()
        self._forgetting[version] = loop.call_later(_LAST_SCRAPES_SECONDS, self._remove_series, version)

    def _keep_series(self, version: ModelVersion) -> None:
        timer = self._forgetting.pop(version, None)
        if timer is not None:
            timer.cancel()

    def _remove_series(self, version: ModelVersion) -> None:
        del self._forgetting[version]
        self._metrics.forget(version)

    async def _idle(self, version: ModelVersion) -> None:
        """Return when nothing uses a version any more, or when it has answered nothing for too long."""
        began = time.monotonic()
        traffic = self.upstream.traffic
        # A batch uses a version between two chunks; an abandoned call is with TorchServe, although nobody waits for it.
        while calls := self.directory.uses(version) + traffic.in_flight_of(version):
            earliest = time.monotonic() - self._patience
            if began < earliest and not traffic.answered_since(version, earliest):
                _logger.warning(
                    "%d calls of %s have had no answer for %g s; they get none", calls, version, self._patience
                )
                return
            await asyncio.sleep(_IDLE_POLL_SECONDS)
