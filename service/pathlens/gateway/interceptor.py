"""Names, counts, times and logs every call of our service, and turns its errors into statuses."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from typing import TYPE_CHECKING, Any, TypeAlias

import grpc
import grpc.aio
from google.protobuf.message import DecodeError
from grpc_status import rpc_status

from pathlens.errors import InvalidRequestError, PathlensError, ResourceExhaustedError, UnavailableError
from pathlens.gateway.call import Call, Metadata
from pathlens.gateway.metrics import METHODS, SERVICE, Metrics
from pathlens.gateway.upstream_errors import RESTART_SECONDS, too_many_calls
from pathlens.wire.request_id import REQUEST_ID_KEY
from pathlens.wire.status import status_from_error

if TYPE_CHECKING:
    from pathlens.observability.tracing import Tracing

Context = grpc.aio.ServicerContext[Any, Any]
# Generic in its stubs only.
Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any] | None"
# Calls have ceased when none came in so many turns. Turns, not time: in an event loop that was held up they may be
# there without having been read.
_QUIET_TURNS, _TURN_SECONDS = 10, 0.005


class RequestInterceptor(grpc.aio.ServerInterceptor):
    """Wraps the calls of ExplanationService; health and reflection pass untouched.

    Args:
        metrics: Where calls are counted.
        max_message_bytes: Largest request; what gRPC lets through above it is refused with the limit.
        max_calls: Most calls in progress; one more is refused.
        tracing: Makes a span of every call; None for none.
    """

    def __init__(
        self, metrics: Metrics, max_message_bytes: int, max_calls: int, tracing: "Tracing | None" = None
    ) -> None:
        self._metrics = metrics
        self._tracing = tracing
        self._max_message_bytes = max_message_bytes
        self._max_calls = max_calls
        self._methods = {f"/{SERVICE}/{method}": method for method in METHODS}
        self._in_progress = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self._refusing = False
        self._answering = asyncio.Event()
        self._answering.set()
        self._arrivals = 0

    def refuse(self) -> None:
        """Refuse every call of our service from now on; those in progress go on."""
        self._refusing = True

    async def idle(self) -> None:
        """Wait until no call of our service is in progress."""
        await self._idle.wait()

    async def hold(self, seconds: float) -> None:
        """Let refused calls wait until `release`, and return when no more come: who waits makes no other call.

        Args:
            seconds: How long to wait for that at most.
        """
        self._answering.clear()
        end = time.monotonic() + seconds
        quiet = 0
        while quiet < _QUIET_TURNS and time.monotonic() < end:
            before = self._arrivals
            await asyncio.sleep(_TURN_SECONDS)
            quiet = quiet + 1 if self._arrivals == before else 0

    def release(self) -> None:
        """Answer the calls that `hold` lets wait, and all further ones at once."""
        self._answering.set()

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler:
        """Wrap the handler of a call, as `grpc.aio.ServerInterceptor` asks."""
        self._arrivals += 1
        handler = await continuation(handler_call_details)
        method = self._methods.get(handler_call_details.method)
        if handler is None or method is None:
            return handler
        wrapped = self._stream if handler.response_streaming else self._unary
        return wrapped(handler, method, handler_call_details.invocation_metadata)

    def _unary(self, handler: Any, method: str, metadata: Metadata) -> Handler:
        async def call(content: bytes, context: Context) -> Any:
            async with self._accounted(method, metadata, context):
                return await handler.unary_unary(self._parsed(handler, content), context)

        # Requests are parsed inside `call`: grpc reports what its own deserializers raise as UNKNOWN, with the text.
        return grpc.unary_unary_rpc_method_handler(call, None, handler.response_serializer)

    def _stream(self, handler: Any, method: str, metadata: Metadata) -> Handler:
        async def parsed(contents: AsyncIterator[bytes]) -> AsyncIterator[Any]:
            # A function, which asks for the iterator with the first message: grpc's own complains if it is not used.
            async for content in contents:
                yield self._parsed(handler, content)

        async def call(contents: AsyncIterator[bytes], context: Context) -> None:
            # grpc would leave the closing of a cancelled generator to the garbage collector.
            async with (
                self._accounted(method, metadata, context),
                aclosing(handler.stream_stream(parsed(contents), context)) as responses,
            ):
                async for response in responses:
                    await context.write(response)

        return grpc.stream_stream_rpc_method_handler(call, None, handler.response_serializer)

    @asynccontextmanager
    async def _accounted(self, method: str, metadata: Metadata, context: Context) -> AsyncIterator[None]:
        started = time.monotonic()
        call = Call(method, metadata, self._tracing)
        # Not as initial metadata: a call whose initial metadata has come is not repeated by gRPC's own retries.
        context.set_trailing_metadata(((REQUEST_ID_KEY, call.request_id),))
        self._in_progress += 1
        self._idle.clear()
        self._metrics.requests.started(method)
        code = "OK"
        failure: BaseException | None = None
        try:
            try:
                if self._refusing:
                    await self._answering.wait()
                    raise UnavailableError(
                        "The gateway is stopping: repeat the request.",
                        reason="STOPPING",
                        retry_after=RESTART_SECONDS,
                    )
                if self._in_progress > self._max_calls:
                    raise too_many_calls(self._max_calls)
                yield
            except PathlensError as error:
                code, failure = error.code, error
                await _abort(call, error, context)
            except asyncio.CancelledError as error:
                # grpc also cancels a call whose deadline has passed; the caller sees that code.
                code, failure = "DEADLINE_EXCEEDED" if context.time_remaining() == 0 else "CANCELLED", error
                raise
            except grpc.aio.InternalError as error:
                # A response could not be written: the caller is gone, which grpc knows.
                code, failure = "CANCELLED", error
                raise
            except Exception as error:
                code, failure = "INTERNAL", error
                await _abort(call, error, context)
        finally:
            seconds = time.monotonic() - started
            self._metrics.requests.finished(method, code, seconds, call.version, call.source)
            call.end(code, failure, seconds, context.time_remaining())
            self._in_progress -= 1
            if not self._in_progress:
                self._idle.set()

    def _parsed(self, handler: Any, content: bytes) -> Any:
        if len(content) > self._max_message_bytes:
            raise ResourceExhaustedError(
                f"The request has {len(content)} bytes: send at most {self._max_message_bytes}.",
                reason="MESSAGE_TOO_LARGE",
                metadata={"bytes": len(content), "limit": self._max_message_bytes},
            )
        try:
            request = handler.request_deserializer(content)
        except DecodeError as error:
            raise InvalidRequestError(
                "The request is not a message of this call: use stubs made from protos/pathlens/v1.",
                reason="REQUEST_MALFORMED",
            ) from error
        # Nested as deeply as a message may be, unknown fields do not fit into the message for the handler.
        request.DiscardUnknownFields()
        return request


async def _abort(call: Call, error: Exception, context: Context) -> None:
    status = rpc_status.to_status(status_from_error(error))
    metadata = (*status.trailing_metadata, (REQUEST_ID_KEY, call.request_id))
    try:
        await context.abort(status.code, status.details, metadata)
    except grpc.aio.InternalError as gone:
        # The deadline passed, or the caller left, in this moment; grpc would log its own failure as an error.
        raise asyncio.CancelledError from gone
