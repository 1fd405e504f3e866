"""Counts and times every call of our service, and turns its errors into statuses."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from typing import Any, TypeAlias

import grpc
import grpc.aio
from google.protobuf.message import DecodeError
from grpc_status import rpc_status

from pathlens.errors import InvalidRequestError, PathlensError, ResourceExhaustedError, UnavailableError
from pathlens.gateway.metrics import METHODS, SERVICE, Metrics
from pathlens.gateway.upstream_errors import RESTART_SECONDS
from pathlens.wire.status import status_from_error

Context = grpc.aio.ServicerContext[Any, Any]
# Generic in its stubs only.
Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any] | None"

_logger = logging.getLogger(__name__)


class RequestInterceptor(grpc.aio.ServerInterceptor):
    """Wraps the calls of ExplanationService; health and reflection pass untouched.

    Args:
        metrics: Where calls are counted.
        max_message_bytes: Largest request; what gRPC lets through above it is refused with the limit.
    """

    def __init__(self, metrics: Metrics, max_message_bytes: int) -> None:
        self._metrics = metrics
        self._max_message_bytes = max_message_bytes
        self._methods = {f"/{SERVICE}/{method}": method for method in METHODS}
        self._in_progress = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self._refusing = False

    def refuse(self) -> None:
        """Refuse every call of our service from now on; those in progress go on."""
        self._refusing = True

    async def idle(self) -> None:
        """Wait until no call of our service is in progress."""
        await self._idle.wait()

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler:
        """Wrap the handler of a call, as `grpc.aio.ServerInterceptor` asks."""
        handler = await continuation(handler_call_details)
        method = self._methods.get(handler_call_details.method)
        if handler is None or method is None:
            return handler
        return self._stream(handler, method) if handler.response_streaming else self._unary(handler, method)

    def _unary(self, handler: Any, method: str) -> Handler:
        async def call(content: bytes, context: Context) -> Any:
            async with self._accounted(method, context):
                return await handler.unary_unary(self._parsed(handler, content), context)

        # Requests are parsed inside `call`: grpc reports what its own deserializers raise as UNKNOWN, with the text.
        return grpc.unary_unary_rpc_method_handler(call, None, handler.response_serializer)

    def _stream(self, handler: Any, method: str) -> Handler:
        async def call(contents: AsyncIterator[bytes], context: Context) -> None:
            async with self._accounted(method, context):
                requests = (self._parsed(handler, content) async for content in contents)
                # grpc would leave the closing of a cancelled generator to the garbage collector.
                async with aclosing(handler.stream_stream(requests, context)) as responses:
                    async for response in responses:
                        await context.write(response)

        return grpc.stream_stream_rpc_method_handler(call, None, handler.response_serializer)

    @asynccontextmanager
    async def _accounted(self, method: str, context: Context) -> AsyncIterator[None]:
        started = time.monotonic()
        self._in_progress += 1
        self._idle.clear()
        self._metrics.request_started(method)
        code = "OK"
        try:
            try:
                if self._refusing:
                    raise UnavailableError(
                        "The gateway is stopping: repeat the request.",
                        reason="STOPPING",
                        retry_after=RESTART_SECONDS,
                    )
                yield
            except PathlensError as error:
                code = error.code
                await context.abort_with_status(rpc_status.to_status(status_from_error(error)))
            except asyncio.CancelledError:
                # grpc also cancels a call whose deadline has passed; the caller sees that code.
                code = "DEADLINE_EXCEEDED" if context.time_remaining() == 0 else "CANCELLED"
                raise
            except grpc.aio.InternalError:
                # A response could not be written: the caller is gone, which grpc knows.
                code = "CANCELLED"
                raise
            except Exception as error:
                code = "INTERNAL"
                _logger.exception("%s failed", method)
                await context.abort_with_status(rpc_status.to_status(status_from_error(error)))
        finally:
            self._metrics.request_finished(method, code, time.monotonic() - started)
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
            return handler.request_deserializer(content)
        except DecodeError as error:
            raise InvalidRequestError(
                "The request is not a message of this call: use stubs made from protos/pathlens/v1.",
                reason="REQUEST_MALFORMED",
            ) from error
