"""The gateway while TorchServe is away, and what liveness and readiness say meanwhile."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_status import rpc_status

from pathlens.errors import PathlensError, ServerStartError
from pathlens.gateway import Gateway
from pathlens.gateway.metrics import SERVICE
from pathlens.wire.status import error_from_status
from pathlens.wire.v1 import explanation_service_pb2 as messages
from pathlens.wire.v1 import explanation_service_pb2_grpc

from .fault_injector import FaultInjector, begun_stop, running_gateway, until_queued

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
READINESS = ("readiness", "", SERVICE)


@asynccontextmanager
async def suspended() -> AsyncIterator[tuple[Gateway, grpc.aio.Channel]]:
    async with FaultInjector() as injector, running_gateway(injector) as (gateway, channel):
        await gateway.backend.suspend(7.0)
        yield gateway, channel


async def status(channel: grpc.aio.Channel, name: str) -> int:
    stub: Any = health_pb2_grpc.HealthStub(channel)
    return int((await stub.Check(health_pb2.HealthCheckRequest(service=name))).status)


async def predict(channel: grpc.aio.Channel) -> str:
    stub: Any = explanation_service_pb2_grpc.ExplanationServiceStub(channel)
    response = await stub.Predict(messages.PredictRequest(image=messages.Image(encoded=b"image")), timeout=5)
    return str(response.predictions[0].label)


async def refusal(channel: grpc.aio.Channel) -> PathlensError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await predict(channel)
    call: Any = caught.value
    found = rpc_status.from_call(call)
    assert found is not None
    return error_from_status(found)


def test_calls_are_refused_with_a_time_to_try_again_after() -> None:
    async def scenario() -> None:
        async with suspended() as (_, channel):
            error = await refusal(channel)
            assert (error.code, error.reason, error.retry_after) == ("UNAVAILABLE", "TORCHSERVE_RESTARTING", 7.0)

    asyncio.run(scenario())


def test_a_call_without_torchserve_waits_for_nothing_and_takes_no_room() -> None:
    async def scenario() -> None:
        async with (
            FaultInjector() as injector,
            running_gateway(injector, max_in_flight=1, max_queued=0) as (gateway, channel),
        ):
            injector.open.clear()
            before = asyncio.ensure_future(predict(channel))
            await injector.until(in_progress=1)
            await gateway.backend.suspend(7.0)
            # The only place is taken, and nobody may wait for it.
            assert (await refusal(channel)).reason == "TORCHSERVE_RESTARTING"
            injector.open.set()
            assert await before == "image"

    asyncio.run(scenario())


def test_a_call_that_waits_for_room_when_torchserve_goes_away_is_not_sent() -> None:
    async def scenario() -> None:
        async with FaultInjector() as injector, running_gateway(injector, max_in_flight=1) as (gateway, channel):
            injector.open.clear()
            before = asyncio.ensure_future(predict(channel))
            await injector.until(in_progress=1)
            waiting = asyncio.ensure_future(refusal(channel))
            await until_queued(gateway.backend.upstream, "prediction", 1)
            await gateway.backend.suspend(7.0)
            injector.open.set()
            assert (await waiting).reason == "TORCHSERVE_RESTARTING"
            assert (await before, len(injector.requests)) == ("image", 1)

    asyncio.run(scenario())


@pytest.mark.parametrize("name", READINESS)
def test_a_gateway_without_torchserve_is_not_ready(name: str) -> None:
    async def scenario() -> None:
        async with suspended() as (_, channel):
            assert await status(channel, name) == NOT_SERVING

    asyncio.run(scenario())


def test_a_gateway_without_torchserve_is_alive() -> None:
    async def scenario() -> None:
        async with suspended() as (_, channel):
            assert await status(channel, "liveness") == SERVING

    asyncio.run(scenario())


def test_the_next_torchserve_answers_at_the_same_address() -> None:
    async def scenario() -> None:
        async with suspended() as (gateway, channel), FaultInjector() as other:
            await gateway.backend.resume(other.address)
            assert await predict(channel) == "image"
            assert len(other.requests) == 1
            assert {await status(channel, name) for name in READINESS} == {SERVING}
            assert gateway.backend.unready_seconds == 0

    asyncio.run(scenario())


def test_a_next_torchserve_that_serves_something_else_is_refused() -> None:
    async def scenario() -> None:
        async with suspended() as (gateway, channel), FaultInjector() as other:
            other.model_name_prefix = "another "
            with pytest.raises(ServerStartError, match="another digits"):
                await gateway.backend.resume(other.address)
            assert await status(channel, "readiness") == NOT_SERVING

    asyncio.run(scenario())


def test_the_time_without_answers_begins_anew_with_the_next_torchserve(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        monkeypatch.setattr("pathlens.gateway.readiness._RETRY_SECONDS", 0.05)
        async with suspended() as (gateway, _), FaultInjector() as other:
            await asyncio.sleep(0.5)
            assert gateway.backend.unready_seconds >= 0.5
            other.failure = (grpc.StatusCode.INTERNAL, "Worker died.")
            began = time.monotonic()
            await gateway.backend.resume(other.address)
            unready_seconds = gateway.backend.unready_seconds
            assert 0 < unready_seconds < time.monotonic() - began

    asyncio.run(scenario())


def test_a_draining_gateway_is_alive_and_not_ready() -> None:
    async def scenario() -> None:
        async with FaultInjector() as injector, running_gateway(injector) as (gateway, channel):
            injector.open.clear()
            call = asyncio.ensure_future(predict(channel))
            await injector.until(in_progress=1)
            stopping = await begun_stop(gateway, 10.0)
            assert {await status(channel, name) for name in READINESS} == {NOT_SERVING}
            assert await status(channel, "liveness") == SERVING
            injector.open.set()
            assert await call == "image"
            await stopping

    asyncio.run(scenario())


def test_a_gateway_that_was_given_up_is_neither_alive_nor_ready() -> None:
    async def scenario() -> None:
        async with suspended() as (gateway, channel):
            await gateway.backend.give_up()
            assert {await status(channel, name) for name in ("liveness", *READINESS)} == {NOT_SERVING}

    asyncio.run(scenario())
