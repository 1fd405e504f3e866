"""Makes a request, whatever its call, and tells how it ended."""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from typing import Any

import grpc
import grpc.aio
from google.rpc import status_pb2

from pathlens.client import stream_status
from pathlens.wire.status import error_from_status
from reliability.case import Case, Outcome
from reliability.promises import NO_OUTCOME, SLOWEST_SECONDS, Manner, Refusal

_SERVICE = "pathlens.v1.ExplanationService"
_STATUS_KEY = "grpc-status-details-bin"
_STREAM = "StreamExplain"


def open_channel(address: str) -> grpc.aio.Channel:
    """Open a connection of its own, without limits on what it sends and receives."""
    return grpc.aio.insecure_channel(
        address,
        options=[
            ("grpc.max_send_message_length", -1),
            ("grpc.max_receive_message_length", -1),
            ("grpc.use_local_subchannel_pool", 1),
            ("grpc.enable_http_proxy", 0),
        ],
    )


async def make(case: Case, manner: Manner, channel: grpc.aio.Channel, address: str) -> Outcome:
    """Make a request.

    Args:
        case: What is asked.
        manner: How the caller behaves.
        channel: The connection to use, unless the caller means to hang up.
        address: Where to open one of the caller's own.

    Returns:
        How it ended; with `NO_OUTCOME` if it did not.
    """
    if not manner.hangs_up:
        return await _make(case, manner, channel)
    async with open_channel(address) as own:
        return await _make(case, manner, own)


async def _make(case: Case, manner: Manner, channel: grpc.aio.Channel) -> Outcome:
    began = time.monotonic()
    responses: list[bytes] = []
    path = f"/{_SERVICE}/{case.method}"
    call: Any
    if case.method == _STREAM:
        stream: Any = channel.stream_stream(path)
        call = stream(_requests(case.payloads), timeout=manner.deadline)
        work = asyncio.create_task(_read(call, responses, manner, channel))
    else:
        unary: Any = channel.unary_unary(path)
        call = unary(case.payloads[0], timeout=manner.deadline)
        work = asyncio.create_task(_receive(call, responses))
    patience = SLOWEST_SECONDS if manner.leaves_after is None else manner.leaves_after
    await asyncio.wait({work}, timeout=patience)
    answered = work.done()
    if not answered:
        await _leave(call, channel, manner)
        # A call that was left ends at once, or grpc hangs.
        await asyncio.wait({work}, timeout=SLOWEST_SECONDS)
    ended = time.monotonic()
    if not work.done() or not (answered or manner.leaves):
        work.cancel()
        return Outcome(responses, Refusal(NO_OUTCOME), began, ended)
    return Outcome(responses, _refusal(work), began, ended)


async def _receive(call: Any, responses: list[bytes]) -> None:
    responses.append(await call)


async def _requests(payloads: Sequence[bytes]) -> AsyncIterator[bytes]:
    for payload in payloads:
        yield payload


async def _read(call: Any, responses: list[bytes], manner: Manner, channel: grpc.aio.Channel) -> None:
    # The client's own reading, because grpc.aio may hide the status of a stream.
    async with aclosing(stream_status.responses(call)) as received:
        async for response in received:
            responses.append(response)
            if len(responses) == manner.leaves_after_answers:
                await _leave(call, channel, manner)
                raise asyncio.CancelledError
            await asyncio.sleep(manner.reading_pause)


async def _leave(call: Any, channel: grpc.aio.Channel, manner: Manner) -> None:
    if manner.hangs_up:
        await channel.close()
    else:
        call.cancel()


def _refusal(work: "asyncio.Task[None]") -> Refusal | None:
    if work.cancelled():
        return Refusal("CANCELLED")
    error = work.exception()
    if error is None:
        return None
    if not isinstance(error, grpc.aio.AioRpcError):
        raise error
    code = error.code().name
    for key, value in error.trailing_metadata() or ():
        if key == _STATUS_KEY:
            found = error_from_status(status_pb2.Status.FromString(value))
            return Refusal(code, found.reason, found.retry_after, found.message)
    return Refusal(code, message=error.details() or "")
