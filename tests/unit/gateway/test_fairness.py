"""A flood of one kind of call leaves room for the others, on a real gateway."""

import asyncio
from typing import Any

import grpc.aio

from pathlens.wire.v1 import explanation_service_pb2 as messages
from pathlens.wire.v1 import explanation_service_pb2_grpc

from .fault_injector import FaultInjector, running_gateway, until_queued

FLOOD = b"flood"
PREDICT = messages.PredictRequest(image=messages.Image(encoded=b"seven"))


def service(channel: grpc.aio.Channel) -> Any:
    return explanation_service_pb2_grpc.ExplanationServiceStub(channel)


def explain(content: bytes = FLOOD) -> messages.ExplainRequest:
    return messages.ExplainRequest(image=messages.Image(encoded=content))


def kinds(injector: FaultInjector) -> list[str | None]:
    return [request.calls[0].WhichOneof("call") for _, _, request in injector.requests]


def test_a_flood_of_explanations_leaves_predictions_answered() -> None:
    async def scenario() -> None:
        async with FaultInjector() as injector, running_gateway(injector, max_in_flight=8) as (gateway, channel):
            injector.held[FLOOD] = asyncio.Event()
            flood = [asyncio.ensure_future(service(channel).Explain(explain())) for _ in range(20)]
            await until_queued(gateway.backend.upstream, "explanation", 14)
            for _ in range(10):
                await service(channel).Predict(PREDICT, timeout=5.0)
            assert kinds(injector).count("predict") == 10
            assert kinds(injector).count("explain") == 6
            assert not any(call.done() for call in flood)
            injector.held[FLOOD].set()
            assert len(await asyncio.gather(*flood)) == 20

    asyncio.run(scenario())


def test_predictions_that_wait_are_sent_before_explanations_that_wait() -> None:
    async def scenario() -> None:
        async with FaultInjector() as injector, running_gateway(injector, max_in_flight=4) as (gateway, channel):
            injector.open.clear()
            calls = [asyncio.ensure_future(service(channel).Explain(explain())) for _ in range(7)]
            await until_queued(gateway.backend.upstream, "explanation", 4)
            calls += [asyncio.ensure_future(service(channel).Predict(PREDICT)) for _ in range(4)]
            await until_queued(gateway.backend.upstream, "prediction", 3)
            injector.open.set()
            await asyncio.gather(*calls)
            assert sorted(kinds(injector)[:4], key=str) == ["explain"] * 3 + ["predict"]
            assert kinds(injector)[4:] == ["predict"] * 3 + ["explain"] * 4

    asyncio.run(scenario())


def test_a_flood_of_streams_leaves_lone_explanations_answered() -> None:
    async def scenario() -> None:
        async with FaultInjector() as injector, running_gateway(injector, max_in_flight=8) as (gateway, channel):
            injector.held[FLOOD] = asyncio.Event()
            items = [messages.StreamExplainRequest(id=str(number), request=explain()) for number in range(8)]
            streams = [service(channel).StreamExplain(iter(items)) for _ in range(2)]
            batch = messages.BatchExplainRequest(items=[messages.BatchExplainItem(image=explain().image)] * 8)
            batches = asyncio.ensure_future(service(channel).BatchExplain(batch))
            await until_queued(gateway.backend.upstream, "bulk", 13)
            for _ in range(10):
                await service(channel).Explain(explain(b"lone"), timeout=5.0)
            assert len(injector.requests) == 4 + 10
            injector.held[FLOOD].set()
            assert [len([response async for response in stream]) for stream in streams] == [8, 8]
            assert len((await batches).results) == 8

    asyncio.run(scenario())


def test_an_explanation_whose_caller_hung_up_in_the_queue_is_never_sent() -> None:
    async def scenario() -> None:
        async with FaultInjector() as injector, running_gateway(injector, max_in_flight=2) as (gateway, channel):
            injector.held[FLOOD] = asyncio.Event()
            first = asyncio.ensure_future(service(channel).Explain(explain()))
            await injector.until(in_progress=1)
            left = service(channel).Explain(explain(b"left"))
            await until_queued(gateway.backend.upstream, "explanation", 1)
            left.cancel()
            await until_queued(gateway.backend.upstream, "explanation", 0)
            injector.held[FLOOD].set()
            await first
            await service(channel).Explain(explain(b"next"))
            images = [request.calls[0].explain.image.encoded for _, _, request in injector.requests]
            assert images == [FLOOD, b"next"]

    asyncio.run(scenario())


def test_calls_that_are_computed_together_count_each_stage_once() -> None:
    # Of a known size, so that it may be joined to others.
    tensor = messages.Tensor(data_type=messages.DATA_TYPE_UINT8, shape=[1, 1], data=b"1")
    small = messages.PredictRequest(image=messages.Image(tensor=tensor))

    async def scenario() -> None:
        async with FaultInjector() as injector, running_gateway(injector, max_in_flight=1) as (gateway, channel):
            await service(channel).Predict(small)
            injector.open.clear()
            calls = [asyncio.ensure_future(service(channel).Predict(small)) for _ in range(4)]
            await until_queued(gateway.backend.upstream, "prediction", 3)
            injector.open.set()
            await asyncio.gather(*calls)
            assert [len(request.calls) for _, _, request in injector.requests] == [1, 1, 3]
            assert gateway._state is not None
            registry = gateway._state.backend.upstream._metrics.registry
            for stage in ("queue", "predict"):
                labels = {"model": "digits", "version": "1.0", "stage": stage}
                assert registry.get_sample_value("pathlens_stage_duration_seconds_count", labels) == 3

    asyncio.run(scenario())
