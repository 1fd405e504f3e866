"""Whose canaries readiness follows while versions and TorchServes come and go."""

import asyncio
from typing import Any

import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from pathlens.model_version import ModelVersion
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
