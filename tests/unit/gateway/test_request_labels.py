"""Which model, version and source a call is counted for, as a scrape of a running gateway tells."""

import asyncio
import urllib.request
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from typing import Any

import grpc.aio
import pytest
from prometheus_client.parser import text_string_to_metric_families

from pathlens.gateway import Gateway
from pathlens.model_version import ModelVersion
from pathlens.wire.v1 import explanation_service_pb2 as messages
from pathlens.wire.v1 import explanation_service_pb2_grpc

from .fault_injector import FaultInjector, description, running_gateway

IMAGE = messages.Image(encoded=b"image")
NOWHERE = messages.ModelReference(name="cats")
Ask = Callable[[Any], Awaitable[object]]


async def counts(gateway: Gateway, metric: str) -> set[tuple[str, ...]]:
    """Find the series of a metric that have counted something: the values of their labels, in the order of names."""

    def scrape() -> str:
        with urllib.request.urlopen(f"http://{gateway.metrics_address}/metrics") as response:
            return str(response.read().decode())

    return {
        tuple(label for _, label in sorted(sample.labels.items()))
        for family in text_string_to_metric_families(await asyncio.to_thread(scrape))
        for sample in family.samples
        if sample.name == metric and sample.value
    }


async def stream(stub: Any, *items: messages.StreamExplainRequest) -> None:
    async def requests() -> AsyncIterator[messages.StreamExplainRequest]:
        for item in items:
            yield item

    async for _ in stub.StreamExplain(requests()):
        pass


def item(model: str) -> messages.StreamExplainRequest:
    request = messages.ExplainRequest(model=messages.ModelReference(name=model), image=IMAGE)
    return messages.StreamExplainRequest(id="1", request=request)


@pytest.mark.parametrize(
    ("ask", "expected"),
    [
        (lambda stub: stub.Predict(messages.PredictRequest(image=IMAGE)), ("OK", "Predict", "digits", "1.0")),
        (lambda stub: stub.GetModel(messages.GetModelRequest()), ("OK", "GetModel", "digits", "1.0")),
        (lambda stub: stub.ListModels(messages.ListModelsRequest()), ("OK", "ListModels", "", "")),
        (lambda stub: stream(stub, item("digits")), ("OK", "StreamExplain", "digits", "1.0")),
        (lambda stub: stream(stub), ("OK", "StreamExplain", "", "")),
        (
            lambda stub: stub.Predict(messages.PredictRequest()),
            ("INVALID_ARGUMENT", "Predict", "digits", "1.0"),
        ),
        (lambda stub: stub.Predict(messages.PredictRequest(model=NOWHERE)), ("NOT_FOUND", "Predict", "", "")),
    ],
    ids=["answered", "described", "no model", "stream", "silent stream", "refused", "unknown model"],
)
def test_a_call_is_counted_for_the_version_that_it_reached(ask: Ask, expected: tuple[str, ...]) -> None:
    async def scenario() -> None:
        async with FaultInjector() as injector, running_gateway(injector) as (gateway, channel):
            with suppress(grpc.aio.AioRpcError):
                await ask(explanation_service_pb2_grpc.ExplanationServiceStub(channel))
            # A caller may hear of its end before it is counted.
            async with asyncio.timeout(5):
                while await counts(gateway, "pathlens_requests_total") != {expected}:
                    await asyncio.sleep(0.01)

    asyncio.run(scenario())


def test_a_stream_that_asks_several_models_is_counted_for_the_last_one() -> None:
    async def scenario() -> None:
        models = ("digits", "letters")
        async with FaultInjector() as injector, running_gateway(injector, models=models) as (gateway, channel):
            stub: Any = explanation_service_pb2_grpc.ExplanationServiceStub(channel)
            call = stub.StreamExplain()
            for name in ("digits", "letters", "digits"):
                await call.write(item(name))
                await call.read()
            await call.done_writing()
            assert await call.read() is grpc.aio.EOF
            async with asyncio.timeout(5):
                while await counts(gateway, "pathlens_requests_total") != {("OK", "StreamExplain", "digits", "1.0")}:
                    await asyncio.sleep(0.01)

    asyncio.run(scenario())


def test_the_time_of_an_explanation_is_told_by_the_source_of_its_pathways() -> None:
    async def scenario() -> None:
        async with FaultInjector() as injector, running_gateway(injector) as (gateway, channel):
            stub: Any = explanation_service_pb2_grpc.ExplanationServiceStub(channel)
            await stub.Explain(messages.ExplainRequest(image=IMAGE))
            await stub.BatchExplain(messages.BatchExplainRequest(items=[messages.BatchExplainItem(image=IMAGE)]))
            expected = {("Explain", "digits", "transferred", "1.0"), ("BatchExplain", "digits", "", "1.0")}
            async with asyncio.timeout(5):
                while await counts(gateway, "pathlens_request_duration_seconds_count") != expected:
                    await asyncio.sleep(0.01)

    asyncio.run(scenario())


def test_readiness_and_the_room_at_torchserve_are_exposed() -> None:
    async def scenario() -> None:
        async with FaultInjector() as injector, running_gateway(injector, max_in_flight=3) as (gateway, _):
            (limit,) = await counts(gateway, "pathlens_upstream_inflight_limit")
            assert limit == ("digits",)
            assert await counts(gateway, "pathlens_ready") == {()}
            await gateway.announce_stop()
            assert await counts(gateway, "pathlens_ready") == set()

    asyncio.run(scenario())


def test_the_series_of_a_retired_version_go_when_they_have_been_scraped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pathlens.gateway.backend._LAST_SCRAPES_SECONDS", 1.5)

    async def scenario() -> None:
        async with FaultInjector() as injector, running_gateway(injector) as (gateway, channel):
            stub: Any = explanation_service_pb2_grpc.ExplanationServiceStub(channel)
            await stub.Predict(messages.PredictRequest(image=IMAGE))
            newer = ModelVersion("digits", "2.0")
            await gateway.backend.admit(description(version="2.0"), newer)
            await stub.Predict(messages.PredictRequest(image=IMAGE))
            await gateway.backend.retire(ModelVersion("digits", "1.0"))
            old, new = (("OK", "Predict", "digits", version) for version in ("1.0", "2.0"))
            assert await counts(gateway, "pathlens_requests_total") == {old, new}
            async with asyncio.timeout(5):
                while await counts(gateway, "pathlens_requests_total") != {new}:
                    await asyncio.sleep(0.05)

    asyncio.run(scenario())


def test_a_version_that_was_back_for_a_while_has_the_same_time_for_its_series(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pathlens.gateway.backend._LAST_SCRAPES_SECONDS", 1.5)

    async def scenario() -> None:
        async with FaultInjector() as injector, running_gateway(injector) as (gateway, channel):
            stub: Any = explanation_service_pb2_grpc.ExplanationServiceStub(channel)
            backend, newer = gateway.backend, ModelVersion("digits", "2.0")
            await backend.admit(description(version="2.0"), newer)
            await backend.drop(newer)
            first_end = backend._forgetting[newer]
            await backend.admit(description(version="2.0"), newer)
            await stub.Predict(messages.PredictRequest(image=IMAGE))
            await backend.drop(newer)
            assert first_end.cancelled()
            assert backend._forgetting[newer].when() > first_end.when()
            assert ("OK", "Predict", "digits", "2.0") in await counts(gateway, "pathlens_requests_total")
            async with asyncio.timeout(5):
                while await counts(gateway, "pathlens_requests_total"):
                    await asyncio.sleep(0.05)

    asyncio.run(scenario())
