"""What probes are told, also while somebody watches and reads nothing."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from pathlens.gateway import Gateway
from reliability.fuzz_frames import call_without_a_window

from .fault_injector import FaultInjector, running_gateway, until

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
SERVICE_UNKNOWN = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
READINESS = health_pb2.HealthCheckRequest(service="readiness")
ABSENT = health_pb2.HealthCheckRequest(service="absent")


def health_of(channel: grpc.aio.Channel) -> Any:
    return health_pb2_grpc.HealthStub(channel)


@asynccontextmanager
async def blind_watcher(gateway: Gateway) -> AsyncIterator[None]:
    """Watch readiness, and have no room for what is told."""
    host, _, port = gateway.address.rpartition(":")
    _reader, writer = await asyncio.open_connection(host, int(port))
    try:
        writer.write(call_without_a_window("/grpc.health.v1.Health/Watch", READINESS.SerializeToString()))
        watching = gateway.backend._health.servicer
        await until(lambda: watching.watchers == 1)
        yield
    finally:
        writer.close()


def test_a_watcher_who_reads_nothing_keeps_nobody_else_from_the_truth() -> None:
    async def scenario() -> None:
        async with (
            FaultInjector() as injector,
            running_gateway(injector) as (gateway, channel),
            blind_watcher(gateway),
            asyncio.timeout(10),
        ):
            watch = health_of(channel).Watch(READINESS)
            assert (await watch.read()).status == SERVING
            await gateway.backend.suspend(1.0)
            assert (await health_of(channel).Check(READINESS)).status == NOT_SERVING
            assert (await watch.read()).status == NOT_SERVING
            await gateway.backend.resume(injector.address)
            assert (await watch.read()).status == SERVING

    asyncio.run(scenario())


def test_a_watcher_who_reads_nothing_holds_up_no_stop() -> None:
    async def scenario() -> None:
        async with (
            FaultInjector() as injector,
            running_gateway(injector) as (gateway, _),
            blind_watcher(gateway),
            asyncio.timeout(10),
        ):
            await gateway.stop(20.0)

    asyncio.run(scenario())


def test_watchers_who_have_gone_are_forgotten() -> None:
    async def scenario() -> None:
        async with FaultInjector() as injector, running_gateway(injector) as (gateway, channel):
            watch = health_of(channel).Watch(READINESS)
            await watch.read()
            servicer = gateway.backend._health.servicer
            assert servicer.watchers == 1
            watch.cancel()
            await until(lambda: servicer.watchers == 0)

    asyncio.run(scenario())


def test_a_service_that_there_is_not_is_unknown_to_a_watcher_and_not_found_by_a_check() -> None:
    async def scenario() -> None:
        async with FaultInjector() as injector, running_gateway(injector) as (_, channel):
            assert (await health_of(channel).Watch(ABSENT).read()).status == SERVICE_UNKNOWN
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await health_of(channel).Check(ABSENT)
            assert caught.value.code() is grpc.StatusCode.NOT_FOUND

    asyncio.run(scenario())
