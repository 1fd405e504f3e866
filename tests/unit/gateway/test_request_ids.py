"""The id of a call: whose it is, how far it goes, and how it comes back."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import grpc.aio
import pytest

from pathlens.client import AsyncClient
from pathlens.errors import PathlensError
from pathlens.wire.request_id import REQUEST_ID_KEY, is_request_id
from pathlens.wire.v1 import explanation_service_pb2 as messages

from .fault_injector import FaultInjector, running_gateway
from .test_gateway import batch_of, image, service, stream_item

PREDICT = messages.PredictRequest(image=image())
NOWHERE = messages.PredictRequest(model=messages.ModelReference(name="nowhere"), image=image())
Scenario = Callable[[FaultInjector, grpc.aio.Channel], Awaitable[None]]


def run(scenario: Scenario) -> None:
    async def running() -> None:
        async with FaultInjector() as injector, running_gateway(injector) as (_, channel):
            await scenario(injector, channel)

    asyncio.run(running())


def named(request_id: str) -> tuple[tuple[str, str], ...]:
    return ((REQUEST_ID_KEY, request_id),)


def id_in(metadata: Any) -> list[str]:
    return [value for key, value in metadata or () if key == REQUEST_ID_KEY]


@pytest.mark.parametrize("request_id", ["a", "order-17.retry_2", "x" * 128])
def test_the_callers_id_goes_to_the_handler_and_comes_back(request_id: str) -> None:
    async def scenario(injector: FaultInjector, channel: grpc.aio.Channel) -> None:
        call = service(channel).Predict(PREDICT, metadata=named(request_id))
        await call
        assert id_in(await call.trailing_metadata()) == [request_id]
        ((_, _, request),) = injector.requests
        (question,) = request.calls
        assert (question.request_id, question.item) == (request_id, 0)

    run(scenario)


@pytest.mark.parametrize("sent", [(), named(""), named("two words"), named("x" * 129), named("a/b")])
def test_a_call_without_an_id_of_the_alphabet_gets_a_new_one(sent: Any) -> None:
    async def scenario(injector: FaultInjector, channel: grpc.aio.Channel) -> None:
        call = service(channel).Predict(PREDICT, metadata=sent)
        await call
        (returned,) = id_in(await call.trailing_metadata())
        assert len(returned) == 32
        assert is_request_id(returned)
        assert injector.requests[0][2].calls[0].request_id == returned

    run(scenario)


def test_an_error_brings_the_id_with_its_status() -> None:
    async def scenario(_injector: FaultInjector, channel: grpc.aio.Channel) -> None:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await service(channel).Predict(NOWHERE, metadata=named("seven"))
        assert id_in(caught.value.trailing_metadata()) == ["seven"]
        # Else gRPC's own retries could not repeat the call.
        assert id_in(caught.value.initial_metadata()) == []

    run(scenario)


def test_a_stream_has_one_id_and_numbers_for_its_items() -> None:
    async def scenario(injector: FaultInjector, channel: grpc.aio.Channel) -> None:
        contents = [b"one", b"two\n[METRICS]", b"three"]
        call = service(channel).StreamExplain(iter([stream_item(one) for one in contents]), metadata=named("seven"))
        assert len([response async for response in call]) == 3
        assert id_in(await call.trailing_metadata()) == ["seven"]
        asked = {question.item: question for _, _, request in injector.requests for question in request.calls}
        assert {question.request_id for question in asked.values()} == {"seven"}
        assert [asked[number].explain.image.encoded for number in (1, 2, 3)] == contents

    run(scenario)


def test_a_batch_has_one_id_for_all_its_chunks() -> None:
    async def scenario(injector: FaultInjector, channel: grpc.aio.Channel) -> None:
        await service(channel).BatchExplain(batch_of(*[b"one"] * 9), metadata=named("seven"))
        questions = [question for _, _, request in injector.requests for question in request.calls]
        assert [(question.request_id, question.item) for question in questions] == [("seven", 0)] * 9

    run(scenario)


def test_calls_at_the_same_time_keep_their_ids_apart() -> None:
    async def scenario(injector: FaultInjector, channel: grpc.aio.Channel) -> None:
        ids = [f"call-{number}" for number in range(3)]
        injector.open.clear()
        calls = [
            service(channel).Predict(messages.PredictRequest(image=image(one.encode())), metadata=named(one))
            for one in ids
        ]
        await injector.until(len(ids))
        injector.open.set()
        for call, one in zip(calls, ids, strict=True):
            await call
            assert id_in(await call.trailing_metadata()) == [one]
        questions = [question for _, _, request in injector.requests for question in request.calls]
        assert all(one.request_id == one.predict.image.encoded.decode() for one in questions)

    run(scenario)


def test_the_gateways_own_questions_have_no_id() -> None:
    async def scenario() -> None:
        async with FaultInjector() as injector:
            asked: list[str] = []
            answer = injector._response

            def noted(request: Any, worker_request: Any) -> Any:
                asked.append(worker_request.calls[0].request_id)
                return answer(request, worker_request)

            injector._response = noted  # type: ignore[method-assign]
            async with running_gateway(injector):
                assert asked == [""]

    asyncio.run(scenario())


def test_an_error_of_the_client_has_the_id_that_the_gateway_knows() -> None:
    async def scenario() -> None:
        async with (
            FaultInjector() as injector,
            running_gateway(injector) as (gateway, _),
            AsyncClient(gateway.address, "nowhere") as client,
        ):
            # What a proxy on the way would do.
            client._invocation = renamed(client._invocation)  # type: ignore[method-assign]
            with pytest.raises(PathlensError) as caught:
                await client.predict(b"image", request_id="seven")
        assert caught.value.metadata["request_id"] == "renamed"

    def renamed(make: Any) -> Any:
        def made(*arguments: Any) -> Any:
            invocation = make(*arguments)
            attempt = invocation.attempt
            invocation.attempt = lambda: attempt() | {"metadata": named("renamed")}
            return invocation

        return made

    asyncio.run(scenario())
