"""What a stream of grpc.aio ended with."""

import asyncio
from collections.abc import AsyncGenerator, Coroutine
from typing import Any, TypeVar

import grpc
import grpc.aio

Response = TypeVar("Response")
Value = TypeVar("Value")

_STAND_IN = "Internal error from Core"
# The status was never seen to be more than one turn of the event loop behind its stand-in.
_TURNS, _TURN_SECONDS = 20, 0.01


def responses(stream: "grpc.aio.StreamStreamCall[Any, Response]") -> AsyncGenerator[Response, None]:
    """Read a stream to its end, or to the error that it ended with.

    When a stream ends while a request is being written, grpc.aio puts an INTERNAL of its own, "Internal error from
    Core", in the place of the status, whichever of the two comes first (grpc/grpc#36066). A status that came first is
    still seen by callbacks of the call, and one that comes later is the call's own from then on.

    Args:
        stream: A stream on which nothing has been written.

    Returns:
        The responses.
    """
    kept: list[grpc.aio.AioRpcError] = []
    stream.add_done_callback(lambda call: kept.append(_status(call)))
    return _read(stream, kept)


async def _read(
    stream: "grpc.aio.StreamStreamCall[Any, Response]", kept: list[grpc.aio.AioRpcError]
) -> AsyncGenerator[Response, None]:
    try:
        async for response in stream:
            yield response
    except grpc.aio.AioRpcError as failure:
        if not _stands_in(failure):
            raise
        ended = await _status_behind(failure, stream, kept)
        if ended.code() is not grpc.StatusCode.OK:
            raise ended from None


async def _status_behind(
    failure: grpc.aio.AioRpcError, stream: Any, kept: list[grpc.aio.AioRpcError]
) -> grpc.aio.AioRpcError:
    for _ in range(_TURNS):
        for status in (*kept, _status(stream)):
            if not _stands_in(status):
                return status
        await asyncio.sleep(_TURN_SECONDS)
    return failure


def _stands_in(status: grpc.aio.AioRpcError) -> bool:
    return status.code() is grpc.StatusCode.INTERNAL and status.details() == _STAND_IN


def _status(call: Any) -> grpc.aio.AioRpcError:
    return grpc.aio.AioRpcError(
        _at_once(call.code()), grpc.aio.Metadata(), _at_once(call.trailing_metadata()), _at_once(call.details())
    )


def _at_once(known: Coroutine[Any, Any, Value]) -> Value:
    # A callback cannot wait, and need not: what is asked of a call that is done is there.
    try:
        known.send(None)
    except StopIteration as end:
        value: Value = end.value
        return value
    finally:
        known.close()
    raise RuntimeError("A call that is done does not know its status.")
