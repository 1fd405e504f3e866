import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc
import pytest

from pathlens.errors import DeadlineExceededError
from pathlens.gateway.upstream import Upstream
from pathlens.gateway.watch import Watch

from .fault_injector import FaultInjector, predict_call, running_upstream

PATIENCE = 0.1
LONG = 0.5
"""Time for more canaries than it takes to call a model down."""


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pathlens.gateway.watch._PERIOD_SECONDS", 0.02)
    monkeypatch.setattr("pathlens.gateway.watch._PATIENCE_SECONDS", PATIENCE)


@asynccontextmanager
async def watched(injector: FaultInjector, **limits: int) -> AsyncIterator[tuple[Upstream, list[bool]]]:
    reports: list[bool] = []

    async def report(up: bool) -> None:
        reports.append(up)

    async with injector, running_upstream(injector, **limits) as (upstream, _):
        watching = asyncio.create_task(Watch(["digits"], upstream, report).run())
        try:
            yield upstream, reports
        finally:
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)


async def until_reported(reports: list[bool], expected: list[bool]) -> None:
    async with asyncio.timeout(5):
        while reports != expected:
            await asyncio.sleep(0.01)


def test_a_model_that_answers_is_up() -> None:
    async def scenario() -> None:
        injector = FaultInjector()
        async with watched(injector) as (_, reports):
            await asyncio.sleep(LONG)
            assert injector.described > 3
            assert reports == []

    asyncio.run(scenario())


def test_a_dead_worker_is_reported_and_so_is_its_return() -> None:
    async def scenario() -> None:
        injector = FaultInjector()
        async with watched(injector) as (_, reports):
            injector.failure = (grpc.StatusCode.INTERNAL, "Worker died.")
            await until_reported(reports, [False])
            injector.failure = None
            await until_reported(reports, [False, True])

    asyncio.run(scenario())


def test_one_failure_is_no_report() -> None:
    async def scenario() -> None:
        injector = FaultInjector()
        async with watched(injector) as (_, reports):
            for _ in range(3):
                injector.describing.clear()
                await asyncio.sleep(PATIENCE * 1.5)
                injector.describing.set()
                await asyncio.sleep(PATIENCE)
            assert reports == []

    asyncio.run(scenario())


def test_a_silent_worker_is_reported_and_gets_no_second_canary() -> None:
    async def scenario() -> None:
        injector = FaultInjector()
        async with watched(injector) as (upstream, reports):
            injector.describing.clear()
            await until_reported(reports, [False])
            asked = injector.described
            await asyncio.sleep(LONG)
            assert injector.described == asked
            assert upstream.in_flight == 1
            injector.describing.set()
            await until_reported(reports, [False, True])
            assert injector.cancelled == 0

    asyncio.run(scenario())


def test_a_busy_worker_that_answers_others_is_up() -> None:
    async def scenario() -> None:
        injector = FaultInjector()
        async with watched(injector) as (upstream, reports):
            injector.describing.clear()
            for _ in range(20):
                await upstream.ask("digits", "", [predict_call()], None)
                await asyncio.sleep(LONG / 20)
            assert reports == []

    asyncio.run(scenario())


def test_a_full_queue_is_no_failure() -> None:
    async def scenario() -> None:
        injector = FaultInjector()
        async with watched(injector, max_in_flight=1) as (upstream, reports):
            injector.open.clear()
            while not injector.in_progress:
                with pytest.raises(DeadlineExceededError):
                    await upstream.ask("digits", "", [predict_call()], 0.1, wait=True)
            await asyncio.sleep(LONG)
            assert reports == []

    asyncio.run(scenario())
