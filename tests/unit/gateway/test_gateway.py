import asyncio
import itertools
import socket
import time
import urllib.request
from collections.abc import AsyncIterator, Awaitable
from importlib import import_module
from typing import Any

import grpc
import grpc.aio
import pytest
from google.protobuf import any_pb2
from google.rpc import status_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from grpc_status import rpc_status

from pathlens.errors import PathlensError, ServerStartError
from pathlens.gateway import validation
from pathlens.gateway.metrics import METHODS, SERVICE
from pathlens.gateway.server import Gateway
from pathlens.model_version import ModelVersion
from pathlens.wire.internal.v1 import worker_pb2
from pathlens.wire.status import OK, error_from_status
from pathlens.wire.v1 import explanation_service_pb2 as messages
from pathlens.wire.v1 import explanation_service_pb2_grpc

from .fault_injector import LABELS, SETTINGS, UNDECODABLE, FaultInjector, begun_stop, running_gateway

UNKNOWN: Any = 99
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


def service(channel: grpc.aio.Channel) -> Any:
    return explanation_service_pb2_grpc.ExplanationServiceStub(channel)


def raw(kind: Any, method: str) -> Any:
    return kind(f"/{SERVICE}/{method}")


def image(content: bytes = b"image") -> messages.Image:
    return messages.Image(encoded=content)


def batch_of(*contents: bytes) -> messages.BatchExplainRequest:
    return messages.BatchExplainRequest(items=[messages.BatchExplainItem(image=image(one)) for one in contents])


def stream_item(content: bytes, model: str = "") -> messages.StreamExplainRequest:
    reference = messages.ModelReference(name=model)
    return messages.StreamExplainRequest(
        id=content.decode(errors="replace"), request=messages.ExplainRequest(model=reference, image=image(content))
    )


def label_of(result: messages.ExplainResult) -> str:
    return result.response.predictions[0].label


async def refusal(call: Awaitable[object]) -> PathlensError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    failed_call: Any = caught.value
    status = rpc_status.from_call(failed_call)
    assert status is not None
    return error_from_status(status)


async def scraped(gateway: Gateway) -> str:
    def scrape() -> str:
        with urllib.request.urlopen(f"http://{gateway.metrics_address}/metrics") as response:
            return str(response.read().decode())

    return await asyncio.to_thread(scrape)


async def until_counted(gateway: Gateway, code: str, method: str) -> None:
    async with asyncio.timeout(5):
        while counted(code, method) not in await scraped(gateway):
            await asyncio.sleep(0.01)


def counted(code: str, method: str) -> str:
    """Tell what stands in the exposition after one call of the served model."""
    return f'pathlens_requests_total{{code="{code}",method="{method}",model="digits",version="1.0"}} 1.0'


async def health_of(channel: grpc.aio.Channel, name: str) -> int:
    stub: Any = health_pb2_grpc.HealthStub(channel)
    return int((await stub.Check(health_pb2.HealthCheckRequest(service=name))).status)


def reflection_of(channel: Any) -> Any:
    return reflection_pb2_grpc.ServerReflectionStub(channel)


def test_predict_answers_with_predictions_and_stage_timings() -> None:
    async def scenario() -> None:
        async with FaultInjector() as injector, running_gateway(injector) as (_, channel):
            response = await service(channel).Predict(messages.PredictRequest(image=image(b"seven")))
            assert response.predictions[0].label == "seven"
            assert response.model.name == "digits"
            assert response.timings.predict.ToMilliseconds() == 2
            assert response.timings.queue.ToNanoseconds() > 0

    asyncio.run(scenario())


def test_explain_answers_with_explanations_and_stage_timings() -> None:
    async def scenario() -> None:
        async with FaultInjector() as injector, running_gateway(injector) as (_, channel):
            response = await service(channel).Explain(messages.ExplainRequest(image=image()))
            assert response.explanations[0].sparsity == 0.9
            assert response.timings.queue.ToNanoseconds() > 0

    asyncio.run(scenario())


def test_a_class_pathway_comes_from_the_handler() -> None:
    async def scenario() -> None:
        async with FaultInjector() as injector, running_gateway(injector) as (_, channel):
            response = await service(channel).GetClassPathway(messages.GetClassPathwayRequest(class_index=3))
            assert response.class_pathway.class_index == 3

    asyncio.run(scenario())


@pytest.mark.parametrize("wanted", [False, True])
def test_the_wish_for_frequencies_reaches_the_handler(wanted: bool) -> None:
    async def scenario() -> None:
        async with FaultInjector() as injector, running_gateway(injector) as (_, channel):
            request = messages.GetClassPathwayRequest(class_index=3, include_frequencies=wanted)
            response = await service(channel).GetClassPathway(request)
            assert bool(response.class_pathway.frequencies) is wanted

    asyncio.run(scenario())


def test_list_models_describes_every_model() -> None:
    async def scenario() -> None:
        async with FaultInjector() as injector, running_gateway(injector, ("squares", "digits")) as (_, channel):
            response = await service(channel).ListModels(messages.ListModelsRequest())
            assert [model.model.name for model in response.models] == ["digits", "squares"]

    asyncio.run(scenario())


def test_get_model_describes_the_only_model_without_its_name() -> None:
    async def scenario() -> None:
        async with FaultInjector() as injector, running_gateway(injector) as (_, channel):
            response = await service(channel).GetModel(messages.GetModelRequest())
            assert tuple(response.model.labels) == LABELS

    asyncio.run(scenario())


def test_the_version_that_was_validated_against_is_the_version_that_is_asked() -> None:
    async def scenario() -> None:
        async with FaultInjector() as injector, running_gateway(injector) as (_, channel):
            await service(channel).Predict(messages.PredictRequest(image=image()))
            assert injector.requests[0][:2] == ("digits", "1.0")

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("call", "request_message", "reason"),
    [
        ("Predict", messages.PredictRequest(), "IMAGE_MISSING"),
        ("Predict", messages.PredictRequest(image=image(b"")), "IMAGE_EMPTY"),
        ("Predict", messages.PredictRequest(image=image(bytes(2000))), "IMAGE_TOO_LARGE"),
        ("Explain", messages.ExplainRequest(), "IMAGE_MISSING"),
        (
            "Explain",
            messages.ExplainRequest(image=image(), options=messages.ExplanationOptions(sparsity=1.0)),
            "OPTION_INVALID",
        ),
        ("GetClassPathway", messages.GetClassPathwayRequest(class_index=10), "CLASS_NOT_FOUND"),
        ("GetModel", messages.GetModelRequest(model=messages.ModelReference(name="letters")), "MODEL_NOT_FOUND"),
    ],
)
def test_a_bad_request_is_refused_without_asking_torchserve(call: str, request_message: Any, reason: str) -> None:
    async def scenario() -> None:
        async with FaultInjector() as injector, running_gateway(injector, max_image_bytes=1000) as (_, channel):
            error = await refusal(getattr(service(channel), call)(request_message))
            assert error.reason == reason
            assert injector.requests == []

    asyncio.run(scenario())


def test_a_refused_field_is_named() -> None:
    async def scenario() -> None:
        async with FaultInjector() as injector, running_gateway(injector) as (_, channel):
            assert (await refusal(service(channel).Predict(messages.PredictRequest()))).field == "image"

    asyncio.run(scenario())


def test_a_refusal_of_the_handler_reaches_the_caller() -> None:
    async def scenario() -> None:
        async with FaultInjector() as injector, running_gateway(injector) as (_, channel):
            error = await refusal(service(channel).Explain(messages.ExplainRequest(image=image(UNDECODABLE))))
            assert (error.code, error.reason, error.field) == ("INVALID_ARGUMENT", "IMAGE_UNDECODABLE", "image")

    asyncio.run(scenario())


def test_a_name_of_any_length_gets_its_reason() -> None:
    async def scenario() -> None:
        async with FaultInjector() as injector, running_gateway(injector) as (_, channel):
            reference = messages.ModelReference(name="é" * 1_000_000)
            error = await refusal(service(channel).GetModel(messages.GetModelRequest(model=reference)))
            assert error.reason == "MODEL_NOT_FOUND"

    asyncio.run(scenario())


def test_bytes_that_are_no_message_are_an_invalid_request() -> None:
    async def scenario() -> None:
        async with FaultInjector() as injector, running_gateway(injector) as (_, channel):
            error = await refusal(raw(channel.unary_unary, "Predict")(b"\xff\xff"))
            assert (error.code, error.reason) == ("INVALID_ARGUMENT", "REQUEST_MALFORMED")

    asyncio.run(scenario())


def test_bytes_that_are_no_message_end_a_stream_as_an_invalid_request() -> None:
    async def scenario() -> None:
        async with FaultInjector() as injector, running_gateway(injector) as (_, channel):
            call = raw(channel.stream_stream, "StreamExplain")(iter([b"\xff\xff"]))
            error = await refusal(call.read())
            assert (error.code, error.reason) == ("INVALID_ARGUMENT", "REQUEST_MALFORMED")

    asyncio.run(scenario())


def test_a_message_over_the_limit_is_refused_with_details_and_counted() -> None:
    async def scenario() -> None:
        async with (
            FaultInjector() as injector,
            running_gateway(injector, max_message_bytes=10_000) as (gateway, channel),
        ):
            request = messages.PredictRequest(image=image(bytes(20_000)))
            error = await refusal(service(channel).Predict(request))
            assert (error.code, error.reason) == ("RESOURCE_EXHAUSTED", "MESSAGE_TOO_LARGE")
            assert error.metadata == {"bytes": str(request.ByteSize()), "limit": "10000"}
            error = await refusal(service(channel).StreamExplain(iter([stream_item(bytes(20_000))])).read())
            assert error.reason == "MESSAGE_TOO_LARGE"
            assert injector.requests == []
            exposition = await scraped(gateway)
            # No version was asked yet.
            refused = 'pathlens_requests_total{code="RESOURCE_EXHAUSTED",method="Predict",model="",version=""} 1.0'
            assert refused in exposition

    asyncio.run(scenario())


def test_a_message_far_over_the_limit_is_refused_by_the_transport() -> None:
    async def scenario() -> None:
        async with FaultInjector() as injector, running_gateway(injector, max_message_bytes=10_000) as (_, channel):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await service(channel).Predict(messages.PredictRequest(image=image(bytes(2_000_000))))
            assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert injector.requests == []

    asyncio.run(scenario())


def test_an_answer_over_the_limit_is_refused_with_the_remedy() -> None:
    async def scenario() -> None:
        async with FaultInjector() as injector, running_gateway(injector, max_message_bytes=10_000) as (_, channel):
            injector.padding = 20_000
            error = await refusal(service(channel).Explain(messages.ExplainRequest(image=image())))
            assert (error.code, error.reason) == ("RESOURCE_EXHAUSTED", "RESPONSE_TOO_LARGE")
            assert "fewer outputs" in error.message

    asyncio.run(scenario())


def test_a_dead_worker_is_unavailable_for_a_while() -> None:
    async def scenario() -> None:
        async with FaultInjector() as injector, running_gateway(injector) as (_, channel):
            injector.failure = (grpc.StatusCode.INTERNAL, "Worker died.")
            error = await refusal(service(channel).Predict(messages.PredictRequest(image=image())))
            assert (error.code, error.reason, error.retry_after) == ("UNAVAILABLE", "WORKER_RESTARTING", 2.5)

    asyncio.run(scenario())


def test_a_full_queue_is_refused_with_a_time_to_come_back() -> None:
    async def scenario() -> None:
        async with (
            FaultInjector() as injector,
            running_gateway(injector, max_queued=0, max_in_flight=1) as (_, channel),
        ):
            injector.open.clear()
            request = messages.PredictRequest(image=image())
            waiting = asyncio.ensure_future(service(channel).Predict(request))
            await injector.until(in_progress=1)
            error = await refusal(service(channel).Predict(request))
            assert (error.code, error.reason, error.retry_after) == ("RESOURCE_EXHAUSTED", "QUEUE_FULL", 1.0)
            injector.open.set()
            await waiting

    asyncio.run(scenario())


def test_an_internal_failure_keeps_its_text_from_the_caller(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("a secret")

    async def scenario() -> None:
        async with FaultInjector() as injector, running_gateway(injector) as (_, channel):
            monkeypatch.setattr("pathlens.gateway.validation.check_image", fail)
            error = await refusal(service(channel).Predict(messages.PredictRequest(image=image())))
            assert error.code == "INTERNAL"
            assert "secret" not in error.message

    asyncio.run(scenario())
    # The answer goes out before the log is written.
    assert "a secret" in caplog.text


MALFORMED = {
    "an unknown pathway source": worker_pb2.WorkerReply(
        status=OK, explain=messages.ExplainResponse(explanations=[messages.Explanation(source=UNKNOWN)])
    ),
    "a status with broken details": worker_pb2.WorkerReply(
        status=status_pb2.Status(
            code=3,
            details=[any_pb2.Any(type_url="type.googleapis.com/google.rpc.ErrorInfo", value=b"\xff")],
        )
    ),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_an_answer_that_no_handler_of_ours_gives_is_an_internal_error_with_a_reason(name: str) -> None:
    async def scenario() -> None:
        async with FaultInjector() as injector, running_gateway(injector) as (_, channel):
            injector.prediction = worker_pb2.WorkerResponse(replies=[MALFORMED[name]]).SerializeToString()
            error = await refusal(service(channel).Explain(messages.ExplainRequest(image=image())))
            assert (error.code, error.reason) == ("INTERNAL", "RESPONSE_MALFORMED")
            (item,) = [one async for one in service(channel).StreamExplain(iter([stream_item(b"image")]))]
            assert error_from_status(item.result.status).reason == "RESPONSE_MALFORMED"
            batch = await service(channel).BatchExplain(batch_of(b"image"))
            assert error_from_status(batch.results[0].status).reason == "RESPONSE_MALFORMED"

    asyncio.run(scenario())


def test_the_deadline_of_a_caller_is_kept_without_cancelling_upstream() -> None:
    async def scenario() -> None:
        async with FaultInjector() as injector, running_gateway(injector) as (gateway, channel):
            injector.open.clear()
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await service(channel).Predict(messages.PredictRequest(image=image()), timeout=0.2)
            assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
            assert 'pathlens_upstream_inflight{model="digits"} 1.0' in await scraped(gateway)
            assert counted("DEADLINE_EXCEEDED", "Predict") in await scraped(gateway)
            injector.open.set()
            await injector.until(in_progress=0)
            assert (injector.cancelled, injector.finished) == (0, 1)

    asyncio.run(scenario())


def test_a_cancelled_call_is_counted_and_not_cancelled_upstream() -> None:
    async def scenario() -> None:
        async with FaultInjector() as injector, running_gateway(injector) as (gateway, channel):
            injector.open.clear()
            call = service(channel).Predict(messages.PredictRequest(image=image()))
            await injector.until(in_progress=1)
            call.cancel()
            await until_counted(gateway, "CANCELLED", "Predict")
            assert "pathlens_upstream_abandoned_total 1.0" in await scraped(gateway)
            injector.open.set()
            await injector.until(in_progress=0)
            assert (injector.cancelled, injector.finished) == (0, 1)

    asyncio.run(scenario())


def test_a_batch_keeps_its_order() -> None:
    async def scenario() -> None:
        async with FaultInjector() as injector, running_gateway(injector, batch_chunk=2) as (_, channel):
            names = [f"image {i}".encode() for i in range(9)]
            injector.held[b"image 0"] = asyncio.Event()
            asyncio.get_running_loop().call_later(0.1, injector.held[b"image 0"].set)
            response = await service(channel).BatchExplain(batch_of(*names))
            assert [label_of(result).encode() for result in response.results] == names

    asyncio.run(scenario())


def test_a_bad_item_has_its_own_status_and_harms_no_other() -> None:
    async def scenario() -> None:
        async with FaultInjector() as injector, running_gateway(injector) as (_, channel):
            response = await service(channel).BatchExplain(batch_of(b"first", b"", UNDECODABLE, b"last"))
            codes = [result.status.code == OK.code for result in response.results]
            reasons = [error_from_status(response.results[i].status).reason for i in (1, 2)]
            assert codes == [True, False, False, True]
            assert reasons == ["IMAGE_EMPTY", "IMAGE_UNDECODABLE"]

    asyncio.run(scenario())


def test_a_batch_is_computed_in_chunks() -> None:
    async def scenario() -> None:
        async with FaultInjector() as injector, running_gateway(injector, batch_chunk=4) as (_, channel):
            await service(channel).BatchExplain(batch_of(*[b"image"] * 10))
            assert sorted(len(request.calls) for _, _, request in injector.requests) == [2, 4, 4]

    asyncio.run(scenario())


def test_a_chunk_holds_no_more_than_half_a_message() -> None:
    async def scenario() -> None:
        async with FaultInjector() as injector, running_gateway(injector, max_message_bytes=10_000) as (_, channel):
            await service(channel).BatchExplain(batch_of(*[bytes(2_000)] * 4))
            assert sorted(len(request.calls) for _, _, request in injector.requests) == [2, 2]

    asyncio.run(scenario())


def test_a_batch_has_no_more_in_flight_than_its_window() -> None:
    async def scenario() -> None:
        async with (
            FaultInjector() as injector,
            running_gateway(injector, batch_chunk=1, stream_window=3) as (_, channel),
        ):
            await service(channel).BatchExplain(batch_of(*[b"image"] * 20))
            assert injector.peak <= 3

    asyncio.run(scenario())


def test_options_of_the_batch_hold_for_items_without_their_own() -> None:
    async def scenario() -> None:
        async with FaultInjector() as injector, running_gateway(injector) as (_, channel):
            request = batch_of(b"shared", b"own")
            request.options.source = messages.PATHWAY_SOURCE_NEURON_MCT
            request.items[1].options.source = messages.PATHWAY_SOURCE_NEURON_INTGRAD
            await service(channel).BatchExplain(request)
            sources = [call.explain.options.source for call in injector.requests[0][2].calls]
            assert sources == [messages.PATHWAY_SOURCE_NEURON_MCT, messages.PATHWAY_SOURCE_NEURON_INTGRAD]

    asyncio.run(scenario())


def test_wrong_options_of_the_batch_spare_items_with_their_own() -> None:
    async def scenario() -> None:
        async with FaultInjector() as injector, running_gateway(injector) as (_, channel):
            request = batch_of(b"shared", b"own")
            request.options.sparsity = 5.0
            request.items[1].options.sparsity = 0.5
            response = await service(channel).BatchExplain(request)
            assert [result.status.code == OK.code for result in response.results] == [False, True]

    asyncio.run(scenario())


def test_an_empty_batch_has_an_empty_answer() -> None:
    async def scenario() -> None:
        async with FaultInjector() as injector, running_gateway(injector) as (_, channel):
            assert len((await service(channel).BatchExplain(messages.BatchExplainRequest())).results) == 0

    asyncio.run(scenario())


def test_a_batch_of_too_many_items_is_refused() -> None:
    async def scenario() -> None:
        async with FaultInjector() as injector, running_gateway(injector, max_batch_items=3) as (_, channel):
            error = await refusal(service(channel).BatchExplain(batch_of(*[b"image"] * 4)))
            assert (error.code, error.reason) == ("INVALID_ARGUMENT", "BATCH_TOO_LARGE")

    asyncio.run(scenario())


def test_a_dead_worker_is_the_status_of_every_item() -> None:
    async def scenario() -> None:
        async with FaultInjector() as injector, running_gateway(injector) as (_, channel):
            injector.failure = (grpc.StatusCode.INTERNAL, "Worker died.")
            response = await service(channel).BatchExplain(batch_of(b"first", b"", b"last"))
            reasons = [error_from_status(result.status).reason for result in response.results]
            assert reasons == ["WORKER_RESTARTING", "IMAGE_EMPTY", "WORKER_RESTARTING"]

    asyncio.run(scenario())


def test_results_for_which_a_message_has_no_room_are_refused_one_by_one() -> None:
    async def scenario() -> None:
        async with (
            FaultInjector() as injector,
            running_gateway(injector, max_message_bytes=10_000, batch_chunk=1) as (_, channel),
        ):
            injector.padding = 4_000
            response = await service(channel).BatchExplain(batch_of(b"first", b"second", b"third"))
            assert [result.status.code == OK.code for result in response.results] == [True, True, False]
            assert error_from_status(response.results[2].status).reason == "RESPONSE_TOO_LARGE"

    asyncio.run(scenario())


def test_a_stream_answers_every_id_once() -> None:
    async def scenario() -> None:
        async with FaultInjector() as injector, running_gateway(injector) as (_, channel):
            names = [f"image {i}" for i in range(30)]
            call = service(channel).StreamExplain(stream_item(name.encode()) for name in names)
            answers = {response.id: label_of(response.result) async for response in call}
            assert answers == {name: name for name in names}

    asyncio.run(scenario())


def test_a_stream_sends_what_is_ready_first() -> None:
    async def scenario() -> None:
        async with FaultInjector() as injector, running_gateway(injector, max_in_flight=4) as (_, channel):
            injector.held[b"slow"] = asyncio.Event()
            received = []
            async for response in service(channel).StreamExplain(iter([stream_item(b"slow"), stream_item(b"quick")])):
                received.append(response.id)
                injector.held[b"slow"].set()
            assert received == ["quick", "slow"]

    asyncio.run(scenario())


def test_a_bad_item_of_a_stream_is_one_bad_item() -> None:
    async def scenario() -> None:
        async with FaultInjector() as injector, running_gateway(injector) as (_, channel):
            items = [stream_item(b"good"), stream_item(b""), stream_item(b"lost", model="letters")]
            results = {response.id: response.result async for response in service(channel).StreamExplain(iter(items))}
            assert results["good"].status.code == OK.code
            assert error_from_status(results[""].status).reason == "IMAGE_EMPTY"
            assert error_from_status(results["lost"].status).reason == "MODEL_NOT_FOUND"

    asyncio.run(scenario())


def test_a_stream_may_ask_several_models() -> None:
    async def scenario() -> None:
        async with FaultInjector() as injector, running_gateway(injector, ("digits", "squares")) as (_, channel):
            items = [stream_item(b"a", model="digits"), stream_item(b"b", model="squares")]
            responses = [response async for response in service(channel).StreamExplain(iter(items))]
            assert {response.id: response.result.response.model.name for response in responses} == {
                "a": "digits",
                "b": "squares",
            }

    asyncio.run(scenario())


def test_a_stream_has_no_more_in_flight_than_its_window() -> None:
    async def scenario() -> None:
        async with (
            FaultInjector() as injector,
            running_gateway(injector, stream_window=3, max_in_flight=8) as (_, channel),
        ):
            injector.open.clear()
            call = service(channel).StreamExplain(stream_item(b"image") for _ in range(10))
            await injector.until(in_progress=3)
            await asyncio.sleep(0.1)
            assert injector.peak == 3
            injector.open.set()
            assert len([response async for response in call]) == 10
            assert injector.peak == 3

    asyncio.run(scenario())


def test_a_result_of_a_stream_over_the_limit_is_one_bad_item() -> None:
    async def scenario() -> None:
        async with FaultInjector() as injector, running_gateway(injector, max_message_bytes=10_000) as (_, channel):
            injector.padding = 20_000
            (response,) = [one async for one in service(channel).StreamExplain(iter([stream_item(b"image")]))]
            assert error_from_status(response.result.status).reason == "RESPONSE_TOO_LARGE"

    asyncio.run(scenario())


def test_a_result_of_a_stream_that_only_fits_without_its_id_is_one_bad_item() -> None:
    async def scenario() -> None:
        async with FaultInjector() as injector, running_gateway(injector, max_message_bytes=10_000) as (_, channel):
            injector.padding = 9_500
            items = [stream_item(b"x" * 1_000), stream_item(b"image")]
            results = {response.id: response.result async for response in service(channel).StreamExplain(iter(items))}
            assert error_from_status(results["x" * 1_000].status).reason == "RESPONSE_TOO_LARGE"
            assert results["image"].status.code == OK.code

    asyncio.run(scenario())


def test_a_cancelled_stream_leaves_no_task_and_cancels_nothing_upstream() -> None:
    async def scenario() -> None:
        async with (
            FaultInjector() as injector,
            running_gateway(injector, stream_window=3, max_in_flight=8) as (gateway, channel),
        ):
            injector.open.clear()
            call = service(channel).StreamExplain(stream_item(b"image") for _ in range(10))
            await injector.until(in_progress=3)
            call.cancel()
            await until_counted(gateway, "CANCELLED", "StreamExplain")
            names = {task.get_coro().__qualname__ for task in asyncio.all_tasks()}  # type: ignore[union-attr]
            assert not {"_run", "_next"} & names
            injector.open.set()
            await injector.until(in_progress=0)
            assert (injector.cancelled, injector.finished) == (0, 3)

    asyncio.run(scenario())


def test_every_finished_call_is_counted_with_its_code() -> None:
    async def scenario() -> None:
        async with FaultInjector() as injector, running_gateway(injector) as (gateway, channel):
            await service(channel).Predict(messages.PredictRequest(image=image()))
            await refusal(service(channel).Predict(messages.PredictRequest()))
            exposition = await scraped(gateway)
            assert counted("OK", "Predict") in exposition
            assert counted("INVALID_ARGUMENT", "Predict") in exposition
            answered = 'method="Predict",model="digits",source="",version="1.0"'
            assert f"pathlens_request_duration_seconds_count{{{answered}}} 2.0" in exposition
            assert 'pathlens_inflight{method="Predict"} 0.0' in exposition
            assert 'pathlens_stage_duration_seconds_count{model="digits",stage="queue",version="1.0"} 1.0' in exposition

    asyncio.run(scenario())


@pytest.mark.parametrize("name", ["", SERVICE])
def test_health_is_serving_once_the_models_have_answered(name: str) -> None:
    async def scenario() -> None:
        async with FaultInjector() as injector, running_gateway(injector) as (_, channel):
            assert await health_of(channel, name) == SERVING

    asyncio.run(scenario())


def test_health_is_not_serving_until_the_models_have_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        monkeypatch.setattr("pathlens.gateway.readiness._RETRY_SECONDS", 0.05)
        async with FaultInjector() as injector:
            injector.failure = (grpc.StatusCode.INTERNAL, "Worker died.")
            async with running_gateway(injector) as (_, channel):
                assert await health_of(channel, SERVICE) == NOT_SERVING
                error = await refusal(service(channel).Predict(messages.PredictRequest(image=image())))
                assert error.reason == "MODEL_LOADING"
                injector.failure = None
                async with asyncio.timeout(5):
                    while await health_of(channel, SERVICE) != SERVING:
                        await asyncio.sleep(0.02)

    asyncio.run(scenario())


def test_a_watcher_of_health_sees_the_drain_and_does_not_hold_it_up() -> None:
    async def scenario() -> None:
        async with FaultInjector() as injector, running_gateway(injector) as (gateway, channel):
            stub: Any = health_pb2_grpc.HealthStub(channel)
            watch = stub.Watch(health_pb2.HealthCheckRequest(service=SERVICE))
            assert (await watch.read()).status == SERVING
            started = time.monotonic()
            stopping = asyncio.create_task(gateway.stop(20.0))
            assert (await watch.read()).status == NOT_SERVING
            await stopping
            assert time.monotonic() - started < 5.0

    asyncio.run(scenario())


def test_reflection_lists_our_service_and_health() -> None:
    async def scenario() -> None:
        async with FaultInjector() as injector, running_gateway(injector) as (_, channel):
            stub = reflection_of(channel)
            call = stub.ServerReflectionInfo(iter([reflection_pb2.ServerReflectionRequest(list_services="")]))
            response = await call.read()
            names = {one.name for one in response.list_services_response.service}
            assert {SERVICE, "grpc.health.v1.Health"} <= names
            assert await call.read() is grpc.aio.EOF

    asyncio.run(scenario())


def test_reflection_describes_our_service() -> None:
    async def scenario() -> None:
        async with FaultInjector() as injector, running_gateway(injector) as (_, channel):
            stub = reflection_of(channel)
            request = reflection_pb2.ServerReflectionRequest(file_containing_symbol=SERVICE)
            response = await stub.ServerReflectionInfo(iter([request])).read()
            files = response.file_descriptor_response.file_descriptor_proto
            assert all(method.encode() in files[0] for method in METHODS)

    asyncio.run(scenario())


def test_stopping_lets_an_accepted_call_finish() -> None:
    async def scenario() -> None:
        async with FaultInjector() as injector, running_gateway(injector) as (gateway, channel):
            injector.open.clear()
            call = asyncio.ensure_future(service(channel).Predict(messages.PredictRequest(image=image(b"kept"))))
            await injector.until(in_progress=1)
            stopping = await begun_stop(gateway, 10.0)
            await asyncio.sleep(0.5)
            assert not stopping.done()
            injector.open.set()
            assert (await call).predictions[0].label == "kept"
            await stopping

    asyncio.run(scenario())


def test_a_new_call_is_refused_while_accepted_ones_finish() -> None:
    async def scenario() -> None:
        async with FaultInjector() as injector, running_gateway(injector) as (gateway, channel):
            injector.open.clear()
            call = asyncio.ensure_future(service(channel).Predict(messages.PredictRequest(image=image(b"kept"))))
            await injector.until(in_progress=1)
            stopping = await begun_stop(gateway, 10.0)
            error = await refusal(service(channel).ListModels(messages.ListModelsRequest()))
            assert (error.code, error.reason) == ("UNAVAILABLE", "STOPPING")
            assert error.retry_after is not None
            injector.open.set()
            assert (await call).predictions[0].label == "kept"
            await stopping

    asyncio.run(scenario())


def test_a_stop_is_never_joined_by_a_second_one(monkeypatch: pytest.MonkeyPatch) -> None:
    # grpc destroys its server when the time of one stop is up, and crashes if that of another is up just then.
    running: list[float | None] = []
    most: list[int] = []
    server_class: Any = import_module("grpc.aio._server").Server
    stop = server_class.stop

    async def counted(server: Any, grace: float | None) -> None:
        running.append(grace)
        most.append(len(running))
        await stop(server, grace)
        running.remove(grace)

    monkeypatch.setattr(server_class, "stop", counted)

    async def scenario() -> None:
        async with FaultInjector() as injector, running_gateway(injector) as (gateway, _):
            await gateway.stop(0)

    asyncio.run(scenario())
    assert max(most) == 1


def test_stopping_is_bounded_when_torchserve_never_answers() -> None:
    async def scenario() -> None:
        async with FaultInjector() as injector, running_gateway(injector) as (gateway, channel):
            injector.open.clear()
            call = asyncio.ensure_future(service(channel).Predict(messages.PredictRequest(image=image())))
            await injector.until(in_progress=1)
            started = time.monotonic()
            await gateway.stop(0.5)
            assert time.monotonic() - started < 3.0
            with pytest.raises(grpc.aio.AioRpcError):
                await call

    asyncio.run(scenario())


def test_stopping_waits_for_abandoned_calls() -> None:
    async def scenario() -> None:
        async with FaultInjector() as injector, running_gateway(injector) as (gateway, channel):
            injector.open.clear()
            with pytest.raises(grpc.aio.AioRpcError):
                await service(channel).Predict(messages.PredictRequest(image=image()), timeout=0.2)
            asyncio.get_running_loop().call_later(1.0, injector.open.set)
            await gateway.stop(10.0)
            assert (injector.cancelled, injector.finished) == (0, 1)

    asyncio.run(scenario())


def test_a_stopped_gateway_gives_its_ports_back() -> None:
    async def scenario() -> None:
        async with FaultInjector() as injector, running_gateway(injector) as (gateway, _):
            addresses = [gateway.address, gateway.metrics_address]
            await gateway.stop(1.0)
            for address in addresses:
                host, _, port = address.rpartition(":")
                with socket.socket() as listener:
                    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                    listener.bind((host, int(port)))

    asyncio.run(scenario())


def test_a_gateway_that_does_not_run_has_no_address() -> None:
    with pytest.raises(RuntimeError, match="start"):
        _ = Gateway(SETTINGS, "127.0.0.1:1", [ModelVersion("digits", "1.0")]).address


def test_a_gateway_stops_twice_without_harm() -> None:
    async def scenario() -> None:
        async with FaultInjector() as injector, running_gateway(injector) as (gateway, _):
            await gateway.stop(1.0)
            await gateway.stop(1.0)

    asyncio.run(scenario())


def test_a_taken_port_is_an_error_that_names_it() -> None:
    async def scenario() -> None:
        async with FaultInjector() as injector, running_gateway(injector) as (gateway, _):
            port = int(gateway.address.rpartition(":")[2])
            with pytest.raises(ServerStartError, match=f"{port}: choose another port") as caught:
                async with running_gateway(injector, port=port):
                    pass
            assert caught.value.reason == "PORT_UNAVAILABLE"

    asyncio.run(scenario())


def test_a_model_that_torchserve_does_not_serve_is_an_error_at_the_start() -> None:
    async def scenario() -> None:
        async with FaultInjector() as injector:
            injector.failure = (grpc.StatusCode.INTERNAL, "Model not found: digits")
            with pytest.raises(ServerStartError) as caught:
                async with running_gateway(injector):
                    pass
            assert caught.value.reason == "MODEL_NOT_FOUND"

    asyncio.run(scenario())


def test_health_checks_are_not_counted() -> None:
    async def scenario() -> None:
        async with FaultInjector() as injector, running_gateway(injector) as (gateway, channel):
            await health_of(channel, "")
            assert 'method="Check"' not in await scraped(gateway)

    asyncio.run(scenario())


def test_a_slow_sender_of_a_stream_still_gets_its_answers() -> None:
    async def scenario() -> None:
        async with FaultInjector() as injector, running_gateway(injector) as (_, channel):
            answered = asyncio.Event()

            async def items() -> AsyncIterator[messages.StreamExplainRequest]:
                yield stream_item(b"first")
                await answered.wait()
                yield stream_item(b"second")

            received = []
            async for response in service(channel).StreamExplain(items()):
                received.append(response.id)
                answered.set()
            assert received == ["first", "second"]

    asyncio.run(scenario())


def test_items_wait_for_room_where_a_single_call_may_not() -> None:
    async def scenario() -> None:
        async with (
            FaultInjector() as injector,
            running_gateway(injector, max_in_flight=1, max_queued=0, batch_chunk=1) as (_, channel),
        ):
            injector.open.clear()
            batch = asyncio.ensure_future(service(channel).BatchExplain(batch_of(*[b"image"] * 10)))
            call = service(channel).StreamExplain(stream_item(f"image {i}".encode()) for i in range(10))
            await injector.until(in_progress=1)
            error = await refusal(service(channel).Explain(messages.ExplainRequest(image=image())))
            assert error.reason == "QUEUE_FULL"
            injector.open.set()
            results = [response.result async for response in call] + list((await batch).results)
            assert [result.status.code for result in results] == [OK.code] * 20
            assert injector.peak == 1

    asyncio.run(scenario())


def test_a_cancelled_stream_leaves_no_item_that_waits() -> None:
    async def scenario() -> None:
        async with FaultInjector() as injector, running_gateway(injector, max_in_flight=1) as (gateway, channel):
            injector.open.clear()
            call = service(channel).StreamExplain(stream_item(f"image {i}".encode()) for i in range(10))
            await injector.until(in_progress=1)
            call.cancel()
            await until_counted(gateway, "CANCELLED", "StreamExplain")
            injector.open.set()
            await injector.until(in_progress=0)
            await service(channel).Predict(messages.PredictRequest(image=image()))
            assert len(injector.requests) == 2

    asyncio.run(scenario())


def test_one_call_too_many_is_refused_with_a_time_to_come_back() -> None:
    async def scenario() -> None:
        async with FaultInjector() as injector, running_gateway(injector, max_calls=2) as (_, channel):
            streams = [service(channel).StreamExplain() for _ in range(2)]
            for stream in streams:
                await stream.write(stream_item(b""))
                await stream.read()
            error = await refusal(service(channel).ListModels(messages.ListModelsRequest()))
            assert (error.code, error.reason, error.retry_after) == ("RESOURCE_EXHAUSTED", "TOO_MANY_CALLS", 1.0)
            for stream in streams:
                await stream.done_writing()
                assert await stream.read() is grpc.aio.EOF
            assert (await service(channel).ListModels(messages.ListModelsRequest())).models

    asyncio.run(scenario())


def test_one_stream_too_many_is_refused_with_a_time_to_come_back() -> None:
    async def scenario() -> None:
        async with FaultInjector() as injector, running_gateway(injector, max_bulk_calls=1) as (gateway, channel):
            injector.held[b"held"] = asyncio.Event()
            first = service(channel).StreamExplain()
            await first.write(stream_item(b"held"))
            await injector.until(in_progress=1)
            error = await refusal(service(channel).BatchExplain(batch_of(b"image")))
            assert (error.code, error.reason, error.retry_after) == ("RESOURCE_EXHAUSTED", "TOO_MANY_BULK_CALLS", 1.0)
            refused = 'pathlens_refused_total{kind="bulk",reason="TOO_MANY_BULK_CALLS"} 1.0'
            assert refused in await scraped(gateway)
            second = service(channel).StreamExplain()
            await second.write(stream_item(b"image"))
            assert (await refusal(second.read())).reason == "TOO_MANY_BULK_CALLS"
            # Lone explanations do not count.
            await service(channel).Explain(messages.ExplainRequest(image=image()))
            injector.held[b"held"].set()
            assert (await first.read()).result.status.code == OK.code
            await first.done_writing()
            assert await first.read() is grpc.aio.EOF
            await service(channel).BatchExplain(batch_of(b"image"))

    asyncio.run(scenario())


def test_silent_streams_keep_nobody_out() -> None:
    async def scenario() -> None:
        async with FaultInjector() as injector, running_gateway(injector, max_bulk_calls=1) as (_, channel):
            silent = [service(channel).StreamExplain() for _ in range(3)]
            for number, stream in enumerate(silent):
                # The first one has never sent anything, and the others have all their answers.
                if number:
                    await stream.write(stream_item(b"image"))
                    await stream.read()
            assert (await service(channel).BatchExplain(batch_of(b"image"))).results[0].status.code == OK.code
            for stream in silent:
                await stream.write(stream_item(b"again"))
                assert (await stream.read()).result.status.code == OK.code
                await stream.done_writing()

    asyncio.run(scenario())


@pytest.mark.parametrize("leaves", [False, True])
def test_streams_leave_items_unread_for_which_there_is_no_room(leaves: bool) -> None:
    async def scenario() -> None:
        async with (
            FaultInjector() as injector,
            running_gateway(injector, max_queued_bytes=3_000, max_bulk_calls=5, max_in_flight=64) as (_, channel),
        ):
            injector.open.clear()
            streams = [
                service(channel).StreamExplain([stream_item(b"%d " % sender + bytes(1_000))] * 8) for sender in range(4)
            ]
            async with asyncio.timeout(5):
                while len({request.calls[0].explain.image.encoded for _, _, request in injector.requests}) < 4:
                    await asyncio.sleep(0.005)
            # Each has one item in any case; together they have no more than one for each beyond the limit.
            await asyncio.sleep(0.3)
            assert 4 <= injector.in_progress <= 6
            error = await refusal(service(channel).BatchExplain(batch_of(bytes(1_000))))
            assert error.reason == "TOO_MANY_BULK_CALLS"
            if leaves:
                for stream in streams:
                    stream.cancel()
                await asyncio.sleep(0.2)
            injector.open.set()
            if not leaves:
                for stream in streams:
                    assert [response.result.status.code async for response in stream] == [OK.code] * 8
            # Nothing is counted any more.
            injector.open.clear()
            batch = asyncio.ensure_future(service(channel).BatchExplain(batch_of(bytes(1_000))))
            stream = service(channel).StreamExplain(stream_item(b"%d" % number) for number in range(8))
            before = len(injector.requests)
            async with asyncio.timeout(5):
                while len(injector.requests) < before + 9:
                    await asyncio.sleep(0.005)
            injector.open.set()
            assert len([response async for response in stream]) == 8
            await batch

    asyncio.run(scenario())


def test_a_batch_is_checked_item_by_item_beside_others(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        async with FaultInjector() as injector, running_gateway(injector) as (_, channel):
            turns, seen = itertools.count(), []

            async def others() -> None:
                while True:
                    next(turns)
                    await asyncio.sleep(0)

            check = validation.check_image

            def checked(*arguments: Any) -> None:
                seen.append(next(turns))
                check(*arguments)

            monkeypatch.setattr(validation, "check_image", checked)
            working = asyncio.ensure_future(others())
            await service(channel).BatchExplain(batch_of(*[b"image"] * 10))
            working.cancel()
            # In between came somebody else.
            assert len(seen) == 10
            assert all(later - earlier > 1 for earlier, later in itertools.pairwise(seen))

    asyncio.run(scenario())


def test_a_batch_too_many_is_refused_without_a_look_at_its_images(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        async with FaultInjector() as injector, running_gateway(injector, max_bulk_calls=1) as (_, channel):
            injector.open.clear()
            held = asyncio.ensure_future(service(channel).BatchExplain(batch_of(b"image")))
            await injector.until(in_progress=1)
            looks: list[object] = []
            monkeypatch.setattr(validation, "check_image", lambda *_: looks.append(1))
            error = await refusal(service(channel).BatchExplain(batch_of(b"image")))
            assert (error.reason, looks) == ("TOO_MANY_BULK_CALLS", [])
            injector.open.set()
            await held

    asyncio.run(scenario())


def test_batches_are_refused_when_they_hold_too_much_together() -> None:
    async def scenario() -> None:
        async with FaultInjector() as injector, running_gateway(injector, max_queued_bytes=1000) as (_, channel):
            injector.open.clear()
            # The only one may have any size.
            held = asyncio.ensure_future(service(channel).BatchExplain(batch_of(b"x" * 2000)))
            await injector.until(in_progress=1)
            error = await refusal(service(channel).BatchExplain(batch_of(b"image")))
            assert error.reason == "TOO_MANY_BULK_CALLS"
            injector.open.set()
            assert (await held).results[0].status.code == OK.code
            await service(channel).BatchExplain(batch_of(b"image"))

    asyncio.run(scenario())


def test_a_too_long_id_is_one_bad_item() -> None:
    async def scenario() -> None:
        async with FaultInjector() as injector, running_gateway(injector) as (_, channel):
            items = [stream_item(b"x" * 2_000), stream_item(b"image")]
            results = {response.id: response.result async for response in service(channel).StreamExplain(iter(items))}
            assert results["image"].status.code == OK.code
            (bad,) = results.keys() - {"image"}
            assert bad.startswith("xxx")
            assert len(bad) <= 80
            assert error_from_status(results[bad].status).reason == "ID_TOO_LONG"

    asyncio.run(scenario())


def test_chunks_that_are_computed_together_share_one_message() -> None:
    async def scenario() -> None:
        async with (
            FaultInjector() as injector,
            running_gateway(injector, max_message_bytes=100_000, batch_chunk=2, stream_window=4, max_in_flight=8) as (
                _,
                channel,
            ),
        ):
            injector.open.clear()
            batch = asyncio.ensure_future(service(channel).BatchExplain(batch_of(*[b"image"] * 16)))
            await injector.until(in_progress=4)
            shares = [request.max_response_bytes for _, _, request in injector.requests]
            assert shares == [25_000] * 4
            injector.open.set()
            assert all(result.status.code == OK.code for result in (await batch).results)

    asyncio.run(scenario())


def test_an_item_over_the_share_of_its_chunk_still_gets_what_the_message_has_room_for() -> None:
    async def scenario() -> None:
        async with (
            FaultInjector() as injector,
            running_gateway(injector, max_message_bytes=100_000, batch_chunk=1) as (_, channel),
        ):
            injector.keeps_limit = True
            injector.paddings = {b"large": 60_000, b"larger": 70_000}
            names = [b"small", b"large", b"small", b"larger", b"small"]
            response = await service(channel).BatchExplain(batch_of(*names))
            assert [result.status.code == OK.code for result in response.results] == [True, True, True, False, True]
            assert error_from_status(response.results[3].status).reason == "RESPONSE_TOO_LARGE"
            # What cannot fit is not computed twice.
            assert len(injector.requests) == len(names) + 1

    asyncio.run(scenario())


def test_health_follows_the_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    async def until_health(channel: grpc.aio.Channel, expected: int) -> None:
        async with asyncio.timeout(5):
            while {await health_of(channel, name) for name in ("", SERVICE)} != {expected}:
                await asyncio.sleep(0.02)

    async def scenario() -> None:
        monkeypatch.setattr("pathlens.gateway.watch._PERIOD_SECONDS", 0.05)
        async with FaultInjector() as injector, running_gateway(injector) as (_, channel):
            injector.failure = (grpc.StatusCode.INTERNAL, "Worker died.")
            await until_health(channel, NOT_SERVING)
            injector.failure = None
            await until_health(channel, SERVING)

    asyncio.run(scenario())


def test_an_interrupted_stop_still_closes_everything() -> None:
    async def scenario() -> None:
        async with FaultInjector() as injector, running_gateway(injector) as (gateway, channel):
            injector.open.clear()
            call = asyncio.ensure_future(service(channel).Predict(messages.PredictRequest(image=image())))
            await injector.until(in_progress=1)
            port = int(gateway.address.rpartition(":")[2])
            stopping = await begun_stop(gateway, 20.0)
            stopping.cancel()
            async with asyncio.timeout(5):
                await asyncio.gather(stopping, call, return_exceptions=True)
            with socket.socket() as listener:
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                listener.bind(("127.0.0.1", port))

    asyncio.run(scenario())
