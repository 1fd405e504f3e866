"""Notices that the workers of a model predict no more, and that they predict again."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterable

from pathlens.errors import DeadlineExceededError, InvalidRequestError, PathlensError, ResourceExhaustedError
from pathlens.gateway.answer import Answer
from pathlens.gateway.metrics import Metrics
from pathlens.gateway.probe import check_prediction, grey_prediction
from pathlens.gateway.upstream import Upstream
from pathlens.model_version import ModelVersion
from pathlens.wire.internal.v1 import worker_pb2
from pathlens.wire.v1 import explanation_service_pb2 as messages

_PERIOD_SECONDS = 5.0
_PATIENCE_SECONDS = 10.0
_PING_SECONDS = 5.0
# A worker that died is back before the second canary.
_FAILURES = 2

_SILENCE = "no answer in time"

_logger = logging.getLogger(__name__)


class Watch:
    """Sends every served version of a model a canary, the prediction of a grey image, again and again.

    A version is down after two failures in a row and up after one success. The answer to the canary decides: only
    finite probabilities are a success. Without an answer, one to any other prediction or explanation is a success,
    unless it is INTERNAL. A canary that waits behind other calls, or finds no room among them, counts neither way, as
    long as none of them ends with INTERNAL, TorchServe itself answers, and they have got on within the longest time
    that a computation may take. A version whose canary is larger than a message may be is not watched.

    Args:
        models: What the served versions of models say about themselves.
        upstream: The way to their handlers.
        report: Is told whether all of them are up, whenever that changes; they are at the beginning.
        longest_seconds: The longest time that a computation may take.
        metrics: Where canaries are counted.
        all_calls: Whether all calls to TorchServe go through `upstream`; a canary may wait behind those that do not.
    """

    def __init__(
        self,
        models: Iterable[messages.Model],
        upstream: Upstream,
        report: Callable[[bool], Awaitable[None]],
        longest_seconds: float,
        metrics: Metrics,
        *,
        all_calls: bool = True,
    ) -> None:
        self._upstream = upstream
        self._report = report
        self._longest = longest_seconds
        self._metrics = metrics
        self._all_calls = all_calls
        self._canaries: dict[ModelVersion, worker_pb2.WorkerCall] = {}
        self._failures: dict[ModelVersion, int] = {}
        self._counted: set[ModelVersion] = set()
        self._up = True
        self._changed = asyncio.Event()
        self.follow(models)

    def follow(self, models: Iterable[messages.Model]) -> None:
        """Watch these versions from now on, and no others.

        Args:
            models: What the served versions of models say about themselves.
        """
        self._canaries = {
            ModelVersion(model.model.name, model.model.version): grey_prediction(model) for model in models
        }
        self._failures = {version: self._failures.get(version, 0) for version in self._canaries}
        self._counted &= self._canaries.keys()
        self._changed.set()

    async def run(self) -> None:
        """Watch until cancelled."""
        watching: dict[ModelVersion, asyncio.Task[None]] = {}
        async with asyncio.TaskGroup() as group:
            while True:
                self._changed.clear()
                for version in watching.keys() - self._canaries.keys():
                    watching.pop(version).cancel()
                for version in self._canaries.keys() - watching.keys():
                    watching[version] = group.create_task(self._watch(version, self._canaries[version]))
                await self._changed.wait()

    async def _watch(self, version: ModelVersion, canary: worker_pb2.WorkerCall) -> None:
        asked: asyncio.Task[Answer] | None = None
        while True:
            since = time.monotonic()
            await asyncio.sleep(_PERIOD_SECONDS)
            refusal: ResourceExhaustedError | None = None
            try:
                # An unanswered canary is not followed by another one: they would fill the queue of a dead worker.
                if asked is None:
                    self._counted.discard(version)
                    asked = self._upstream.begin(version, canary)
            except ResourceExhaustedError as error:
                refusal = error
            except InvalidRequestError as error:
                # Messages smaller than an image of the model's own size are the operator's choice.
                _logger.warning("Model %s is not watched: %s", version, error.message)
                return
            if asked is not None:
                await asyncio.wait({asked}, timeout=_PATIENCE_SECONDS)
            if asked is not None and asked.done():
                await self._judge(version, asked, since)
                asked = None
            # The canary itself is in flight, too.
            elif refusal is not None or not self._all_calls or self._upstream.traffic.in_flight_of(version) > 1:
                await self._judge_others(version, refusal or _SILENCE, since)
            else:
                await self._judge_silence(version, _SILENCE, since)

    async def _judge(self, version: ModelVersion, asked: asyncio.Task[Answer], since: float) -> None:
        error = None if asked.cancelled() else asked.exception()
        if isinstance(error, ResourceExhaustedError):
            await self._judge_others(version, error, since)
        elif error is not None or asked.cancelled():
            await self._judge_silence(version, error or _SILENCE, since)
        else:
            try:
                check_prediction(version, asked.result().replies[0])
            except DeadlineExceededError:
                # It waited until nobody wanted it any more.
                return
            except PathlensError as refused:
                await self._failed(version, refused)
            else:
                self._count(version, "answered")
                await self._record(version, 0)

    async def _judge_silence(self, version: ModelVersion, failure: object, since: float) -> None:
        if self._upstream.traffic.answered_since(version, since):
            await self._record(version, 0)
        else:
            await self._failed(version, failure)

    async def _judge_others(self, version: ModelVersion, failure: object, since: float) -> None:
        traffic = self._upstream.traffic
        recently = time.monotonic() - self._longest
        held_up = (
            not traffic.answered_since(version, since)
            and not traffic.failed_since(version, since)
            and traffic.gets_on(version, recently)
            and await self._upstream.pings(_PING_SECONDS)
        )
        if not held_up:
            await self._judge_silence(version, failure, since)

    async def _failed(self, version: ModelVersion, failure: object) -> None:
        _logger.warning("Model %s does not answer its canary: %s", version, failure)
        self._count(version, "failed")
        await self._record(version, self._failures.get(version, 0) + 1)

    def _count(self, version: ModelVersion, result: str) -> None:
        """Count the present canary, but not again when it is still out at the next look, or is answered after all."""
        if version not in self._counted:
            self._counted.add(version)
            self._metrics.canary_ended(version, result)

    async def _record(self, version: ModelVersion, failures: int) -> None:
        # What is no longer followed has no part in health, even while its last round ends.
        if version not in self._failures:
            return
        self._failures[version] = failures
        up = max(self._failures.values()) < _FAILURES
        if up is not self._up:
            self._up = up
            _logger.warning("The models answer again" if up else "Health says NOT_SERVING until the models answer")
            await self._report(up)
