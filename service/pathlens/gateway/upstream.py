"""The gateway's way to TorchServe."""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass

import grpc
import grpc.aio
from google.protobuf.message import DecodeError

from pathlens.errors import DeadlineExceededError, InternalError, ResourceExhaustedError, UnavailableError
from pathlens.gateway.metrics import Metrics
from pathlens.gateway.predictions import PREDICTIONS, channel_options, predictions_request, worker_response
from pathlens.gateway.settings import GatewaySettings
from pathlens.gateway.upstream_errors import RESTART_SECONDS, error_from_upstream, message_too_large
from pathlens.wire.internal.v1 import torchserve_pb2, worker_pb2

_FULL_RETRY_SECONDS = 1.0


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
    """Asks TorchServe, a bounded number of times at once, and never takes a question back.

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

    async def ask(
        self, model_name: str, version: str, calls: Sequence[worker_pb2.WorkerCall], remaining: float | None
    ) -> Answer:
        """Put questions to the handler of a model.

        Args:
            model_name: Name under which TorchServe serves the model.
            version: Its version; empty means TorchServe's default version.
            calls: The questions, answered together where the handler can.
            remaining: Seconds until nobody waits for the answer any more; None without such a limit.

        Returns:
            One reply per call, each with a status of its own.

        Raises:
            DeadlineExceededError: The time was up before the answer came.
            ResourceExhaustedError: TorchServe has as many calls as it may have; or the answer is too large.
            InvalidRequestError: The questions do not fit into one message.
            NotFoundError: TorchServe does not serve this model.
            UnavailableError: The worker is restarting, or TorchServe is.
            InternalError: Something else failed; the log says what.
        """
        if remaining is not None and remaining <= 0:
            raise _time_is_up(model_name)
        if len(self._tasks) >= self._settings.max_in_flight:
            raise ResourceExhaustedError(
                f"The gateway has {len(self._tasks)} requests in flight and takes no more: repeat the request in"
                f" {_FULL_RETRY_SECONDS} s.",
                reason="QUEUE_FULL",
                metadata={"in_flight": len(self._tasks), "limit": self._settings.max_in_flight},
                retry_after=_FULL_RETRY_SECONDS,
            )
        request = predictions_request(model_name, version, self._worker_request(calls, remaining))
        if request.ByteSize() > self._settings.max_message_bytes:
            raise message_too_large("the gateway's max_message_bytes", {"model": model_name})
        task = asyncio.create_task(self._round_trip(request, len(calls)))
        self._tasks.add(task)
        self._metrics.upstream_inflight.inc()
        task.add_done_callback(self._forget)
        try:
            # asyncio.wait leaves the task alone when the time is up, and when this coroutine is cancelled.
            await asyncio.wait({task}, timeout=remaining)
        finally:
            if not task.done():
                self._metrics.upstream_abandoned.inc()
        if not task.done():
            raise _time_is_up(model_name)
        if task.cancelled():
            raise UnavailableError(
                "The gateway is stopping: repeat the request.", reason="STOPPING", retry_after=RESTART_SECONDS
            )
        return task.result()

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

    def _worker_request(
        self, calls: Sequence[worker_pb2.WorkerCall], remaining: float | None
    ) -> worker_pb2.WorkerRequest:
        # The gateway itself stops listening after its own time limit, so there is always a moment when nobody waits.
        own = self._settings.upstream_timeout_seconds
        patience = own if remaining is None else min(remaining, own)
        request = worker_pb2.WorkerRequest(calls=calls, max_response_bytes=self._settings.max_message_bytes)
        request.deadline.FromNanoseconds(round((time.time() + patience) * 1e9))
        return request

    async def _round_trip(self, request: torchserve_pb2.PredictionsRequest, call_count: int) -> Answer:
        started = time.monotonic()
        try:
            response = worker_response(
                await self._predictions(request, timeout=self._settings.upstream_timeout_seconds)
            )
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
        elapsed = time.monotonic() - started
        return Answer(response.replies, max(0.0, elapsed - response.handler_time.ToNanoseconds() / 1e9))

    def _forget(self, task: asyncio.Task[Answer]) -> None:
        self._tasks.discard(task)
        self._metrics.upstream_inflight.dec()
        if not task.cancelled():
            # Marks the error of an abandoned call as seen; asyncio would otherwise report it as lost.
            task.exception()


def _time_is_up(model_name: str) -> DeadlineExceededError:
    return DeadlineExceededError(
        f"Model {model_name!r} did not answer within the deadline of the request: allow more time.",
        metadata={"model": model_name},
    )
