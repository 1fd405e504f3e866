"""Spans of the gateway, as a real collector gets them."""

import asyncio
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from typing import Any

import grpc
import grpc.aio
import pytest
from opentelemetry.proto.trace.v1 import trace_pb2

from captured_log import captured_log
from collector import Collector
from pathlens.observability import TracingSettings
from pathlens.wire.v1 import explanation_service_pb2 as messages

from .fault_injector import FaultInjector, running_gateway
from .test_gateway import batch_of, image, service, stream_item

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
SAMPLED = (("traceparent", f"00-{TRACE}-{PARENT}-01"), ("tracestate", "shop=1"))
NOT_SAMPLED = (("traceparent", f"00-{TRACE}-{PARENT}-00"),)
PREDICT = messages.PredictRequest(image=image())
NOWHERE = messages.PredictRequest(model=messages.ModelReference(name="nowhere"), image=image())
ERROR, UNSET = trace_pb2.Status.STATUS_CODE_ERROR, trace_pb2.Status.STATUS_CODE_UNSET
# Of a known size, so that it may be joined to others.
SMALL = messages.PredictRequest(
    image=messages.Image(tensor=messages.Tensor(data_type=messages.DATA_TYPE_UINT8, shape=[1, 1], data=b"1"))
)
UPSTREAM = "InferenceAPIsService/Predictions"


@pytest.fixture
def collector() -> Iterator[Collector]:
    with Collector() as running:
        yield running


def run(
    collector: Collector, scenario: Callable[[FaultInjector, Any], Awaitable[None]], sample_ratio: float = 1.0
) -> None:
    """Run a scenario and stop the gateway, which sends what is left."""
    tracing = TracingSettings(endpoint=collector.endpoint, sample_ratio=sample_ratio)

    async def running() -> None:
        async with FaultInjector() as injector, running_gateway(injector, tracing=tracing) as (_, channel):
            await scenario(injector, service(channel))

    asyncio.run(running())


def test_a_call_is_a_tree_of_spans_below_the_span_of_its_caller(collector: Collector) -> None:
    async def scenario(_injector: FaultInjector, stub: Any) -> None:
        await stub.Predict(PREDICT, metadata=(*SAMPLED, ("x-request-id", "seven")))

    run(collector, scenario)
    call, upstream, handler = (collector.named(name) for name in ("/Predict", UPSTREAM, "handler"))
    assert {seen.span.trace_id.hex() for seen in collector.spans} == {TRACE}
    assert call.span.name == "pathlens.v1.ExplanationService/Predict"
    assert call.span.parent_span_id.hex() == PARENT
    assert call.span.kind == trace_pb2.Span.SPAN_KIND_SERVER
    assert call.attributes == {
        "rpc.system.name": "grpc",
        "rpc.method": "pathlens.v1.ExplanationService/Predict",
        "rpc.response.status_code": "OK",
        "pathlens.request_id": "seven",
        "pathlens.model": "digits",
        "pathlens.version": "1.0",
    }
    assert collector.named("admission").lies_in(call)
    assert upstream.lies_in(call)
    assert upstream.span.kind == trace_pb2.Span.SPAN_KIND_CLIENT
    assert (upstream.attributes["pathlens.model"], upstream.attributes["pathlens.items"]) == ("digits", 1)
    assert handler.lies_in(upstream)
    assert collector.named("pathlens.predict").lies_in(handler)
    assert len(collector.spans) == 5
    assert call.resource["service.name"] == "pathlens"


def test_a_call_without_a_parent_begins_a_trace(collector: Collector) -> None:
    async def scenario(_injector: FaultInjector, stub: Any) -> None:
        await stub.Predict(PREDICT)
        await stub.Predict(PREDICT, metadata=(("traceparent", "nonsense"),))

    run(collector, scenario)
    roots = [seen.span for seen in collector.spans if not seen.span.parent_span_id]
    assert len({root.trace_id for root in roots}) == len(roots) == 2


@pytest.mark.parametrize(("ratio", "metadata", "traced"), [(0, (), 0), (0, SAMPLED, 5), (1, NOT_SAMPLED, 0)])
def test_the_caller_decides_and_else_the_ratio(collector: Collector, ratio: float, metadata: Any, traced: int) -> None:
    async def scenario(_injector: FaultInjector, stub: Any) -> None:
        await stub.Predict(PREDICT, metadata=metadata)

    run(collector, scenario, ratio)
    assert len(collector.spans) == traced


def test_a_mistake_of_the_caller_is_no_error_of_the_service(collector: Collector) -> None:
    async def scenario(_injector: FaultInjector, stub: Any) -> None:
        with pytest.raises(grpc.aio.AioRpcError):
            await stub.Predict(NOWHERE)

    run(collector, scenario)
    call = collector.named("/Predict")
    assert call.attributes["rpc.response.status_code"] == "NOT_FOUND"
    assert call.attributes["error.type"] == "MODEL_NOT_FOUND"
    assert call.span.status.code == UNSET


def test_a_failure_of_torchserve_is_an_error_of_both_spans(collector: Collector) -> None:
    async def scenario(injector: FaultInjector, stub: Any) -> None:
        injector.failure = (grpc.StatusCode.INTERNAL, "Worker died.")
        with pytest.raises(grpc.aio.AioRpcError):
            await stub.Predict(PREDICT)

    run(collector, scenario)
    for name in ("/Predict", UPSTREAM):
        seen = collector.named(name)
        assert seen.span.status.code == ERROR
        assert seen.attributes["error.type"] == "WORKER_RESTARTING"
        assert not seen.span.events


def test_the_request_of_a_caller_who_left_has_its_span_when_it_ends(collector: Collector) -> None:
    async def scenario(injector: FaultInjector, stub: Any) -> None:
        injector.open.clear()
        call = stub.Predict(PREDICT)
        await injector.until(1)
        call.cancel()
        with suppress(asyncio.CancelledError):
            await call
        injector.open.set()

    run(collector, scenario)
    assert collector.named("/Predict").attributes["rpc.response.status_code"] == "CANCELLED"
    assert collector.named(UPSTREAM).span.parent_span_id == collector.named("/Predict").span.span_id
    assert collector.named("handler").span.parent_span_id == collector.named(UPSTREAM).span.span_id


def test_every_part_of_a_stream_and_of_a_batch_is_below_its_call(collector: Collector) -> None:
    async def scenario(_injector: FaultInjector, stub: Any) -> None:
        assert len([one async for one in stub.StreamExplain(iter([stream_item(b"one")] * 3))]) == 3
        await stub.BatchExplain(batch_of(*[b"one"] * 9))

    run(collector, scenario)
    for name, parts in (("/StreamExplain", [1, 1, 1]), ("/BatchExplain", [1, 8])):
        call = collector.named(name)
        below = [seen for seen in collector.spans if seen.span.name.endswith(UPSTREAM) and seen.lies_in(call)]
        assert sorted(seen.attributes["pathlens.items"] for seen in below) == parts


def test_calls_that_were_joined_have_a_span_each_with_a_link_to_that_of_the_first(collector: Collector) -> None:
    tracing = TracingSettings(endpoint=collector.endpoint)

    async def scenario() -> None:
        async with (
            FaultInjector() as injector,
            running_gateway(injector, tracing=tracing, max_in_flight=1) as (_, channel),
        ):
            await service(channel).Predict(SMALL, metadata=NOT_SAMPLED)
            injector.open.clear()
            first = asyncio.ensure_future(service(channel).Predict(SMALL, metadata=NOT_SAMPLED))
            await injector.until(1)
            calls = [service(channel).Predict(SMALL, metadata=(("x-request-id", one),)) for one in ("one", "two")]
            await asyncio.sleep(0.2)
            injector.open.set()
            await asyncio.gather(first, *calls)

    asyncio.run(scenario())
    first, second = sorted(
        (seen for seen in collector.spans if seen.span.name.endswith(UPSTREAM)), key=lambda seen: len(seen.span.links)
    )
    assert [link.span_id for link in second.span.links] == [first.span.span_id]
    assert [seen.attributes["pathlens.items"] for seen in (first, second)] == [2, 2]
    for upstream in (first, second):
        (call,) = (seen for seen in collector.spans if seen.span.span_id == upstream.span.parent_span_id)
        assert upstream.lies_in(call)
        (handler,) = (seen for seen in collector.spans if seen.span.parent_span_id == upstream.span.span_id)
        assert handler.span.name == "pathlens.handler"


def test_records_of_a_call_name_its_span(collector: Collector) -> None:
    async def scenario(_injector: FaultInjector, stub: Any) -> None:
        await stub.Predict(PREDICT, metadata=SAMPLED)

    with captured_log() as log:
        run(collector, scenario)
    (access,) = log.records("pathlens.access")
    assert access["trace_id"] == TRACE
    assert access["span_id"] == collector.named("/Predict").span.span_id.hex()


def test_the_environment_may_name_the_service(collector: Collector, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_SERVICE_NAME", "shop-window")
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=test")

    async def scenario(_injector: FaultInjector, stub: Any) -> None:
        await stub.GetModel(messages.GetModelRequest())

    run(collector, scenario)
    resource = collector.named("/GetModel").resource
    assert resource["service.name"] == "shop-window"
    assert resource["deployment.environment.name"] == "test"
    assert resource["telemetry.sdk.name"] == "opentelemetry"


def test_a_collector_that_is_not_there_costs_the_callers_nothing() -> None:
    tracing = TracingSettings(endpoint="http://127.0.0.1:1")

    async def scenario() -> float:
        async with FaultInjector() as injector, running_gateway(injector, tracing=tracing) as (gateway, channel):
            for _ in range(20):
                await service(channel).Predict(PREDICT)
            began = time.monotonic()
            await gateway.stop(0.5)
            return time.monotonic() - began

    assert asyncio.run(scenario()) < 5


def test_a_collector_that_does_not_answer_holds_a_stop_up_no_longer_than_it_may_take(collector: Collector) -> None:
    collector.answering.clear()
    tracing = TracingSettings(endpoint=collector.endpoint)

    async def scenario() -> float:
        async with FaultInjector() as injector, running_gateway(injector, tracing=tracing) as (gateway, channel):
            await service(channel).Predict(PREDICT)
            began = time.monotonic()
            await gateway.stop(1.0)
            return time.monotonic() - began

    assert 0.9 < asyncio.run(scenario()) < 5


def test_spans_are_sent_without_waiting_for_the_end(collector: Collector, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "100")

    async def scenario(_injector: FaultInjector, stub: Any) -> None:
        await stub.Predict(PREDICT)
        await asyncio.to_thread(collector.until, 5)

    run(collector, scenario)


def test_without_an_endpoint_opentelemetry_is_not_even_imported() -> None:
    code = (
        "import asyncio, sys\n"
        "from pathlens.gateway import Gateway, GatewaySettings\n"
        "from pathlens.model_version import ModelVersion\n"
        "async def main():\n"
        "    served = [ModelVersion('digits', '1.0')]\n"
        "    gateway = Gateway(GatewaySettings(port=0, metrics_port=0), '127.0.0.1:1', served)\n"
        "    await gateway.start()\n"
        "    await gateway.stop(0)\n"
        "asyncio.run(main())\n"
        "print([name for name in sys.modules if name.startswith('opentelemetry')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "[]", done.stderr


def test_an_endpoint_without_the_libraries_says_what_to_install() -> None:
    code = (
        "import sys\n"
        "class Missing:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'opentelemetry':\n"
        "            raise ModuleNotFoundError(\"No module named 'opentelemetry'\", name='opentelemetry')\n"
        "sys.meta_path.insert(0, Missing())\n"
        "from pathlens.observability import TracingSettings, start_tracing\n"
        "try: start_tracing(TracingSettings(endpoint='http://collector:4317'))\n"
        "except Exception as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert "opentelemetry is not installed: run `pip install 'pathlens[tracing]'`" in done.stdout, done.stderr
