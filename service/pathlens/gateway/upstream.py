"""The gateway's way to TorchServe."""

import asyncio
import math
import time
from collections.abc import Sequence
from functools import partial

from google.rpc import code_pb2
from prometheus_client import Gauge

from pathlens.errors import UnavailableError
from pathlens.gateway.admission import Admission, Place
from pathlens.gateway.answer import Answer
from pathlens.gateway.call import admission_span, current_call, current_item
from pathlens.gateway.call_kind import CallKind
from pathlens.gateway.costs import Costs, Work
from pathlens.gateway.dispatch import Dispatch, request_of, upstream_spans, work_of
from pathlens.gateway.errand import Errand
from pathlens.gateway.errand_queue import ErrandQueue
from pathlens.gateway.metrics import Metrics
from pathlens.gateway.settings import GatewaySettings
from pathlens.gateway.torchserve_channel import TorchServeChannel
from pathlens.gateway.traffic import Traffic
from pathlens.gateway.upstream_errors import (
    RESTART_SECONDS,
    request_too_large,
    time_is_up,
    torchserve_restarting,
    upstream_timeout,
)
from pathlens.model_version import ModelVersion
from pathlens.wire.internal.v1 import worker_pb2
from pathlens.wire.status import OK

# What surrounds the calls in a message: names, deadline, tags and lengths. Far more than it takes.
_ENVELOPE_BYTES = 512
# How long calls to a TorchServe that has ended may take to notice.
_FAREWELL_SECONDS = 1.0


class Upstream:
    """Asks TorchServe, a bounded number of times and bytes at once, and never takes a question back.

    What finds no room waits, and is never sent when its caller has gone by then. When there is room, questions that
    wait for the same go together, in one request; nothing waits for company. What could not be answered before its
    deadline is refused at once, as far as the requests before it tell.

    TorchServe restarts workers when calls are cancelled at the wrong moment. So a caller who leaves, or whose time is
    up, abandons the call: it runs to its end unseen and counts as in flight until then. Construct it inside a running
    event loop.

    Args:
        address: host:port of TorchServe's gRPC inference endpoint.
        settings: Limits.
        metrics: Where calls in flight and abandoned calls are counted.

    Attributes:
        traffic: What the served versions do with their calls.
    """

    def __init__(self, address: str, settings: GatewaySettings, metrics: Metrics) -> None:
        self._settings = settings
        self._metrics = metrics
        self.traffic = Traffic()
        self._tasks: set[asyncio.Task[Answer]] = set()
        self._given_up: set[asyncio.Task[Answer]] = set()
        self._closed = False
        self._admission = Admission(settings)
        self._costs = Costs()
        self._queue = ErrandQueue(self._admission, self._costs, settings, metrics)
        self._retry_after: float | None = None
        self._channel = TorchServeChannel(address, settings.max_message_bytes)

    def suspend(self, retry_after: float) -> None:
        """Answer every call with UNAVAILABLE until `connect`; those in flight end with TorchServe.

        Args:
            retry_after: Seconds after which there may be one again, for the callers.
        """
        self._retry_after = retry_after

    async def connect(self, address: str) -> None:
        """Go on with another TorchServe; the one before has ended.

        Args:
            address: host:port of its gRPC inference endpoint.
        """
        old, self._channel = self._channel, TorchServeChannel(address, self._settings.max_message_bytes)
        try:
            if self._tasks:
                await asyncio.wait(set(self._tasks), timeout=_FAREWELL_SECONDS)
        finally:
            # Also when this is broken off: nobody else knows the channel, and its calls would go on for minutes.
            await old.close()
        self._retry_after = None

    @property
    def in_flight(self) -> int:
        """Calls that TorchServe has not answered yet, abandoned ones included."""
        return len(self._tasks)

    async def pings(self, seconds: float) -> bool:
        """Tell whether TorchServe itself is alive, whatever its workers do.

        Args:
            seconds: How long it may take to answer.

        Returns:
            Whether it answered, with anything.
        """
        return await self._channel.pings(seconds)

    def forget(self, version: ModelVersion) -> None:
        """Remember nothing of a version that is about to be unloaded, and wait no more for what it still has.

        An unloaded version never answers: its calls give their room to others, and those that wait are not sent.

        Args:
            version: Name and version as the calls gave them.
        """
        for task, place in self.traffic.forget(version).items():
            self._tasks.discard(task)
            self._given_up.add(task)
            self._admission.leave(place)

    async def ask(
        self,
        model_name: str,
        version: str,
        calls: Sequence[worker_pb2.WorkerCall],
        remaining: float | None,
        *,
        bulk: bool = False,
        max_response_bytes: int | None = None,
        pixels: int | None = None,
    ) -> Answer:
        """Put questions to the handler of a model.

        Args:
            model_name: Name under which TorchServe serves the model.
            version: Its version; empty means TorchServe's default version.
            calls: The questions, answered together where the handler can.
            remaining: Seconds until nobody waits for the answer any more; None without such a limit.
            bulk: Whether they are part of a stream or of a batch: these wait for room however many wait already, and
                leave room to others.
            max_response_bytes: Largest answer; None means the largest message.
            pixels: Size of the image of a lone question that may be answered together with those of others; None if
                it may not.

        Returns:
            One reply per call, each with a status of its own.

        Raises:
            DeadlineExceededError: The time was up before the answer came, or is expected to be.
            ResourceExhaustedError: As many requests wait as may; or the answer is too large.
            InvalidRequestError: The questions do not fit into one message.
            NotFoundError: TorchServe does not serve this model.
            UnavailableError: The worker is restarting, TorchServe is, or the gateway's own time limit has passed. While
                TorchServe is away, nothing waits and nothing takes room.
            InternalError: Something else failed; the log says what.
        """
        if remaining is not None and remaining <= 0:
            raise time_is_up(model_name)
        self._check_torchserve(model_name)
        end = math.inf if remaining is None else time.monotonic() + remaining
        errand = self._errand(model_name, version, calls, CallKind.of(calls, bulk), end, max_response_bytes, pixels)
        answer = await self._answer(errand, remaining)
        if answer.together > 1 and answer.replies[0].status.code == code_pb2.RESOURCE_EXHAUSTED:
            # Others may have taken the room in the message, or the memory of the GPU, that it has alone.
            remaining = None if remaining is None else end - time.monotonic()
            return await self.ask(model_name, version, calls, remaining, bulk=bulk)
        return answer

    async def _answer(self, errand: Errand, remaining: float | None) -> Answer:
        model_name = errand.place.model
        try:
            with admission_span():
                await self._queue.wait(errand, remaining)
            dispatch = errand.dispatch or self._send_together(errand)
        except BaseException:
            if errand.dispatch is None:
                self.traffic.leave(errand.version, errand.traffic)
            raise
        task = dispatch.task
        left = errand.end - time.monotonic()
        patience = min(left, self._settings.upstream_timeout_seconds)
        try:
            # asyncio.wait leaves the task alone when the time is up, and when this coroutine is cancelled.
            await asyncio.wait({task}, timeout=max(0.0, patience))
        finally:
            if not task.done():
                self._metrics.upstream_abandoned.inc()
        if not task.done():
            raise time_is_up(model_name) if left <= patience else upstream_timeout(model_name)
        if task.cancelled() and self._closed:
            raise UnavailableError(
                "The gateway is stopping: repeat the request.", reason="STOPPING", retry_after=RESTART_SECONDS
            )
        if task.cancelled():
            # The channel of a TorchServe that has ended was closed; the next one may be there already.
            raise torchserve_restarting(model_name, self._retry_after or RESTART_SECONDS)
        return dispatch.answer_to(errand)

    def begin(self, version: ModelVersion, canary: worker_pb2.WorkerCall) -> asyncio.Task[Answer]:
        """Send a canary, without waiting for room nor for the answer.

        Args:
            version: Name and version under which TorchServe serves the model.
            canary: The question. What it costs tells nothing about the calls of others.

        Returns:
            What ends with the answer, or with an error of `ask`. Never cancel it, nor await it by itself.

        Raises:
            ResourceExhaustedError: TorchServe has as much as it may have.
            InvalidRequestError: The question does not fit into a message.
        """
        errand = self._errand(version.name, version.version, [canary], CallKind.PREDICTION, math.inf, None, None)
        errand.work = Work.canary(version.name)
        try:
            self._admission.take(errand.place)
            return self._send([errand]).task
        except BaseException:
            self.traffic.leave(version, errand.traffic)
            raise

    async def drain(self, seconds: float) -> int:
        """Wait for the calls in flight.

        Args:
            seconds: How long to wait at most.

        Returns:
            How many calls are still unanswered.
        """
        if self._tasks:
            await asyncio.wait(set(self._tasks), timeout=seconds)
        return len(self._tasks)

    async def close(self) -> None:
        """Close the channel. Calls that are still in flight end now: drain first."""
        self._closed = True
        await self._channel.close()
        if unanswered := self._tasks | self._given_up:
            await asyncio.wait(unanswered)

    def _errand(
        self,
        model_name: str,
        version: str,
        calls: Sequence[worker_pb2.WorkerCall],
        kind: CallKind,
        end: float,
        max_response_bytes: int | None,
        pixels: int | None,
    ) -> Errand:
        # Sized without building it: a request that waits, or is refused, needs no second copy of its images.
        size = _ENVELOPE_BYTES + sum(call.ByteSize() for call in calls)
        if size > self._settings.max_message_bytes:
            raise request_too_large(model_name, size, self._settings.max_message_bytes)
        work = Work.of(model_name, calls)
        place = Place(model_name, kind, size, self._costs.expected(work) or 0.0)
        model_version = ModelVersion(model_name, version)
        ahead = self._admission.ahead(model_name, kind)
        largest = self._settings.max_message_bytes if max_response_bytes is None else max_response_bytes
        return Errand(
            model_version,
            self.traffic.enter(model_version),
            calls,
            work,
            place,
            ahead,
            time.monotonic(),
            end,
            largest,
            pixels if work.usual else None,
            current_call(),
            current_item(),
        )

    def _check_torchserve(self, model_name: str) -> None:
        if self._retry_after is not None:
            raise torchserve_restarting(model_name, self._retry_after)

    def _send_together(self, errand: Errand) -> Dispatch:
        """Send questions that have their place, and those that wait for the same."""
        if errand.traffic.given_up:
            # They would never be answered, but keep their place. Who waits for the same learns it when it gets there.
            self._admission.leave(errand.place)
            raise upstream_timeout(errand.place.model)
        return self._send(self._queue.company_of(errand))

    def _send(self, errands: Sequence[Errand]) -> Dispatch:
        first = errands[0]
        # Whatever fails from here on fails in the task: all who go together learn it, and the place is given back once.
        task = asyncio.create_task(self._round_trip(errands))
        dispatch = Dispatch(errands, task)
        for errand in errands:
            errand.dispatch = dispatch
        self._tasks.add(task)
        first.traffic.begin(task, first.place)
        # Kept until the call ends: the series of a model that is gone by then does not begin again.
        in_flight = self._metrics.upstream_inflight.labels(first.place.model)
        in_flight.inc()
        task.add_done_callback(partial(self._end, errands, in_flight))
        return dispatch

    async def _round_trip(self, errands: Sequence[Errand]) -> Answer:
        first = errands[0]
        # Those who waited for room when it went away.
        self._check_torchserve(first.place.model)
        request = request_of(errands, self._settings.upstream_timeout_seconds)
        calls = [call for errand in errands for call in errand.calls]
        self._metrics.upstream_calls.labels(first.place.kind.value).observe(len(calls))
        with upstream_spans(errands) as spans:
            started = time.monotonic()
            # A deadline of gRPC cancels the call. This one is for a TorchServe that hangs: it leaves time for every
            # request before this one to take as long as it may.
            timeout = self._settings.requests_in_flight() * self._settings.upstream_timeout_seconds
            response = await self._channel.predictions(request, len(calls), timeout)
            now = time.monotonic()
            first.traffic.learn(calls, response.replies)
            handler_seconds = response.handler_time.ToNanoseconds() / 1e9
            for span in spans:
                span.answered(response)
            # What was refused, or skipped because its time was up, tells nothing about the cost of doing it.
            if all(reply.status.code == OK.code for reply in response.replies):
                self._costs.learn(work_of(errands), handler_seconds)
            self._costs.learn_wait(first.work.model, first.ahead, now - first.began - handler_seconds)
            return Answer(response.replies, max(0.0, now - started - handler_seconds))

    def _end(self, errands: Sequence[Errand], in_flight: Gauge, task: asyncio.Task[Answer]) -> None:
        self._tasks.discard(task)
        self._given_up.discard(task)
        place = errands[0].traffic.sent.pop(task, None)
        if place is not None:
            self._admission.leave(place)
        for errand in errands:
            self.traffic.leave(errand.version, errand.traffic)
        in_flight.dec()
        if not task.cancelled():
            # Marks the error of an abandoned call as seen; asyncio would otherwise report it as lost.
            task.exception()
