"""Streams whose reader or sender takes its time, against a real gateway."""

import asyncio
import io
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import grpc.aio
import psutil
import pytest
from PIL import Image

from pathlens.gateway.server import Gateway
from pathlens.wire.status import error_from_status
from pathlens.wire.v1 import explanation_service_pb2 as messages
from pathlens.wire.v1 import explanation_service_pb2_grpc

from .fault_injector import UNDECODABLE, FaultInjector, running_gateway

WINDOW = 4
MANY = 1000
# As large as the map of a photograph.
LARGE = 600_000
# Answers that gRPC takes from the gateway before a reader has read any, the request that is being read included.
BUFFERED = 8


def item(number: int) -> messages.StreamExplainRequest:
    request = messages.ExplainRequest(image=messages.Image(encoded=f"image {number}".encode()))
    return messages.StreamExplainRequest(id=str(number), request=request)


def stub(channel: grpc.aio.Channel) -> Any:
    return explanation_service_pb2_grpc.ExplanationServiceStub(channel)


async def predict(channel: grpc.aio.Channel) -> None:
    await stub(channel).Predict(messages.PredictRequest(image=messages.Image(encoded=b"another")), timeout=5.0)


async def stuck(injector: FaultInjector) -> int:
    """Wait until the gateway asks no more, and return how often it has asked."""
    asked = -1
    while asked < len(injector.requests) or not asked:
        asked = len(injector.requests)
        await asyncio.sleep(0.15)
    return asked


@asynccontextmanager
async def unread_stream(**limits: Any) -> AsyncIterator[tuple[FaultInjector, Gateway, grpc.aio.Channel, Any]]:
    """Run a gateway with a stream of many requests of which nobody reads the large answers."""
    async with (
        FaultInjector() as injector,
        running_gateway(injector, stream_window=WINDOW, **limits) as (gateway, channel),
    ):
        injector.padding = LARGE
        call = stub(channel).StreamExplain(item(number) for number in range(MANY))
        yield injector, gateway, channel, call


def test_a_reader_that_reads_nothing_stops_the_gateway_from_asking() -> None:
    async def scenario() -> None:
        async with unread_stream() as (injector, _, _, _):
            assert WINDOW <= await stuck(injector) <= WINDOW + BUFFERED

    asyncio.run(scenario())


def test_answers_that_wait_for_their_reader_hold_no_place_of_torchserve() -> None:
    async def scenario() -> None:
        async with unread_stream(max_in_flight=1, max_queued=0) as (injector, gateway, channel, _):
            await stuck(injector)
            await predict(channel)
            async with grpc.aio.insecure_channel(gateway.address) as other:
                await predict(other)

    asyncio.run(scenario())


def test_a_reader_that_goes_on_gets_every_answer_once_under_its_own_id() -> None:
    async def scenario() -> None:
        async with unread_stream() as (injector, _, _, call):
            await stuck(injector)
            injector.padding = 0
            answers = [(one.id, one.result.response.predictions[0].label) async for one in call]
            assert sorted(answers) == sorted((str(number), f"image {number}") for number in range(MANY))

    asyncio.run(scenario())


def test_readers_that_leave_take_tasks_places_and_memory_with_them() -> None:
    async def scenario() -> None:
        async with FaultInjector() as injector, running_gateway(injector, max_in_flight=4) as (gateway, channel):
            injector.padding = 4_000_000
            memory = []
            for _ in range(17):
                injector.requests.clear()
                call = stub(channel).StreamExplain(item(number) for number in range(20))
                await stuck(injector)
                call.cancel()
                await asyncio.gather(call.read(), return_exceptions=True)
                memory.append(psutil.Process().memory_info().rss)
            # Twelve times the eight answers of a window would be 384 MB.
            assert memory[-1] - memory[4] < 200e6
            names = {task.get_coro().__qualname__ for task in asyncio.all_tasks()}  # type: ignore[union-attr]
            assert not {"_run", "_next"} & names
            state = gateway._running
            assert state.backend.upstream.in_flight == 0
            await predict(channel)

    asyncio.run(scenario())


def test_a_place_of_a_reader_who_left_is_free_when_torchserve_has_answered_and_not_before() -> None:
    async def scenario() -> None:
        async with FaultInjector() as injector, running_gateway(injector, max_in_flight=1) as (_, channel):
            injector.open.clear()
            call = stub(channel).StreamExplain(item(number) for number in range(20))
            await injector.until(in_progress=1)
            call.cancel()
            waiting = asyncio.ensure_future(predict(channel))
            await asyncio.sleep(0.3)
            assert len(injector.requests) == 1
            injector.open.set()
            await waiting
            await asyncio.sleep(0.2)
            assert (len(injector.requests), injector.peak, injector.cancelled) == (2, 1, 0)

    asyncio.run(scenario())


@pytest.mark.parametrize("answering", [True, False])
def test_a_reader_stuck_for_good_holds_a_drain_up_no_longer_than_its_time(answering: bool) -> None:
    async def scenario() -> None:
        async with unread_stream(max_in_flight=8) as (injector, gateway, _, call):
            if answering:
                await stuck(injector)
            else:
                injector.open.clear()
                await injector.until(in_progress=WINDOW)
            started = time.monotonic()
            await gateway.stop(1.0)
            assert 1.0 <= time.monotonic() - started < 3.0
            with pytest.raises(grpc.aio.AioRpcError):
                async for _ in call:
                    pass

    asyncio.run(scenario())


def test_a_sender_that_sends_nothing_holds_no_place() -> None:
    async def scenario() -> None:
        async with (
            FaultInjector() as injector,
            running_gateway(injector, max_in_flight=1, max_queued=0) as (_, channel),
        ):
            sending = asyncio.Event()

            async def items() -> AsyncIterator[messages.StreamExplainRequest]:
                yield item(1)
                await sending.wait()
                yield item(2)

            call = stub(channel).StreamExplain(items())
            assert (await call.read()).id == "1"
            for _ in range(5):
                await predict(channel)
            sending.set()
            assert (await call.read()).id == "2"

    asyncio.run(scenario())


def test_bad_items_among_good_ones_have_their_own_errors() -> None:
    too_large = io.BytesIO()
    Image.new("L", (101, 100)).save(too_large, "PNG")
    long_id = "x" * 2000
    bad = {
        "missing": (messages.ExplainRequest(), "IMAGE_MISSING"),
        "empty": (messages.ExplainRequest(image=messages.Image(encoded=b"")), "IMAGE_EMPTY"),
        "malformed": (messages.ExplainRequest(image=messages.Image(tensor=messages.Tensor())), "TENSOR_INVALID"),
        "undecodable": (messages.ExplainRequest(image=messages.Image(encoded=UNDECODABLE)), "IMAGE_UNDECODABLE"),
        "too large": (messages.ExplainRequest(image=messages.Image(encoded=too_large.getvalue())), "IMAGE_TOO_LARGE"),
        "too complex": (
            messages.ExplainRequest(image=messages.Image(encoded=b"\xff\xd8" + b"\xff" * 5000)),
            "IMAGE_TOO_COMPLEX",
        ),
        "class": (
            messages.ExplainRequest(
                image=messages.Image(encoded=b"image"),
                options=messages.ExplanationOptions(targets=messages.Targets(labels=["no such class"])),
            ),
            "CLASS_NOT_FOUND",
        ),
        "model": (messages.ExplainRequest(model=messages.ModelReference(name="none")), "MODEL_NOT_FOUND"),
        long_id: (item(0).request, "ID_TOO_LONG"),
    }

    def items() -> Iterator[messages.StreamExplainRequest]:
        for number, (name, (request, _)) in enumerate(bad.items()):
            yield item(number)
            yield messages.StreamExplainRequest(id=name, request=request)
        yield item(len(bad))

    async def scenario() -> None:
        async with FaultInjector() as injector, running_gateway(injector, max_image_pixels=10_000) as (_, channel):
            answers = [one async for one in stub(channel).StreamExplain(items())]
            reasons = {one.id: error_from_status(one.result.status).reason for one in answers if one.result.status.code}
            good = sorted(one.id for one in answers if not one.result.status.code)
            assert len(answers) == 2 * len(bad) + 1
            assert good == [str(number) for number in range(len(bad) + 1)]
            (shortened,) = (name for name in reasons if name.startswith("xxx"))
            reasons[long_id] = reasons.pop(shortened)
            assert reasons == {name: reason for name, (_, reason) in bad.items()}

    asyncio.run(scenario())
