"""Sends the fuzzer's calls and keeps what came back."""

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import grpc
import grpc.aio

from reliability.fuzz_call import CONNECTION, STREAMING, FuzzCall

PATIENCE_SECONDS = 60.0
"""After which a call without a deadline of its own counts as one that hangs."""

_CONNECTION_SECONDS = 0.3
# A call whose path is not UTF-8 lets grpc close the port, which the gateway opens again.
_REOPENING_SECONDS = 5.0
_PAUSE_SECONDS = 0.1
_STREAMS = 24
_OPTIONS = (
    ("grpc.max_receive_message_length", 65 * 2**20),
    ("grpc.enable_http_proxy", 0),
    # Otherwise equal channels share one connection.
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 200),
)
_STATUS_DETAILS = "grpc-status-details-bin"


@dataclass(frozen=True)
class Outcome:
    """What a call came to.

    Attributes:
        code: The status code; None for a connection without a gRPC client.
        message: The status message.
        details: A serialised google.rpc.Status; empty if none came.
        responses: Serialised responses; of a connection, the bytes that came back.
        seconds: How long it took.
    """

    code: grpc.StatusCode | None
    message: str
    details: bytes
    responses: tuple[bytes, ...]
    seconds: float


class FuzzSender:
    """Sends calls to one service, as many at a time as are awaited. Use it inside one running event loop.

    Args:
        address: host:port of the service.
    """

    def __init__(self, address: str) -> None:
        self._address = address
        # Odd metadata may end a connection, and with it what others have sent over it.
        self._channels = [grpc.aio.insecure_channel(address, options=_OPTIONS) for _ in range(2)]
        self._streams = [grpc.insecure_channel(address, options=_OPTIONS) for _ in range(2)]
        self._threads = ThreadPoolExecutor(_STREAMS)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for channel in self._channels:
            await channel.close()
        for stream_channel in self._streams:
            stream_channel.close()
        self._threads.shutdown()

    async def send(self, call: FuzzCall) -> Outcome:
        """Send a call and wait for its end, whatever that is; again, if it was lost because the port was closed."""
        started = time.monotonic()
        outcome = await self._send(call)
        while _is_lost(outcome) and time.monotonic() - started < _REOPENING_SECONDS:
            await asyncio.sleep(_PAUSE_SECONDS)
            outcome = await self._send(call)
        return outcome

    async def _send(self, call: FuzzCall) -> Outcome:
        started = time.monotonic()
        if call.method == CONNECTION:
            answer = await self._converse(call.messages[0])
            return Outcome(None, "", b"", (answer,), time.monotonic() - started)
        if call.method in STREAMING:
            # The asyncio client loses the status of a stream that ends before its last message is sent.
            return await asyncio.get_running_loop().run_in_executor(self._threads, self._stream, call, started)
        return await self._ask(call, started)

    async def _ask(self, call: FuzzCall, started: float) -> Outcome:
        stub: Any = self._channel(call).unary_unary(call.method)
        asked = stub(call.messages[0], metadata=call.metadata or None, timeout=call.timeout or PATIENCE_SECONDS)
        responses: tuple[bytes, ...] = ()
        try:
            responses = (await asked,)
        except grpc.aio.AioRpcError as error:
            return _failed(error, responses, started)
        return Outcome(grpc.StatusCode.OK, "", b"", responses, time.monotonic() - started)

    def _stream(self, call: FuzzCall, started: float) -> Outcome:
        stub: Any = self._streams[1 if call.metadata else 0].stream_stream(call.method)
        responses: list[bytes] = []
        try:
            asked = stub(iter(call.messages), metadata=call.metadata or None, timeout=call.timeout or PATIENCE_SECONDS)
            responses.extend(asked)
        except grpc.RpcError as error:
            return _failed(error, tuple(responses), started)
        return Outcome(grpc.StatusCode.OK, "", b"", tuple(responses), time.monotonic() - started)

    async def _converse(self, content: bytes) -> bytes:
        host, _, port = self._address.rpartition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        answer = bytearray()
        try:
            writer.write(content)
            async with asyncio.timeout(_CONNECTION_SECONDS):
                while part := await reader.read(65_536):
                    answer += part
                    if b"grpc-status" in answer:
                        break
        except (TimeoutError, ConnectionError):
            pass
        finally:
            writer.close()
        return bytes(answer)

    def _channel(self, call: FuzzCall) -> Any:
        return self._channels[1 if call.metadata else 0]


def _failed(error: Any, responses: tuple[bytes, ...], started: float) -> Outcome:
    details = b"".join(value for key, value in error.trailing_metadata() or () if key == _STATUS_DETAILS)
    return Outcome(error.code(), error.details() or "", details, responses, time.monotonic() - started)


def _is_lost(outcome: Outcome) -> bool:
    return outcome.code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED) and not outcome.details
