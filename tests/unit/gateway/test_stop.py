"""What callers are told who keep calling while the gateway stops."""

import asyncio
from collections import Counter
from typing import Any

import grpc.aio
import pytest

from pathlens.wire.v1 import explanation_service_pb2 as messages
from pathlens.wire.v1 import explanation_service_pb2_grpc

from .fault_injector import FaultInjector, running_gateway

# So many that grpc has some of their calls at hand at any moment.
CALLERS = 32
STOPS = 3
# A connection of its own for each caller, as if they were different processes.
ALONE = [("grpc.use_local_subchannel_pool", 1)]


def calls_of(channel: grpc.aio.Channel) -> Any:
    return explanation_service_pb2_grpc.ExplanationServiceStub(channel)


async def call_until_gone(address: str) -> Counter[str]:
    """Call without a pause, whatever the answers are, until there is none; count them."""
    outcomes: Counter[str] = Counter()
    async with grpc.aio.insecure_channel(address, options=ALONE) as channel:
        while not outcomes.keys() - {"OK", "STOPPING"}:
            try:
                await calls_of(channel).ListModels(messages.ListModelsRequest(), timeout=10)
                outcomes["OK"] += 1
            except grpc.aio.AioRpcError as failure:
                stopping = "is stopping" in (failure.details() or "")
                outcomes["STOPPING" if stopping else failure.code().name] += 1
    return outcomes


def test_who_calls_without_a_pause_is_told_of_the_stop_and_then_finds_nobody() -> None:
    async def scenario() -> None:
        for _ in range(STOPS):
            async with FaultInjector() as injector, running_gateway(injector) as (gateway, _):
                calling = asyncio.gather(*[call_until_gone(gateway.address) for _ in range(CALLERS)])
                await asyncio.sleep(0.2)
                await gateway.stop(5.0)
                assert sum(await calling, Counter()).keys() == {"OK", "STOPPING", "UNAVAILABLE"}

    asyncio.run(scenario())


def test_calls_that_do_not_wait_for_each_other_do_not_hold_the_stop_up() -> None:
    async def scenario() -> None:
        async with FaultInjector() as injector, running_gateway(injector) as (gateway, channel):
            calls: list[asyncio.Future[Any]] = []
            stopping = asyncio.create_task(gateway.stop(20.0))
            async with asyncio.timeout(10):
                while not stopping.done():
                    call = calls_of(channel).ListModels(messages.ListModelsRequest(), timeout=10)
                    calls.append(asyncio.ensure_future(call))
                    await asyncio.sleep(0.005)
            await asyncio.gather(*calls, return_exceptions=True)

    asyncio.run(scenario())


def test_a_stop_that_is_interrupted_answers_those_who_are_held(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pathlens.gateway.server._HOLD_SECONDS", 10.0)

    async def scenario() -> None:
        async with FaultInjector() as injector, running_gateway(injector) as (gateway, channel):
            stopping = asyncio.create_task(gateway.stop(20.0))
            calls: list[asyncio.Future[Any]] = []
            async with asyncio.timeout(10):
                while len(held := [call for call in calls if not call.done()]) < 20:
                    call = calls_of(channel).ListModels(messages.ListModelsRequest(), timeout=10)
                    calls.append(asyncio.ensure_future(call))
                    await asyncio.sleep(0.005)
            stopping.cancel()
            outcomes = await asyncio.gather(*calls, return_exceptions=True)
            # The last ones may not have been read.
            for call in held[:10]:
                assert "is stopping" in str(outcomes[calls.index(call)])

    asyncio.run(scenario())
