"""Whether the gateway is ready: from the first descriptions of the models to their canaries."""

import asyncio
import logging

from pathlens.errors import (
    DeadlineExceededError,
    PathlensError,
    ResourceExhaustedError,
    ServerStartError,
    UnavailableError,
)
from pathlens.gateway.health import Health
from pathlens.gateway.metrics import Metrics
from pathlens.gateway.models import ModelDirectory
from pathlens.gateway.upstream import Upstream
from pathlens.gateway.watch import Watch

_logger = logging.getLogger(__name__)
_RETRY_SECONDS = 1.0


class Readiness:
    """Lets every model describe itself, and then watches them, for as long as there is one TorchServe.

    Args:
        directory: What is served.
        upstream: The way to the handlers.
        health: Is told whether every model answers.
        longest_seconds: The longest time that a computation may take.
        metrics: Where canaries are counted.
        all_calls: Whether all calls to TorchServe go through here.
    """

    def __init__(
        self,
        directory: ModelDirectory,
        upstream: Upstream,
        health: Health,
        longest_seconds: float,
        metrics: Metrics,
        *,
        all_calls: bool = True,
    ) -> None:
        self._directory = directory
        self._upstream = upstream
        self._health = health
        self._longest_seconds = longest_seconds
        self._metrics = metrics
        self._all_calls = all_calls
        self._canaries: Watch | None = None
        self._keeping: asyncio.Task[None] | None = None

    async def begin(self) -> None:
        """Ask every model once to describe itself, and keep health in the background from then on.

        A model that cannot answer yet is asked again there.

        Raises:
            ServerStartError: TorchServe does not serve what it should.
        """
        ready = await self._ask_models()
        self._canaries = Watch(
            self._directory.models,
            self._upstream,
            self._health.ready,
            self._longest_seconds,
            self._metrics,
            all_calls=self._all_calls,
        )
        self._keeping = asyncio.create_task(self._keep_health(self._canaries, ready))

    def follow(self) -> None:
        """Watch what the directory serves by now."""
        if self._canaries is not None:
            self._canaries.follow(self._directory.models)

    async def end(self) -> None:
        """Leave health as it is, until the next `begin`; may be repeated."""
        task, self._keeping = self._keeping, None
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def _ask_models(self) -> bool:
        try:
            await self._directory.refresh()
        except (UnavailableError, ResourceExhaustedError, DeadlineExceededError) as error:
            _logger.warning("The gateway is not ready yet: %s", error.message)
            return False
        except PathlensError as error:
            raise ServerStartError(
                f"The gateway cannot serve: {error.message}", reason=error.reason, metadata=error.metadata
            ) from error
        await self._health.ready(True)
        return True

    async def _keep_health(self, canaries: Watch, ready: bool) -> None:
        if not ready:
            await self._become_ready()
            canaries.follow(self._directory.models)
        await canaries.run()

    async def _become_ready(self) -> None:
        ready = False
        while not ready:
            await asyncio.sleep(_RETRY_SECONDS)
            try:
                ready = await self._ask_models()
            except ServerStartError as error:
                _logger.error("The gateway keeps trying: %s", error.message)
