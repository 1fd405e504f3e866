import asyncio
import subprocess
import sys
import threading
from typing import Any

import grpc.aio
import pytest

from pathlens.client import AsyncClient
from pathlens.errors import PathlensError

from .scripted_service import ScriptedService, serving


class Meeting(ScriptedService):
    """Answers nobody before a number of calls are there together."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self._all = threading.Barrier(count)

    def Predict(self, request: Any, context: Any) -> Any:  # noqa: N802
        self._all.wait(30)
        return super().Predict(request, context)


def test_a_hundred_calls_are_under_way_at_once_on_one_channel() -> None:
    async def scenario(address: str) -> list[Any]:
        async with AsyncClient(address) as client:
            return await asyncio.gather(*(client.predict(f"image {i}".encode()) for i in range(100)))

    with serving(Meeting(100), threads=100) as service:
        answers = asyncio.run(scenario(service.address))
        peers = {seen.metadata["x-request-id"] for seen in service.seen}
    assert [answer.predictions[0].label for answer in answers] == [f"image {i}" for i in range(100)]
    assert len(peers) == 100


def test_a_client_can_be_made_before_there_is_an_event_loop() -> None:
    with serving(ScriptedService()) as service:
        client = AsyncClient(service.address)

        async def scenario() -> int:
            async with client:
                return len(await client.list_models())

        assert asyncio.run(scenario()) == 1


def test_other_tasks_run_while_a_call_waits() -> None:
    held = threading.Event()

    async def scenario(service: ScriptedService) -> None:
        async with AsyncClient(service.address) as client:
            call = asyncio.create_task(client.list_models())
            while not service.seen:
                await asyncio.sleep(0.01)
            assert not call.done()
            # By this task alone: a call that kept the loop to itself would wait until its deadline.
            held.set()
            await call

    with serving(ScriptedService(held)) as service:
        asyncio.run(scenario(service))


def test_a_call_that_is_cancelled_is_cancelled_at_the_service() -> None:
    ended = threading.Event()

    class Watched(ScriptedService):
        def ListModels(self, request: Any, context: Any) -> Any:  # noqa: N802
            context.add_callback(ended.set)
            return super().ListModels(request, context)

    async def scenario(address: str) -> None:
        async with AsyncClient(address) as client:
            call = asyncio.create_task(client.list_models())
            while not service.seen:
                await asyncio.sleep(0.01)
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call
            assert await asyncio.to_thread(ended.wait, 10)

    with serving(Watched(threading.Event())) as service:
        asyncio.run(scenario(service.address))


def test_a_closed_client_makes_no_calls() -> None:
    async def scenario(address: str) -> None:
        client = AsyncClient(address)
        await client.close()
        with pytest.raises((grpc.aio.UsageError, PathlensError)):
            await client.list_models()

    with serving(ScriptedService()) as service:
        asyncio.run(scenario(service.address))
        assert service.seen == []


def test_importing_the_client_imports_only_what_the_base_installation_has() -> None:
    heavy = "torch", "PIL", "ts", "pydantic", "prometheus_client", "pathlens.gateway", "pathlens.explainer"
    code = f"import sys, pathlens.client; print(sorted(set({heavy}) & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "[]", done.stderr
