"""Whose canaries readiness follows while versions and TorchServes come and go."""

import asyncio
from typing import Any

import grpc
import grpc.aio
import pytest
from google.protobuf import any_pb2
from google.rpc import status_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc

from pathlens.errors import ServerStartError
from pathlens.model_version import ModelVersion
from pathlens.wire.internal.v1 import worker_pb2
from pathlens.wire.v1 import explanation_service_pb2 as messages

from .fault_injector import FaultInjector, running_gateway

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
PERIOD = 0.05
OTHER = ModelVersion("other", "1.0")
DESCRIPTION = messages.Model(model=messages.ServedModel(name="other", version="1.0"), input_shape=[1, 2, 2])


@pytest.fixture(autouse=True)
def frequent_canaries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pathlens.gateway.watch._PERIOD_SECONDS", PERIOD)


async def until_readiness(channel: grpc.aio.Channel, expected: int) -> None:
    stub: Any = health_pb2_grpc.HealthStub(channel)
    async with asyncio.timeout(5):
        while (await stub.Check(health_pb2.HealthCheckRequest(service="readiness"))).status != expected:
            await asyncio.sleep(0.01)


def test_versions_have_a_part_in_readiness_from_their_admission_until_they_retire() -> None:
    async def scenario() -> None:
        async with FaultInjector() as injector, running_gateway(injector) as (gateway, channel):
            injector.failing.add("other")
            await until_readiness(channel, SERVING)
            await gateway.backend.admit(DESCRIPTION, OTHER)
            await until_readiness(channel, NOT_SERVING)
            await gateway.backend.retire(OTHER)
            await until_readiness(channel, SERVING)

    asyncio.run(scenario())


@pytest.fixture
def unreadable() -> bytes:
    """An answer of a handler whose status cannot be read."""
    detail = any_pb2.Any(type_url="type.googleapis.com/google.rpc.ErrorInfo", value=b"\xff")
    reply = worker_pb2.WorkerReply(status=status_pb2.Status(code=13, details=[detail]))
    return worker_pb2.WorkerResponse(replies=[reply]).SerializeToString()


def test_a_model_that_describes_itself_unreadably_is_refused(unreadable: bytes) -> None:
    async def scenario() -> None:
        async with FaultInjector() as injector:
            injector.prediction = unreadable
            with pytest.raises(ServerStartError) as caught:
                async with running_gateway(injector):
                    pass
            assert caught.value.reason == "RESPONSE_MALFORMED"

    asyncio.run(scenario())


def test_a_description_that_cannot_be_read_is_asked_for_again(
    unreadable: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pathlens.gateway.readiness._RETRY_SECONDS", 0.02)

    async def scenario() -> None:
        async with FaultInjector() as injector:
            injector.failure = (grpc.StatusCode.INTERNAL, "Worker died.")
            async with running_gateway(injector) as (_, channel):
                injector.failure, injector.prediction = None, unreadable
                answered = injector.described
                async with asyncio.timeout(5):
                    while injector.described < answered + 2:
                        await asyncio.sleep(0.01)
                injector.prediction = None
                await until_readiness(channel, SERVING)

    asyncio.run(scenario())


def test_the_canaries_of_one_torchserve_end_with_it() -> None:
    async def scenario() -> None:
        async with FaultInjector() as injector, running_gateway(injector) as (gateway, _):
            for _ in range(9):
                await gateway.backend.suspend(1.0)
                await gateway.backend.resume(injector.address)
            before = len(injector.canaries)
            await asyncio.sleep(6 * PERIOD)
            # One in each period; ten, if those before still asked.
            assert 1 <= len(injector.canaries) - before <= 7

    asyncio.run(scenario())
