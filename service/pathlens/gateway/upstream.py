"""The gateway's way to TorchServe."""

import asyncio
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import grpc
import grpc.aio
from google.protobuf.message import DecodeError

from pathlens.errors import DeadlineExceededError, InternalError, UnavailableError
from pathlens.gateway.admission import Admission
from pathlens.gateway.metrics import Metrics
from pathlens.gateway.predictions import PREDICTIONS, channel_options, predictions_request, worker_response
from pathlens.gateway.settings import GatewaySettings
from pathlens.gateway.upstream_errors import (
    RESTART_SECONDS,
    error_from_upstream,
    message_too_large,
    upstream_timeout,
)
from pathlens.wire.internal.v1 import torchserve_pb2, worker_pb2

# What surrounds the calls in a message: names, deadline, tags and lengths. Far more than it takes.
_ENVELOPE_BYTES = 512


@dataclass(frozen=True)
class Answer:
    """What the handler answered.

    Attributes:
        replies: One per call, in order.
        queue_seconds: The part of the round trip that was not spent inside the handler.
    """

    replies: Sequence[worker_pb2.WorkerReply]
    queue_seconds: float


class Upstream:
    """Asks TorchServe, a bounded number of times and bytes at once, and never takes a question back.

    TorchServe restarts workers when calls are cancelled at the wrong moment. So a caller who leaves, or whose time is
    up, abandons the call: it runs to its end unseen and counts as in flight until then. Construct it inside a running
    event loop.

    Args:
        address: host:port of TorchServe's gRPC inference endpoint.
        settings: Limits.
        metrics: Where calls in flight and abandoned calls are counted.
    """

    def __init__(self, address: str, settings: GatewaySettings, metrics: Metrics) -> None:
        self._settings = settings
        self._metrics = metrics
        self._tasks: set[asyncio.Task[Answer]] = set()
        self._admission = Admission(settings.max_in_flight, settings.max_in_flight_bytes)
        self._answered: dict[str, float] = {}
        self._channel = grpc.aio.insecure_channel(address, options=channel_options(settings.max_message_bytes))
        self._predictions = self._channel.unary_unary(
            PREDICTIONS,
            request_serializer=torchserve_pb2.PredictionsRequest.SerializeToString,
            response_deserializer=torchserve_pb2.PredictionResponse.FromString,
        )

    @property
    def in_flight(self) -> int:
        """Calls that TorchServe has not answered yet, abandoned ones included."""
        return len(self._tasks)

    def answered_since(self, model_name: str, moment: float) -> bool:
        """Tell whether the handler of a model is alive.

        Args:
            model_name: Name under which TorchServe serves the model.
            moment: A time of the monotonic clock.

        Returns:
            Whether an answer of the model came after this moment.
        """
        return self._answered.get(model_name, -math.inf) >= moment

    async def ask(
        self,
        model_name: str,
        version: str,
        calls: Sequence[worker_pb2.WorkerCall],
        remaining: float | None,
        *,
        wait: bool = False,
        max_response_bytes: int | None = None,
    ) -> Answer:
        """Put questions to the handler of a model.

        Args:
            model_name: Name under which TorchServe serves the model.
            version: Its version; empty means TorchServe's default version.
            calls: The questions, answered together where the handler can.
            remaining: Seconds until nobody waits for the answer any more; None without such a limit.
            wait: Whether to wait for room while TorchServe has as much as it may have, in place of a refusal.
            max_response_bytes: Largest answer; None means the largest message.

        Returns:
            One reply per call, each with a status of its own.

        Raises:
            DeadlineExceededError: The time was up before the answer came.
            ResourceExhaustedError: TorchServe has as much as it may have; or the answer is too large.
            InvalidRequestError: The questions do not fit into one message.
            NotFoundError: TorchServe does not serve this model.
            UnavailableError: The worker is restarting, TorchServe is, or the gateway's own time limit has passed.
            InternalError: Something else failed; the log says what.
        """
        if remaining is not None and remaining <= 0:
            raise _time_is_up(model_name)
        end = math.inf if remaining is None else time.monotonic() + remaining
        size = self._checked_size(model_name, calls)
        if wait:
            try:
                async with asyncio.timeout(remaining):
                    await self._admission.turn(size)
            except TimeoutError as error:
                raise _time_is_up(model_name) from error
        else:
            self._admission.take(size)
        left = end - time.monotonic()
        patience = min(left, self._settings.upstream_timeout_seconds)
        task = self._send(model_name, version, calls, size, patience, max_response_bytes)
        try:
            # asyncio.wait leaves the task alone when the time is up, and when this coroutine is cancelled.
            await asyncio.wait({task}, timeout=max(0.0, patience))
        finally:
            if not task.done():
                self._metrics.upstream_abandoned.inc()
        if not task.done():
            raise _time_is_up(model_name) if left <= patience else upstream_timeout(model_name)
        if task.cancelled():
            raise UnavailableError(
                "The gateway is stopping: repeat the request.", reason="STOPPING", retry_after=RESTART_SECONDS
            )
        return task.result()

    def begin(self, model_name: str, version: str, calls: Sequence[worker_pb2.WorkerCall]) -> asyncio.Task[Answer]:
        """Put questions to the handler of a model without waiting for the answer.

        Args:
            model_name: Name under which TorchServe serves the model.
            version: Its version; empty means TorchServe's default version.
            calls: The questions.

        Returns:
            What ends with the answer, or with an error of `ask`. Never cancel it, nor await it by itself.

        Raises:
            ResourceExhaustedError: TorchServe has as much as it may have.
            InvalidRequestError: The questions do not fit into one message.
        """
        size = self._checked_size(model_name, calls)
        self._admission.take(size)
        return self._send(model_name, version, calls, size, self._settings.upstream_timeout_seconds, None)

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
        await self._channel.close()
        if self._tasks:
            await asyncio.wait(set(self._tasks))

    def _checked_size(self, model_name: str, calls: Sequence[worker_pb2.WorkerCall]) -> int:
        # Sized without building it: a request that waits, or is refused, needs no second copy of its images.
        size = _ENVELOPE_BYTES + sum(call.ByteSize() for call in calls)
        if size > self._settings.max_message_bytes:
            raise message_too_large("the gateway's max_message_bytes", {"model": model_name})
        return size

    def _send(
        self,
        model_name: str,
        version: str,
        calls: Sequence[worker_pb2.WorkerCall],
        size: int,
        patience: float,
        max_response_bytes: int | None,
    ) -> asyncio.Task[Answer]:
        largest = self._settings.max_message_bytes if max_response_bytes is None else max_response_bytes
        content = worker_pb2.WorkerRequest(calls=calls, max_response_bytes=largest)
        content.deadline.FromNanoseconds(round((time.time() + patience) * 1e9))
        request = predictions_request(model_name, version, content)
        task = asyncio.create_task(self._round_trip(request, len(calls)))
        self._tasks.add(task)
        self._metrics.upstream_inflight.inc()
        task.add_done_callback(partial(self._forget, size))
        return task

    async def _round_trip(self, request: torchserve_pb2.PredictionsRequest, call_count: int) -> Answer:
        started = time.monotonic()
        # A deadline of gRPC cancels the call. This one is for a TorchServe that hangs: it leaves time for every request
        # before this one to take as long as it may.
        timeout = self._settings.max_in_flight * self._settings.upstream_timeout_seconds
        try:
            response = worker_response(await self._predictions(request, timeout=timeout))
        except grpc.aio.AioRpcError as error:
            raise error_from_upstream(error.code(), error.details() or "", request.model_name) from error
        except DecodeError as error:
            raise InternalError(
                "The handler of the model answered with something that is not a pathlens message: serve an archive made"
                " by `pathlens pack`.",
                metadata={"model": request.model_name},
            ) from error
        if len(response.replies) != call_count:
            raise InternalError(
                f"The handler answered {len(response.replies)} of {call_count} calls; its log has the details.",
                metadata={"model": request.model_name, "replies": len(response.replies), "calls": call_count},
            )
        now = time.monotonic()
        self._answered[request.model_name] = now
        elapsed = now - started
        return Answer(response.replies, max(0.0, elapsed - response.handler_time.ToNanoseconds() / 1e9))

    def _forget(self, size: int, task: asyncio.Task[Answer]) -> None:
        self._tasks.discard(task)
        self._admission.leave(size)
        self._metrics.upstream_inflight.dec()
        if not task.cancelled():
            # Marks the error of an abandoned call as seen; asyncio would otherwise report it as lost.
            task.exception()


def _time_is_up(model_name: str) -> DeadlineExceededError:
    return DeadlineExceededError(
        f"Model {model_name!r} did not answer within the deadline of the request: allow more time.",
        metadata={"model": model_name},
    )
