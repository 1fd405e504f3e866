"""Versions that come and go while the gateway serves."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc.aio
import pytest

from pathlens.errors import InternalError
from pathlens.gateway import Gateway
from pathlens.model_version import ModelVersion
from pathlens.wire.v1 import explanation_service_pb2 as messages
from pathlens.wire.v1 import explanation_service_pb2_grpc

from .fault_injector import FaultInjector, running_gateway, until, until_queued

OLD, NEW = ModelVersion("digits", "1.0"), ModelVersion("digits", "2.0")
DESCRIPTION = messages.Model(model=messages.ServedModel(name="digits", version="2.0"), input_shape=[1, 2, 2])
IMAGE = messages.Image(encoded=b"image")


@asynccontextmanager
async def both_versions(**limits: Any) -> AsyncIterator[tuple[FaultInjector, Gateway, Any]]:
    """A gateway that serves two versions, and a stub that calls it."""
    async with FaultInjector() as injector, running_gateway(injector, **limits) as (gateway, channel):
        await gateway.backend.admit(DESCRIPTION, NEW)
        yield injector, gateway, explanation_service_pb2_grpc.ExplanationServiceStub(channel)


def predict(stub: Any, version: str = "") -> Any:
    reference = messages.ModelReference(version=version)
    return stub.Predict(messages.PredictRequest(model=reference, image=IMAGE), timeout=10)


def test_an_admitted_version_answers_whoever_names_none() -> None:
    async def scenario() -> None:
        async with both_versions() as (injector, _, stub):
            assert (await predict(stub)).model.version == "2.0"
            assert (await predict(stub, "1.0")).model.version == "1.0"
            # TorchServe's own default is never relied on.
            assert [request[1] for request in injector.requests] == ["2.0", "1.0"]

    asyncio.run(scenario())


def test_a_version_that_calls_itself_something_else_is_not_admitted() -> None:
    async def scenario() -> None:
        async with both_versions() as (_, gateway, stub):
            with pytest.raises(InternalError):
                await gateway.backend.admit(DESCRIPTION, ModelVersion("digits", "3.0"))
            assert (await predict(stub)).model.version == "2.0"

    asyncio.run(scenario())


def test_a_retired_version_is_waited_for_and_gets_no_further_calls() -> None:
    async def scenario() -> None:
        async with both_versions() as (injector, gateway, stub):
            injector.open.clear()
            call = asyncio.ensure_future(predict(stub, "1.0"))
            await injector.until(in_progress=1)
            retiring = asyncio.create_task(gateway.backend.retire(OLD))
            await asyncio.sleep(0.2)
            assert not retiring.done()
            with pytest.raises(grpc.aio.AioRpcError, match=r"is served in version '2\.0', not '1\.0'"):
                await predict(stub, "1.0")
            injector.open.set()
            assert (await call).model.version == "1.0"
            await asyncio.wait_for(retiring, 5)

    asyncio.run(scenario())


def test_calls_that_wait_for_room_are_waited_for() -> None:
    async def scenario() -> None:
        async with both_versions(max_in_flight=1) as (injector, gateway, stub):
            injector.open.clear()
            calls = [asyncio.ensure_future(predict(stub, "2.0"))]
            await injector.until(in_progress=1)
            calls.append(asyncio.ensure_future(predict(stub, "1.0")))
            await until_queued(gateway.backend.upstream, "prediction", 1)
            retiring = asyncio.create_task(gateway.backend.retire(OLD))
            await asyncio.sleep(0.2)
            assert not retiring.done()
            injector.open.set()
            assert [(await call).model.version for call in calls] == ["2.0", "1.0"]
            await asyncio.wait_for(retiring, 5)

    asyncio.run(scenario())


def test_an_abandoned_call_is_waited_for() -> None:
    async def scenario() -> None:
        async with both_versions() as (injector, gateway, stub):
            injector.open.clear()
            call = asyncio.ensure_future(predict(stub, "1.0"))
            await injector.until(in_progress=1)
            call.cancel()
            await until(lambda: not gateway.backend.directory.uses(OLD))
            retiring = asyncio.create_task(gateway.backend.retire(OLD))
            await asyncio.sleep(0.2)
            assert not retiring.done()
            injector.open.set()
            await asyncio.wait_for(retiring, 5)
            assert injector.cancelled == 0

    asyncio.run(scenario())


def test_a_batch_keeps_the_version_that_it_began_with() -> None:
    async def scenario() -> None:
        async with both_versions(max_in_flight=1, batch_chunk=1, stream_window=1) as (injector, gateway, stub):
            injector.held = {b"first": asyncio.Event(), b"other": asyncio.Event()}
            items = [messages.BatchExplainItem(image=messages.Image(encoded=name)) for name in (b"first", b"second")]
            request = messages.BatchExplainRequest(model=messages.ModelReference(version="1.0"), items=items)
            batch = asyncio.ensure_future(stub.BatchExplain(request, timeout=10))
            await injector.until(in_progress=1)
            other = messages.ExplainRequest(image=messages.Image(encoded=b"other"))
            lone = asyncio.ensure_future(stub.Explain(other, timeout=10))
            await until_queued(gateway.backend.upstream, "explanation", 1)
            # The lone call goes first: nothing of the batch is with TorchServe then.
            injector.held[b"first"].set()
            retiring = asyncio.create_task(gateway.backend.retire(OLD))
            await until(lambda: len(injector.requests) == 2)
            await asyncio.sleep(0.2)
            assert [request[1] for request in injector.requests] == ["1.0", "2.0"]
            assert not retiring.done()
            injector.held[b"other"].set()
            results = (await batch).results
            await asyncio.gather(lone, asyncio.wait_for(retiring, 5))
            assert [result.response.model.version for result in results] == ["1.0", "1.0"]

    asyncio.run(scenario())


def test_a_stream_moves_to_the_new_version() -> None:
    async def scenario() -> None:
        async with FaultInjector() as injector, running_gateway(injector) as (gateway, channel):
            stub: Any = explanation_service_pb2_grpc.ExplanationServiceStub(channel)
            stream = stub.StreamExplain(timeout=10)
            item = messages.StreamExplainRequest(id="1", request=messages.ExplainRequest(image=IMAGE))
            await stream.write(item)
            assert (await stream.read()).result.response.model.version == "1.0"
            await gateway.backend.admit(DESCRIPTION, NEW)
            await asyncio.wait_for(gateway.backend.retire(OLD), 5)
            await stream.write(item)
            assert (await stream.read()).result.response.model.version == "2.0"
            await stream.done_writing()

    asyncio.run(scenario())


def test_a_version_that_answers_nothing_is_given_up() -> None:
    async def scenario() -> None:
        async with both_versions(upstream_timeout_seconds=0.5) as (injector, gateway, stub):
            injector.open.clear()
            call = asyncio.ensure_future(predict(stub, "1.0"))
            await injector.until(in_progress=1)
            started = time.monotonic()
            await asyncio.wait_for(gateway.backend.retire(OLD), 5)
            assert time.monotonic() - started >= 0.5
            with pytest.raises(grpc.aio.AioRpcError):
                await call

    asyncio.run(scenario())


def test_a_version_that_was_given_up_leaves_its_places_to_the_next() -> None:
    async def scenario() -> None:
        async with both_versions(upstream_timeout_seconds=0.5, max_in_flight=4) as (injector, gateway, stub):
            injector.open.clear()
            calls = [asyncio.ensure_future(predict(stub, "1.0")) for _ in range(6)]
            await injector.until(in_progress=4)
            await asyncio.wait_for(gateway.backend.retire(OLD), 5)
            # What the old version has is never answered; the new one is well.
            injector.open = asyncio.Event()
            injector.open.set()
            assert (await predict(stub)).model.version == "2.0"
            for call in calls:
                with pytest.raises(grpc.aio.AioRpcError):
                    await call
            assert {request[1] for request in injector.requests[4:]} == {"2.0"}

    asyncio.run(scenario())


def test_a_stop_waits_for_no_retired_version() -> None:
    async def scenario() -> None:
        async with both_versions() as (injector, gateway, stub):
            injector.open.clear()
            call = asyncio.ensure_future(predict(stub, "1.0"))
            await injector.until(in_progress=1)
            retiring = asyncio.create_task(gateway.backend.retire(OLD))
            await asyncio.sleep(0.1)
            stopping = asyncio.create_task(gateway.stop(0.5))
            await asyncio.wait_for(retiring, 5)
            injector.open.set()
            await stopping
            await asyncio.gather(call, return_exceptions=True)

    asyncio.run(scenario())
