"""Tokens at the gateway's door, with a real server and raw calls."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from google.rpc import error_details_pb2
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2, reflection_pb2_grpc
from grpc_status import rpc_status

from pathlens.client.stream_status import responses
from pathlens.errors import UnauthenticatedError
from pathlens.gateway import AuthorisationSettings
from pathlens.gateway.metrics import METHODS, SERVICE
from pathlens.wire.status import error_from_status
from pathlens.wire.v1 import explanation_service_pb2 as messages

from .fault_injector import FaultInjector
from .secured import secured_gateway
from .test_gateway import scraped

SECRET = "correct-horse-battery-staple"  # noqa: S105 - of the tests alone
OTHER = "0123456789abcdef0123456789abcdef"
BEARER = (("authorization", f"Bearer {SECRET}"),)
PREDICT = f"/{SERVICE}/Predict"
REQUEST = messages.PredictRequest(image=messages.Image(encoded=b"seven")).SerializeToString()

Metadata = Sequence[tuple[str, str]]


@pytest.fixture
def token_file(tmp_path: Path) -> Path:
    path = tmp_path / "tokens"
    path.write_text(f"# callers\nshop:{SECRET}\n")
    path.chmod(0o600)
    return path


def tokens(path: Path, **choices: Any) -> AuthorisationSettings:
    return AuthorisationSettings(token_file=path, **choices)


async def called(address: str, method: str, content: bytes = REQUEST, metadata: Metadata = ()) -> bytes:
    async with grpc.aio.insecure_channel(address, options=[("grpc.max_send_message_length", -1)]) as channel:
        call: Any = channel.unary_unary(method)
        return bytes(await call(content, metadata=tuple(metadata), timeout=10))


async def refusal(address: str, method: str, content: bytes = REQUEST, metadata: Metadata = ()) -> Any:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await called(address, method, content, metadata)
    failed: Any = caught.value
    return failed


def test_a_valid_token_is_served(token_file: Path) -> None:
    async def scenario() -> None:
        async with FaultInjector() as injector, secured_gateway(injector, None, tokens(token_file)) as gateway:
            response = messages.PredictResponse.FromString(await called(gateway.address, PREDICT, metadata=BEARER))
            assert response.predictions[0].label == "seven"

    asyncio.run(scenario())


@pytest.mark.parametrize(
    "metadata",
    [
        (),
        (("authorization", ""),),
        (("authorization", SECRET),),
        (("authorization", f"Bearer {SECRET}x"),),
        (("authorization", f"Bearer {SECRET[:-1]}"),),
        (("authorization", "Bearer"),),
        (("authorization", "Bearer "),),
        (("authorization", f"Basic {SECRET}"),),
        (("x-authorization", f"Bearer {SECRET}"),),
        (*BEARER, *BEARER),
        (("authorization", "Bearer wrong"), *BEARER),
    ],
)
def test_whatever_is_wrong_with_a_token_the_answer_is_the_same(metadata: Metadata, token_file: Path) -> None:
    async def scenario() -> None:
        async with FaultInjector() as injector, secured_gateway(injector, None, tokens(token_file)) as gateway:
            call = await refusal(gateway.address, PREDICT, metadata=metadata)
            assert call.code() is grpc.StatusCode.UNAUTHENTICATED
            assert call.details() == (
                "This service answers to those who have a token: send a valid one as metadata, `authorization: Bearer"
                " TOKEN`."
            )
            status = rpc_status.from_call(call)
            assert status is not None
            (detail,) = status.details
            info = error_details_pb2.ErrorInfo()
            assert detail.Unpack(info)
            assert (info.reason, info.domain, dict(info.metadata)) == ("UNAUTHENTICATED", "pathlens", {})
            assert type(error_from_status(status)) is UnauthenticatedError
            assert injector.requests == []

    asyncio.run(scenario())


@pytest.mark.parametrize("scheme", ["bearer", "BEARER", "Bearer "])
def test_the_scheme_is_read_as_http_reads_it(scheme: str, token_file: Path) -> None:
    async def scenario() -> None:
        async with FaultInjector() as injector, secured_gateway(injector, None, tokens(token_file)) as gateway:
            assert await called(gateway.address, PREDICT, metadata=(("authorization", f"{scheme} {SECRET}"),))

    asyncio.run(scenario())


@pytest.mark.parametrize("method", METHODS)
def test_every_call_of_our_service_asks_for_a_token(method: str, token_file: Path) -> None:
    async def scenario() -> None:
        async with FaultInjector() as injector, secured_gateway(injector, None, tokens(token_file)) as gateway:
            call = await refusal(gateway.address, f"/{SERVICE}/{method}", b"")
            assert call.code() is grpc.StatusCode.UNAUTHENTICATED
            # The caller may know a moment before it is counted.
            async with asyncio.timeout(5):
                while (
                    f'pathlens_requests_total{{code="UNAUTHENTICATED",method="{method}",model="",version=""}} 1.0'
                    not in (await scraped(gateway))
                ):
                    await asyncio.sleep(0.01)

    asyncio.run(scenario())


@pytest.mark.parametrize("content", [b"\xff" * 10, bytes(3 * 2**20)], ids=["no message", "larger than any message"])
def test_nothing_that_a_stranger_sends_is_read(content: bytes, token_file: Path) -> None:
    async def scenario() -> None:
        async with (
            FaultInjector() as injector,
            secured_gateway(injector, None, tokens(token_file), max_message_bytes=10_000) as gateway,
        ):
            assert (await refusal(gateway.address, PREDICT, content)).code() is grpc.StatusCode.UNAUTHENTICATED
            # The same from a known caller is read, and refused for what it is.
            known = await refusal(gateway.address, PREDICT, content, BEARER)
            assert known.code() in (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.RESOURCE_EXHAUSTED)

    asyncio.run(scenario())


def test_a_stranger_s_stream_is_refused_before_its_first_message(token_file: Path) -> None:
    async def scenario() -> None:
        async with (
            FaultInjector() as injector,
            secured_gateway(injector, None, tokens(token_file)) as gateway,
            grpc.aio.insecure_channel(gateway.address) as channel,
        ):

            async def silent() -> AsyncIterator[bytes]:
                await asyncio.sleep(30)
                yield b""

            explain: Any = channel.stream_stream(f"/{SERVICE}/StreamExplain")
            call = explain(silent(), timeout=10)
            assert await call.code() is grpc.StatusCode.UNAUTHENTICATED

    asyncio.run(scenario())


def test_without_a_file_of_tokens_everyone_is_served() -> None:
    async def scenario() -> None:
        async with FaultInjector() as injector, secured_gateway(injector) as gateway:
            assert await called(gateway.address, PREDICT)
            assert await called(gateway.address, PREDICT, metadata=BEARER)

    asyncio.run(scenario())


def test_a_new_token_is_served_within_a_second_while_a_stream_of_the_old_one_goes_on(token_file: Path) -> None:
    new = (("authorization", f"Bearer {OTHER}"),)

    async def scenario() -> None:
        async with (
            FaultInjector() as injector,
            secured_gateway(injector, None, tokens(token_file)) as gateway,
            grpc.aio.insecure_channel(gateway.address) as channel,
        ):
            explain: Any = channel.stream_stream(f"/{SERVICE}/StreamExplain")
            stream = explain(metadata=BEARER, timeout=30)
            item = messages.StreamExplainRequest(
                id="1", request=messages.ExplainRequest(image=messages.Image(encoded=b"seven"))
            ).SerializeToString()
            await stream.write(item)
            assert await stream.read()
            token_file.write_text(f"shop:{OTHER}\n")
            changed = time.monotonic()
            while True:
                try:
                    await called(gateway.address, PREDICT, metadata=new)
                    break
                except grpc.aio.AioRpcError:
                    assert time.monotonic() < changed + 1
                    await asyncio.sleep(0.02)
            call = await refusal(gateway.address, PREDICT, metadata=BEARER)
            assert call.code() is grpc.StatusCode.UNAUTHENTICATED
            await stream.write(item)
            assert await stream.read()
            await stream.done_writing()

    asyncio.run(scenario())


async def health_code(address: str, metadata: Metadata) -> grpc.StatusCode:
    async with grpc.aio.insecure_channel(address) as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        call = stub.Check(health_pb2.HealthCheckRequest(service=SERVICE), metadata=metadata, timeout=10)
        return await call.code()  # type: ignore[no-any-return]


async def reflection_code(address: str, metadata: Metadata) -> grpc.StatusCode:
    async with grpc.aio.insecure_channel(address) as channel:
        untyped: Any = channel
        stub: Any = reflection_pb2_grpc.ServerReflectionStub(untyped)
        request = reflection_pb2.ServerReflectionRequest(list_services="")
        # Not the call's own code: who is refused before the request is written would see an INTERNAL of grpc.aio.
        answers = responses(stub.ServerReflectionInfo(iter([request]), metadata=metadata, timeout=10))
        try:
            assert [response async for response in answers]
        except grpc.aio.AioRpcError as refused:
            return refused.code()
        return grpc.StatusCode.OK


OK, UNAUTHENTICATED, UNIMPLEMENTED = (
    grpc.StatusCode.OK,
    grpc.StatusCode.UNAUTHENTICATED,
    grpc.StatusCode.UNIMPLEMENTED,
)


@pytest.mark.parametrize(("choice", "stranger"), [("open", OK), ("token", UNAUTHENTICATED)])
def test_health_asks_for_a_token_only_if_it_is_told_to(
    choice: str, stranger: grpc.StatusCode, token_file: Path
) -> None:
    async def scenario() -> None:
        settings = tokens(token_file, health=choice)
        async with FaultInjector() as injector, secured_gateway(injector, None, settings) as gateway:
            assert await health_code(gateway.address, ()) is stranger
            assert await health_code(gateway.address, BEARER) is OK
            assert await reflection_code(gateway.address, ()) is OK

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("choice", "stranger", "caller"),
    [("open", OK, OK), ("token", UNAUTHENTICATED, OK), ("off", UNAUTHENTICATED, UNIMPLEMENTED)],
)
def test_reflection_is_open_asks_for_a_token_or_is_off(
    choice: str, stranger: grpc.StatusCode, caller: grpc.StatusCode, token_file: Path
) -> None:
    async def scenario() -> None:
        settings = tokens(token_file, reflection=choice)
        async with FaultInjector() as injector, secured_gateway(injector, None, settings) as gateway:
            assert await reflection_code(gateway.address, ()) is stranger
            assert await reflection_code(gateway.address, BEARER) is caller
            assert await health_code(gateway.address, ()) is OK

    asyncio.run(scenario())


def test_a_refusal_of_health_has_its_reason_too(token_file: Path) -> None:
    async def scenario() -> None:
        settings = tokens(token_file, health="token", reflection="token")
        async with FaultInjector() as injector, secured_gateway(injector, None, settings) as gateway:
            for method in (f"/{health.SERVICE_NAME}/Check", f"/{reflection.SERVICE_NAME}/ServerReflectionInfo"):
                status = rpc_status.from_call(await refusal(gateway.address, method, b""))
                assert status is not None
                assert error_from_status(status).reason == "UNAUTHENTICATED"

    asyncio.run(scenario())


def test_reflection_can_be_off_without_tokens() -> None:
    async def scenario() -> None:
        settings = AuthorisationSettings(reflection="off")
        async with FaultInjector() as injector, secured_gateway(injector, None, settings) as gateway:
            assert await reflection_code(gateway.address, ()) is UNIMPLEMENTED

    asyncio.run(scenario())


def test_a_method_that_nobody_has_tells_a_stranger_nothing(token_file: Path) -> None:
    async def scenario() -> None:
        async with FaultInjector() as injector, secured_gateway(injector, None, tokens(token_file)) as gateway:
            for method in (f"/{SERVICE}/Nonsense", "/nobody.Knows/This", "/"):
                assert (await refusal(gateway.address, method)).code() is UNAUTHENTICATED
                assert (await refusal(gateway.address, method, metadata=BEARER)).code() is UNIMPLEMENTED

    asyncio.run(scenario())


def test_no_log_holds_a_token(token_file: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        async with FaultInjector() as injector, secured_gateway(injector, None, tokens(token_file)) as gateway:
            await called(gateway.address, PREDICT, metadata=BEARER)
            await refusal(gateway.address, PREDICT, metadata=(("authorization", f"Bearer {OTHER}"),))
            token_file.write_text(f"shop:{SECRET}\nlab:{OTHER} x")
            await asyncio.sleep(0.6)
            await called(gateway.address, PREDICT, metadata=BEARER)
            token_file.write_text(f"lab:{OTHER}")
            await asyncio.sleep(0.6)
            await called(gateway.address, PREDICT, metadata=(("authorization", f"Bearer {OTHER}"),))

    with caplog.at_level(logging.DEBUG):
        asyncio.run(scenario())
    assert "no file of tokens" in caplog.text
    assert SECRET not in caplog.text
    assert OTHER not in caplog.text
