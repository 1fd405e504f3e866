"""What is no message of a call, also of services that we did not write, and what is one, but nested deeply."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc
import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2
from grpc_status import rpc_status

from pathlens.gateway.metrics import SERVICE
from pathlens.gateway.well_formed import MAX_OPEN_STREAMS
from pathlens.wire.status import error_from_status
from pathlens.wire.v1 import explanation_service_pb2 as messages
from pathlens.wire.v1 import explanation_service_pb2_grpc
from reliability.fuzz_frames import call_without_a_window

from .fault_injector import FaultInjector, running_gateway

NO_MESSAGE = b"\xff\xff\xff"
HEALTH = "/grpc.health.v1.Health/"
REFLECTION = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"
# As many groups of an unknown field as protobuf reads: one more and the message is refused.
NESTED = b"\x7b" * 99 + b"\x7c" * 99


@asynccontextmanager
async def raw_channel(injector: FaultInjector) -> AsyncIterator[Any]:
    """Run a gateway, with a channel whose requests may be any bytes."""
    async with running_gateway(injector) as (_, channel):
        yield channel


CALLS: dict[str, Callable[[Any], Any]] = {
    "a health check": lambda channel: channel.unary_unary(HEALTH + "Check")(NO_MESSAGE, timeout=10),
    "watched health": lambda channel: channel.unary_stream(HEALTH + "Watch")(NO_MESSAGE, timeout=10).read(),
    "reflection": lambda channel: channel.stream_stream(REFLECTION)(iter([NO_MESSAGE]), timeout=10).read(),
    "a call of ours": lambda channel: channel.unary_unary(f"/{SERVICE}/Predict")(NO_MESSAGE, timeout=10),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS.keys())
def test_what_is_no_message_is_refused_in_our_own_words(call: Callable[[Any], Any]) -> None:
    async def scenario() -> None:
        async with FaultInjector() as injector, raw_channel(injector) as channel:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await call(channel)
            assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
            failed: Any = caught.value
            status = rpc_status.from_call(failed)
            assert status is not None
            assert error_from_status(status).reason == "REQUEST_MALFORMED"

    asyncio.run(scenario())


def test_what_is_a_message_of_another_service_is_answered_by_it() -> None:
    async def scenario() -> None:
        async with FaultInjector() as injector, raw_channel(injector) as channel:
            checked = health_pb2.HealthCheckResponse.FromString(await channel.unary_unary(HEALTH + "Check")(b""))
            watched = health_pb2.HealthCheckResponse.FromString(
                await channel.unary_stream(HEALTH + "Watch")(b"").read()
            )
            assert checked.status == watched.status == health_pb2.HealthCheckResponse.SERVING
            question = reflection_pb2.ServerReflectionRequest(list_services="")
            answer = await channel.stream_stream(REFLECTION)(iter([question.SerializeToString()])).read()
            listed = reflection_pb2.ServerReflectionResponse.FromString(answer).list_services_response
            assert SERVICE in {service.name for service in listed.service}

    asyncio.run(scenario())


@pytest.mark.parametrize("silent", [True, False])
def test_streams_that_everyone_may_open_leave_room_to_calls(silent: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pathlens.gateway.server_factory._MESSAGE_SECONDS", 60.0)

    async def never() -> AsyncIterator[bytes]:
        await asyncio.Event().wait()
        yield b""

    async def scenario() -> None:
        async with FaultInjector() as injector, running_gateway(injector, max_calls=4) as (gateway, channel):
            raw: Any = channel
            async with grpc.aio.insecure_channel(gateway.address, [("grpc.use_local_subchannel_pool", 1)]) as other:
                hostile: Any = other
                if silent:
                    watches = [hostile.stream_stream(HEALTH + "Watch")(never()) for _ in range(MAX_OPEN_STREAMS)]
                    await asyncio.sleep(0.5)
                else:
                    watches = [hostile.unary_stream(HEALTH + "Watch")(b"") for _ in range(MAX_OPEN_STREAMS)]
                    for watch in watches:
                        await watch.read()
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await hostile.unary_stream(HEALTH + "Watch")(b"", timeout=10).read()
                failed: Any = caught.value
                status = rpc_status.from_call(failed)
                assert status is not None
                error = error_from_status(status)
                assert (error.code, error.reason) == ("RESOURCE_EXHAUSTED", "TOO_MANY_CALLS")
                assert error.retry_after
                request = messages.PredictRequest(image=messages.Image(encoded=b"seven")).SerializeToString()
                for _ in range(3):
                    assert await raw.unary_unary(f"/{SERVICE}/Predict")(request, timeout=10)
                    assert await raw.unary_unary(HEALTH + "Check")(b"", timeout=10)
                watches.pop().cancel()
                await asyncio.sleep(0.2)
                assert await hostile.unary_stream(HEALTH + "Watch")(b"", timeout=10).read()
                for watch in watches:
                    watch.cancel()

    asyncio.run(scenario())


async def check(channel: grpc.aio.Channel) -> None:
    stub: Any = health_pb2_grpc.HealthStub(channel)
    await stub.Check(health_pb2.HealthCheckRequest())


async def is_checked(channel: grpc.aio.Channel) -> bool:
    try:
        await check(channel)
    except grpc.aio.AioRpcError:
        return False
    return True


def test_answers_that_nobody_reads_leave_room_to_calls() -> None:
    unread = call_without_a_window(HEALTH + "Check", b"")

    async def scenario() -> None:
        async with FaultInjector() as injector, running_gateway(injector, max_calls=4) as (gateway, channel):
            host, _, port = gateway.address.rpartition(":")
            writers = []
            for _ in range(2 * MAX_OPEN_STREAMS + 20):
                _reader, writer = await asyncio.open_connection(host, int(port))
                writer.write(unread)
                writers.append(writer)
            try:
                stub: Any = explanation_service_pb2_grpc.ExplanationServiceStub(channel)
                # All of them have come by the time at which these have.
                for _ in range(20):
                    await stub.Predict(messages.PredictRequest(image=messages.Image(encoded=b"seven")), timeout=10)
                    await asyncio.sleep(0.02)
                with pytest.raises(grpc.aio.AioRpcError, match="answers of health that nobody reads"):
                    await check(channel)
            finally:
                for writer in writers:
                    writer.close()
            # Their places are free when they have gone.
            async with asyncio.timeout(5):
                while not await is_checked(channel):
                    await asyncio.sleep(0.05)

    asyncio.run(scenario())


def test_a_call_whose_message_does_not_come_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pathlens.gateway.server_factory._MESSAGE_SECONDS", 0.1)

    async def scenario() -> None:
        async with FaultInjector() as injector, raw_channel(injector) as channel:
            check = channel.stream_stream(HEALTH + "Check")(timeout=10)
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await check.read()
            assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT

    asyncio.run(scenario())


def test_unknown_fields_do_not_reach_the_handler_however_deeply_they_are_nested() -> None:
    request = messages.PredictRequest(image=messages.Image(encoded=b"seven")).SerializeToString() + NESTED

    async def scenario() -> None:
        async with FaultInjector() as injector, raw_channel(injector) as channel:
            answer = await channel.unary_unary(f"/{SERVICE}/Predict")(request)
            assert messages.PredictResponse.FromString(answer).predictions[0].label == "seven"

    asyncio.run(scenario())
