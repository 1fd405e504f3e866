import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from pathlens.client import AsyncClient, Client, Connection
from pathlens.errors import (
    DeadlineExceededError,
    InvalidRequestError,
    NotFoundError,
    ResourceExhaustedError,
    UnavailableError,
)
from pathlens.explanation import ExplanationOptions
from pathlens.wire.v1 import explanation_service_pb2 as pb

from .both_clients import Kind, both_clients, call
from .scripted_service import ScriptedService, answer, serving

LARGE, MANY = bytes(range(97, 123)) * 10_000, 400
"""400 images of 260 kB: far more than both ends of a connection hold."""


class Counted:
    """A sequence of images that counts how many were asked for."""

    def __init__(self, count: int = MANY) -> None:
        self._count = count
        self.taken = 0

    def __iter__(self) -> Iterator[bytes]:
        for _ in range(self._count):
            self.taken += 1
            yield LARGE


class AsyncCounted(Counted):
    """The same, asynchronous."""

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for image in Counted.__iter__(self):
            yield image

    __iter__ = None  # type: ignore[assignment]


def padded(requests: Iterator[pb.StreamExplainRequest]) -> Iterator[pb.StreamExplainResponse]:
    """Answer each image with a heatmap as large."""
    explanation = pb.Explanation(
        source=pb.PATHWAY_SOURCE_TRANSFERRED,
        granularity=pb.GRANULARITY_CHANNEL,
        ablation=pb.ABLATION_ZERO,
        heatmap_png=LARGE,
    )
    result = pb.ExplainResult(response=pb.ExplainResponse(explanations=[explanation]))
    return (pb.StreamExplainResponse(id=request.id, result=result) for request in requests)


def settled(count: Callable[[], int]) -> int:
    """Wait until a number has not grown for a while."""
    last, since = count(), time.monotonic()
    while time.monotonic() - since < 0.5:
        time.sleep(0.05)
        if count() != last:
            last, since = count(), time.monotonic()
    return last


sources = pytest.mark.parametrize(
    ("kind", "images"),
    [(Client, Counted), (AsyncClient, Counted), (AsyncClient, AsyncCounted)],
    ids=["Client", "AsyncClient", "AsyncClient-asynchronous"],
)


@sources
def test_images_are_asked_for_no_faster_than_the_service_reads(kind: Kind, images: type[Counted]) -> None:
    reading = threading.Event()

    def slow(requests: Iterator[pb.StreamExplainRequest]) -> Iterator[pb.StreamExplainResponse]:
        yield answer(next(requests))
        reading.wait(30)
        yield from map(answer, requests)

    service, source = ScriptedService(), images()
    service.stream = slow
    with serving(service):
        answers: list[Any] = []
        thread = threading.Thread(target=lambda: answers.extend(call(kind, service.address, "stream_explain", source)))
        thread.start()
        held_back = settled(lambda: source.taken)
        reading.set()
        thread.join(60)
    assert 2 <= held_back < MANY / 4
    assert sorted(position for position, _ in answers) == list(range(MANY))


def test_images_are_asked_for_no_faster_than_the_caller_takes_answers() -> None:
    service, source = ScriptedService(), Counted()
    service.stream = padded
    with serving(service), Client(service.address) as client:
        stream = client.stream_explain(source)
        next(stream)
        held_back = settled(lambda: source.taken)
        rest = sum(1 for _ in stream)
    assert held_back < MANY / 2
    assert rest == MANY - 1


def test_images_are_asked_for_no_faster_than_a_task_takes_answers() -> None:
    service, source = ScriptedService(), AsyncCounted()
    service.stream = padded

    async def scenario() -> tuple[int, int]:
        async with AsyncClient(service.address) as client, aclosing(client.stream_explain(source)) as stream:
            await anext(stream)
            held_back = await asyncio.to_thread(settled, lambda: source.taken)
            return held_back, sum([1 async for _ in stream])

    with serving(service):
        held_back, rest = asyncio.run(scenario())
    assert held_back < MANY / 2
    assert rest == MANY - 1


@both_clients
def test_a_stream_that_breaks_is_not_repeated(kind: Kind) -> None:
    failing = UnavailableError("Restarting.", retry_after=0.01)
    with serving(ScriptedService(failing)) as service:
        with pytest.raises(UnavailableError):
            call(kind, service.address, "stream_explain", [b"one"])
        assert len(service.seen) == 1


def test_the_error_that_ends_a_stream_is_the_services_own_even_while_images_are_sent() -> None:
    async def scenario(address: str) -> None:
        async with AsyncClient(address) as client:
            for position in range(100):
                with pytest.raises(NotFoundError, match="Nothing there"):
                    async for _ in client.stream_explain([b"image"] * (position % 7)):
                        pass

    # grpc.aio loses the service's status in a third of these streams.
    with serving(ScriptedService(*[NotFoundError("Nothing there.")] * 100)) as service:
        asyncio.run(scenario(service.address))


def test_a_stream_that_the_service_ends_well_while_images_are_sent_ends_well() -> None:
    async def scenario(address: str) -> None:
        async with AsyncClient(address) as client:
            for position in range(100):
                assert [answer async for answer in client.stream_explain([b"image"] * (position % 7))] == []

    service = ScriptedService()
    service.stream = lambda requests: iter(())
    with serving(service):
        asyncio.run(scenario(service.address))


@both_clients
def test_answers_come_as_they_are_ready_with_the_positions_of_their_images(kind: Kind) -> None:
    service = ScriptedService()
    service.stream = lambda requests: iter([answer(item) for item in requests][::-1])
    with serving(service):
        answers = call(kind, service.address, "stream_explain", [b"zero", b"one", b"two"])
    assert [(position, got.predictions[0].label) for position, got in answers] == [(2, "two"), (1, "one"), (0, "zero")]


@both_clients
def test_an_image_that_cannot_be_read_is_one_bad_image(kind: Kind, caplog: pytest.LogCaptureFixture) -> None:
    with serving(ScriptedService()) as service:
        images = [b"one", Path("no-such-image.png"), b"three"]
        answers = dict(call(kind, service.address, "stream_explain", images, request_id="mine"))
    assert sorted(answers) == [0, 1, 2]
    assert [answers[position].predictions[0].label for position in (0, 2)] == ["one", "three"]
    assert isinstance(answers[1], InvalidRequestError)
    assert (answers[1].reason, answers[1].metadata["request_id"]) == ("IMAGE_UNREADABLE", "mine")
    assert "no-such-image.png" in answers[1].message
    assert isinstance(answers[1].__cause__, FileNotFoundError)
    assert caplog.text == ""


@both_clients
def test_a_stream_of_which_no_image_can_be_read_has_an_answer_to_each(kind: Kind) -> None:
    with serving(ScriptedService()) as service:
        answers = call(kind, service.address, "stream_explain", [Path("no-such-image.png")] * 3)
    assert [(position, answer.reason) for position, answer in answers] == [(n, "IMAGE_UNREADABLE") for n in range(3)]


@both_clients
def test_an_error_of_the_callers_own_images_comes_back_as_it_is(kind: Kind) -> None:
    class OwnError(Exception):
        pass

    def images() -> Iterator[bytes]:
        yield b"one"
        raise OwnError

    with serving(ScriptedService()) as service, pytest.raises(OwnError):
        call(kind, service.address, "stream_explain", images())


@both_clients
def test_an_image_that_no_message_can_hold_is_one_bad_image(kind: Kind) -> None:
    with serving(ScriptedService()) as service:
        answers = dict(call(kind, service.address, "stream_explain", [b"one", np.zeros((3, 4, 4)), b"three"]))
        assert len(service.streamed) == 2
    assert sorted(answers) == [0, 1, 2]
    assert (answers[1].reason, "float64" in answers[1].message) == ("TENSOR_INVALID", True)


@both_clients
def test_an_image_over_the_limit_of_a_message_ends_the_stream(kind: Kind) -> None:
    with serving(ScriptedService()) as service, pytest.raises(ResourceExhaustedError) as failure:
        call(kind, Connection(service.address, max_message_bytes=1000), "stream_explain", [b"one", LARGE, b"three"])
    assert failure.value.reason == "MESSAGE_TOO_LARGE"


def test_an_image_over_the_limit_ends_the_stream_of_a_task_with_the_same_error_every_time() -> None:
    async def scenario(address: str) -> None:
        async with AsyncClient(Connection(address, max_message_bytes=1000)) as client:
            for _ in range(500):
                with pytest.raises(ResourceExhaustedError, match="too large"):
                    async for _ in client.stream_explain([b"one", LARGE, b"three"]):
                        pass

    # grpc.aio puts its own error before the status, after it, or, once in two hundred times, long before it.
    with serving(ScriptedService()) as service:
        asyncio.run(scenario(service.address))


@both_clients
def test_no_images_have_no_answers(kind: Kind) -> None:
    with serving(ScriptedService()) as service:
        assert call(kind, service.address, "stream_explain", []) == []


@both_clients
def test_options_that_cannot_be_sent_are_refused_before_the_stream_begins(kind: Kind) -> None:
    with serving(ScriptedService()) as service:
        with pytest.raises(InvalidRequestError):
            call(kind, service.address, "stream_explain", [b"one"], ExplanationOptions(top_neurons=-1))
        assert service.seen == []


def test_who_leaves_a_stream_early_ends_it() -> None:
    service, source = ScriptedService(), Counted(100_000)
    with serving(service), Client(service.address) as client:
        stream = client.stream_explain(source)
        next(stream)
        stream.close()  # type: ignore[attr-defined]
        assert service.ended.wait(10)
    assert source.taken < 100_000


def test_a_task_that_leaves_a_stream_early_ends_it_and_what_fed_it() -> None:
    service, source = ScriptedService(), AsyncCounted(100_000)

    async def scenario() -> set[asyncio.Task[Any]]:
        async with AsyncClient(service.address) as client:
            async with aclosing(client.stream_explain(source)) as stream:
                await anext(stream)
            assert await asyncio.to_thread(service.ended.wait, 10)
            return {task for task in asyncio.all_tasks() if "write" in repr(task)}

    with serving(service):
        assert asyncio.run(scenario()) == set()
    assert source.taken < 100_000


def test_a_stream_that_fails_does_not_wait_for_the_next_image() -> None:
    async def never() -> AsyncIterator[bytes]:
        yield b"one"
        await asyncio.Event().wait()

    async def scenario(address: str) -> None:
        async with AsyncClient(address) as client, asyncio.timeout(10):
            async for _ in client.stream_explain(never()):
                pass

    with serving(ScriptedService(UnavailableError("Gone."))) as service, pytest.raises(UnavailableError):
        asyncio.run(scenario(service.address))


def test_a_stream_that_the_service_ends_early_does_not_wait_for_the_next_image() -> None:
    async def never() -> AsyncIterator[bytes]:
        yield b"one"
        await asyncio.Event().wait()

    async def scenario(address: str) -> int:
        async with AsyncClient(address) as client, asyncio.timeout(10):
            return len([position async for position, _ in client.stream_explain(never())])

    service = ScriptedService()
    service.stream = lambda requests: iter([answer(next(requests))])
    with serving(service):
        assert asyncio.run(scenario(service.address)) == 1


@both_clients
def test_a_stream_with_a_timeout_ends_with_it(kind: Kind) -> None:
    held = ScriptedService(threading.Event())
    with serving(held) as service, pytest.raises(DeadlineExceededError, match=r"0\.3 s"):
        call(kind, service.address, "stream_explain", [b"one"], timeout=0.3)


@both_clients
def test_a_bare_status_ends_a_stream_with_an_error_of_ours(kind: Kind) -> None:
    with serving(ScriptedService(grpc.StatusCode.UNAVAILABLE)) as service, pytest.raises(UnavailableError) as failure:
        call(kind, service.address, "stream_explain", [b"one"])
    assert "said by the transport" in failure.value.message
