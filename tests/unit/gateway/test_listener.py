"""The port stays open whatever ends grpc's own server."""

import asyncio
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import grpc
import grpc.aio
import pytest

from pathlens.gateway.listener import Listener

# grpc's asyncio server cannot decode this path, and ends itself.
PATH = b"/service/me\xc1hod"
# It forgets the exception that it ended with.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


def field(name: bytes, value: bytes) -> bytes:
    return b"\x00" + bytes([len(name)]) + name + bytes([len(value)]) + value


def frame(kind: int, flags: int, stream: int, content: bytes) -> bytes:
    return struct.pack(">I", len(content))[1:] + struct.pack(">BBI", kind, flags, stream) + content


def attack(port: int) -> None:
    headers = ((b":method", b"POST"), (b":scheme", b"http"), (b":path", PATH), (b":authority", b"localhost"))
    fields = b"".join(
        field(*header) for header in (*headers, (b"te", b"trailers"), (b"content-type", b"application/grpc"))
    )
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(4, 0, 0, b"") + frame(1, 5, 1, fields))
        connection.settimeout(0.3)
        with suppress(TimeoutError):
            while connection.recv(1000):
                pass


class Slow(grpc.GenericRpcHandler):
    """Echoes a message when it is told to."""

    def __init__(self) -> None:
        self.begun = asyncio.Event()
        self.go_on = asyncio.Event()

    def service(self, _call: grpc.HandlerCallDetails) -> Any:
        return grpc.unary_unary_rpc_method_handler(self._echo)

    async def _echo(self, content: bytes, _context: Any) -> bytes:
        self.begun.set()
        await self.go_on.wait()
        return content


@asynccontextmanager
async def listening(handler: Slow) -> AsyncIterator[Listener]:
    def make() -> grpc.aio.Server:
        server = grpc.aio.server()
        server.add_generic_rpc_handlers((handler,))
        return server

    def bind(server: grpc.aio.Server, port: int) -> int:
        return server.add_insecure_port(f"127.0.0.1:{port}")

    listener = Listener(make, bind, 0)
    await listener.start()
    try:
        yield listener
    finally:
        await listener.stop(0.5)


async def ask(port: int) -> bytes:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        method: Any = channel.unary_unary("/service/method")
        answer: bytes = await method(b"hello", timeout=10, wait_for_ready=True)
        return answer


def test_the_port_is_open_again_after_a_call_that_grpc_cannot_read(caplog: pytest.LogCaptureFixture) -> None:
    async def run() -> None:
        handler = Slow()
        handler.go_on.set()
        async with listening(handler) as listener:
            for _ in range(3):
                await asyncio.to_thread(attack, listener.port)
                assert await ask(listener.port) == b"hello"

    asyncio.run(run())
    assert caplog.text.count("gRPC has closed port") == 3


def test_calls_in_progress_are_finished() -> None:
    async def run() -> None:
        handler = Slow()
        async with listening(handler) as listener:
            asked = asyncio.create_task(ask(listener.port))
            await handler.begun.wait()
            await asyncio.to_thread(attack, listener.port)
            # Later than the port is open again.
            other = asyncio.create_task(ask(listener.port))
            await asyncio.sleep(0.5)
            handler.go_on.set()
            assert await asked == await other == b"hello"

    asyncio.run(run())


def test_calls_are_finished_however_often_the_port_was_closed_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pathlens.gateway.listener._RETIRED_SERVERS", 3)

    async def run() -> None:
        handler = Slow()
        async with listening(handler) as listener:
            asked = asyncio.create_task(ask(listener.port))
            await handler.begun.wait()
            for _ in range(3):
                await asyncio.to_thread(attack, listener.port)
                await until_open_again(listener)
            handler.go_on.set()
            assert await asked == b"hello"

    asyncio.run(run())


def test_one_server_too_many_that_finishes_its_calls_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pathlens.gateway.listener._RETIRED_SERVERS", 1)

    async def run() -> None:
        handler = Slow()
        async with listening(handler) as listener:
            asked = asyncio.create_task(ask(listener.port))
            await handler.begun.wait()
            for _ in range(2):
                await asyncio.to_thread(attack, listener.port)
                await until_open_again(listener)
            with pytest.raises(grpc.aio.AioRpcError):
                # Long before its own deadline.
                await asyncio.wait_for(asked, 3)
            handler.go_on.set()
            assert await ask(listener.port) == b"hello"

    asyncio.run(run())


async def until_open_again(listener: Listener) -> None:
    """Wait until the port takes connections: before that, an attack would miss it."""
    async with asyncio.timeout(5):
        while True:
            # Later than the next look at the server.
            await asyncio.sleep(0.3)
            with suppress(ConnectionRefusedError):
                _, writer = await asyncio.open_connection("127.0.0.1", listener.port)
                writer.close()
                return


def test_a_stop_ends_it_for_good() -> None:
    async def run() -> None:
        handler = Slow()
        handler.go_on.set()
        async with listening(handler) as listener:
            await asyncio.to_thread(attack, listener.port)
            assert await ask(listener.port) == b"hello"
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection("127.0.0.1", listener.port)

    asyncio.run(run())
