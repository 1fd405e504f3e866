"""Connections take no more calls after a while, so that clients find new gateways; nothing that goes on is cut."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc.aio
import psutil

from pathlens.gateway import Gateway
from pathlens.wire.v1 import explanation_service_pb2 as messages
from pathlens.wire.v1 import explanation_service_pb2_grpc

from .fault_injector import FaultInjector, running_gateway

AGE_SECONDS = 1.0
SETTLED_SECONDS = 2.5
ITEM = messages.StreamExplainRequest(
    id="seven", request=messages.ExplainRequest(image=messages.Image(encoded=b"seven"))
)


def connections(gateway: Gateway) -> set[int]:
    """Ports of the callers that are connected."""
    port = int(gateway.address.rpartition(":")[2])
    return {
        one.raddr.port
        for one in psutil.Process().net_connections("tcp")
        if one.laddr.port == port and one.status == psutil.CONN_ESTABLISHED
    }


def test_a_stream_goes_on_when_its_connection_has_aged() -> None:
    async def requests(more: asyncio.Event) -> AsyncIterator[messages.StreamExplainRequest]:
        yield ITEM
        await more.wait()
        yield ITEM

    async def scenario() -> None:
        async with (
            FaultInjector() as injector,
            running_gateway(injector, max_connection_age_seconds=AGE_SECONDS) as (_, channel),
        ):
            stub: Any = explanation_service_pb2_grpc.ExplanationServiceStub(channel)
            more = asyncio.Event()
            call = stub.StreamExplain(requests(more), timeout=20)
            results = [await call.read()]
            await asyncio.sleep(SETTLED_SECONDS)
            more.set()
            results.append(await call.read())
            assert [one.result.status.code for one in results] == [0, 0]
            assert await call.read() is grpc.aio.EOF

    asyncio.run(scenario())


def test_calls_after_the_age_take_another_connection() -> None:
    async def scenario() -> None:
        async with (
            FaultInjector() as injector,
            running_gateway(injector, max_connection_age_seconds=AGE_SECONDS) as (gateway, channel),
        ):
            stub: Any = explanation_service_pb2_grpc.ExplanationServiceStub(channel)
            request = messages.PredictRequest(image=messages.Image(encoded=b"seven"))
            await stub.Predict(request, timeout=10)
            before = connections(gateway)
            await asyncio.sleep(SETTLED_SECONDS)
            await stub.Predict(request, timeout=10)
            assert len(before) == 1
            assert not connections(gateway) & before

    asyncio.run(scenario())
