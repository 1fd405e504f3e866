"""Notices that the workers of a model answer no more, and that they answer again."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence

from pathlens.errors import ResourceExhaustedError
from pathlens.gateway.upstream import Answer, Upstream
from pathlens.wire.internal.v1 import worker_pb2
from pathlens.wire.v1 import explanation_service_pb2 as messages

_PERIOD_SECONDS = 5.0
_PATIENCE_SECONDS = 10.0
# A worker that died is back before the second canary.
_FAILURES = 2

_logger = logging.getLogger(__name__)


class Watch:
    """Sends every model a canary, its description, again and again.

    A model is down after two failures in a row and up after one answer. While it is busy, any answer of the model
    counts; a full queue counts neither way.

    Args:
        names: Names under which TorchServe serves the models.
        upstream: The way to their handlers.
        report: Is told whether all models are up, whenever that changes; they are at the beginning.
    """

    def __init__(self, names: Sequence[str], upstream: Upstream, report: Callable[[bool], Awaitable[None]]) -> None:
        self._upstream = upstream
        self._report = report
        self._failures = dict.fromkeys(names, 0)
        self._up = True

    async def run(self) -> None:
        """Watch until cancelled."""
        async with asyncio.TaskGroup() as group:
            for name in self._failures:
                group.create_task(self._watch(name))

    async def _watch(self, name: str) -> None:
        reference = messages.ModelReference(name=name)
        canary = worker_pb2.WorkerCall(get_model=messages.GetModelRequest(model=reference))
        asked: asyncio.Task[Answer] | None = None
        while True:
            await asyncio.sleep(_PERIOD_SECONDS)
            began = time.monotonic()
            try:
                # An unanswered canary is not followed by another one: they would fill the queue of a dead worker.
                asked = asked or self._upstream.begin(name, "", [canary])
            except ResourceExhaustedError:
                continue
            await asyncio.wait({asked}, timeout=_PATIENCE_SECONDS)
            failure = asked.exception() if asked.done() and not asked.cancelled() else None
            if asked.done():
                asked = None
            if self._upstream.answered_since(name, began):
                await self._record(name, 0)
            elif not isinstance(failure, ResourceExhaustedError):
                _logger.warning("Model %s does not answer its canary: %s", name, failure or "no answer in time")
                await self._record(name, self._failures[name] + 1)

    async def _record(self, name: str, failures: int) -> None:
        self._failures[name] = failures
        up = max(self._failures.values()) < _FAILURES
        if up is not self._up:
            self._up = up
            _logger.warning("The models answer again" if up else "Health says NOT_SERVING until the models answer")
            await self._report(up)
