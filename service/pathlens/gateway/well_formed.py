"""Guards the services whose protos are not ours, and that may be open to everyone: health and reflection."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, NoReturn, TypeAlias

import grpc
import grpc.aio
from google.protobuf.message import DecodeError
from grpc_status import rpc_status

from pathlens.errors import InvalidRequestError, PathlensError, ResourceExhaustedError
from pathlens.gateway.upstream_errors import FULL_RETRY_SECONDS
from pathlens.wire.status import status_from_error

Context = grpc.aio.ServicerContext[Any, Any]
# Generic in its stubs only.
Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any] | None"
Call = Callable[[AsyncIterator[bytes], Context], Awaitable[None]]


MAX_OPEN_STREAMS = 100
"""Most streams of these services at one time: they never end by themselves."""

MAX_UNREAD_ANSWERS = 100
"""Most answers to other calls of these services that their callers have not read: gRPC lets nobody take them back."""


class WellFormedInterceptor(grpc.aio.ServerInterceptor):
    """Wraps the calls of health and reflection.

    What is no message of a call is refused, where grpc would show the caller its exception; so is one stream too many,
    one call too many while others leave their answers unread, and a call whose message does not come.

    Args:
        services: Full names of these services.
        message_seconds: How long the message of a call may take: without it, a call holds a place that others need.
    """

    def __init__(self, services: frozenset[str], message_seconds: float) -> None:
        self._services = services
        self._message_seconds = message_seconds
        self._open_streams = 0
        self._unread_answers = 0

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler:
        """Wrap the handler of a call, as `grpc.aio.ServerInterceptor` asks."""
        handler = await continuation(handler_call_details)
        service = handler_call_details.method.rpartition("/")[0].removeprefix("/")
        if handler is None or service not in self._services:
            return handler
        call = self._limited(handler) if handler.response_streaming else self._unary(handler)
        # A handler of streams: grpc receives the message of any other before it calls the handler.
        return grpc.stream_stream_rpc_method_handler(call, None, handler.response_serializer)

    def _limited(self, handler: Any) -> Call:
        answer = _stream(handler) if handler.request_streaming else self._watch(handler)

        async def call(contents: AsyncIterator[bytes], context: Context) -> None:
            if self._open_streams >= MAX_OPEN_STREAMS:
                await _abort(_too_many_streams(), context)
            self._open_streams += 1
            try:
                await answer(contents, context)
            finally:
                self._open_streams -= 1

        return call

    def _unary(self, handler: Any) -> Call:
        async def call(contents: AsyncIterator[bytes], context: Context) -> None:
            request = await self._first(handler, contents, context)
            if self._unread_answers >= MAX_UNREAD_ANSWERS:
                await _abort(_too_many_answers(), context)
            self._unread_answers += 1
            try:
                # Who gives the answer no room holds one of gRPC's places for as long as the connection lasts.
                await context.write(await handler.unary_unary(request, context))
            finally:
                self._unread_answers -= 1

        return call

    def _watch(self, handler: Any) -> Call:
        async def call(contents: AsyncIterator[bytes], context: Context) -> None:
            # `Watch` writes its answers itself.
            await handler.unary_stream(await self._first(handler, contents, context), context)

        return call

    async def _first(self, handler: Any, contents: AsyncIterator[bytes], context: Context) -> Any:
        try:
            async with asyncio.timeout(self._message_seconds):
                content = await anext(contents)
        except (TimeoutError, StopAsyncIteration):
            await _abort(_malformed(), context)
        return await _parsed(handler, content, context)


def _stream(handler: Any) -> Call:
    async def parsed(contents: AsyncIterator[bytes], context: Context) -> AsyncIterator[Any]:
        async for content in contents:
            yield await _parsed(handler, content, context)

    async def call(contents: AsyncIterator[bytes], context: Context) -> None:
        async for response in handler.stream_stream(parsed(contents, context), context):
            await context.write(response)

    return call


async def _parsed(handler: Any, content: bytes, context: Context) -> Any:
    try:
        return handler.request_deserializer(content)
    except DecodeError:
        await _abort(_malformed(), context)


async def _abort(error: PathlensError, context: Context) -> NoReturn:
    await context.abort_with_status(rpc_status.to_status(status_from_error(error)))
    raise AssertionError("abort_with_status raises")


def _malformed() -> PathlensError:
    return InvalidRequestError(
        "The request is not a message of this call: use stubs made from its protos.", reason="REQUEST_MALFORMED"
    )


def _too_many_answers() -> PathlensError:
    return ResourceExhaustedError(
        f"The gateway has {MAX_UNREAD_ANSWERS} answers of health that nobody reads, as many as it may: repeat the"
        f" request in {FULL_RETRY_SECONDS} s.",
        reason="TOO_MANY_CALLS",
        metadata={"limit": MAX_UNREAD_ANSWERS},
        retry_after=FULL_RETRY_SECONDS,
    )


def _too_many_streams() -> PathlensError:
    return ResourceExhaustedError(
        f"The gateway has {MAX_OPEN_STREAMS} streams of health and reflection open, as many as it may: repeat the"
        f" request in {FULL_RETRY_SECONDS} s, or use Check.",
        reason="TOO_MANY_CALLS",
        metadata={"limit": MAX_OPEN_STREAMS},
        retry_after=FULL_RETRY_SECONDS,
    )
