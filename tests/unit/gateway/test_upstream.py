import asyncio
import time
from collections.abc import Coroutine

import grpc
import pytest

from pathlens.errors import (
    DeadlineExceededError,
    InternalError,
    InvalidRequestError,
    ResourceExhaustedError,
    UnavailableError,
)
from pathlens.gateway.upstream import Answer, Upstream

from .fault_injector import FaultInjector, predict_call, running_upstream


def ask(upstream: Upstream, remaining: float | None = None, encoded: bytes = b"image") -> Coroutine[None, None, Answer]:
    return upstream.ask("digits", "1.0", [predict_call(encoded)], remaining)


def test_a_question_reaches_the_named_model_and_version() -> None:
    async def scenario() -> None:
        async with FaultInjector() as injector, running_upstream(injector) as (upstream, _):
            answer = await ask(upstream)
            assert answer.replies[0].predict.predictions[0].label == "image"
            assert [request[:2] for request in injector.requests] == [("digits", "1.0")]

    asyncio.run(scenario())


def test_the_deadline_of_the_caller_travels_in_the_payload() -> None:
    async def scenario() -> None:
        async with FaultInjector() as injector, running_upstream(injector) as (upstream, _):
            await ask(upstream, remaining=7.0)
            deadline = injector.requests[0][2].deadline.ToNanoseconds() / 1e9
            assert deadline == pytest.approx(time.time() + 7.0, abs=1.0)

    asyncio.run(scenario())


def test_a_caller_without_a_deadline_gets_the_time_limit_of_the_gateway() -> None:
    async def scenario() -> None:
        async with FaultInjector() as injector, running_upstream(injector) as (upstream, _):
            await ask(upstream)
            deadline = injector.requests[0][2].deadline.ToNanoseconds() / 1e9
            assert deadline == pytest.approx(time.time() + 20.0, abs=1.0)

    asyncio.run(scenario())


def test_the_queue_time_leaves_out_the_time_inside_the_handler() -> None:
    async def scenario() -> None:
        async with FaultInjector() as injector, running_upstream(injector) as (upstream, _):
            injector.handler_seconds = 1000.0
            assert (await ask(upstream)).queue_seconds == 0.0
            injector.handler_seconds = 0.0
            assert (await ask(upstream)).queue_seconds > 0.0

    asyncio.run(scenario())


def test_cancelling_the_caller_does_not_cancel_the_upstream_call() -> None:
    async def scenario() -> None:
        async with FaultInjector() as injector, running_upstream(injector) as (upstream, _):
            injector.open.clear()
            asking = asyncio.create_task(ask(upstream))
            await injector.until(in_progress=1)
            asking.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asking
            injector.open.set()
            await upstream.drain(5.0)
            assert (injector.cancelled, injector.finished) == (0, 1)

    asyncio.run(scenario())


def test_a_deadline_does_not_cancel_the_upstream_call() -> None:
    async def scenario() -> None:
        async with FaultInjector() as injector, running_upstream(injector) as (upstream, _):
            injector.open.clear()
            with pytest.raises(DeadlineExceededError):
                await ask(upstream, remaining=0.1)
            injector.open.set()
            await upstream.drain(5.0)
            assert (injector.cancelled, injector.finished) == (0, 1)

    asyncio.run(scenario())


def test_an_abandoned_call_counts_as_in_flight_until_it_ends() -> None:
    async def scenario() -> None:
        async with FaultInjector() as injector, running_upstream(injector) as (upstream, metrics):
            injector.open.clear()
            with pytest.raises(DeadlineExceededError):
                await ask(upstream, remaining=0.1)
            assert upstream.in_flight == 1
            assert metrics.registry.get_sample_value("pathlens_upstream_inflight") == 1
            assert metrics.registry.get_sample_value("pathlens_upstream_abandoned_total") == 1
            injector.open.set()
            assert await upstream.drain(5.0) == 0
            assert metrics.registry.get_sample_value("pathlens_upstream_inflight") == 0

    asyncio.run(scenario())


def test_an_abandoned_call_takes_the_place_of_a_new_one() -> None:
    async def scenario() -> None:
        async with FaultInjector() as injector, running_upstream(injector, max_in_flight=1) as (upstream, _):
            injector.open.clear()
            with pytest.raises(DeadlineExceededError):
                await ask(upstream, remaining=0.1)
            with pytest.raises(ResourceExhaustedError):
                await ask(upstream)

    asyncio.run(scenario())


def test_a_failing_abandoned_call_leaves_no_trace() -> None:
    async def scenario() -> None:
        lost: list[dict[str, object]] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: lost.append(context))
        async with FaultInjector() as injector, running_upstream(injector) as (upstream, _):
            injector.open.clear()
            injector.prediction = b"\xff"
            with pytest.raises(DeadlineExceededError):
                await ask(upstream, remaining=0.1)
            injector.open.set()
            await upstream.drain(5.0)
        assert lost == []

    asyncio.run(scenario())


def test_a_full_queue_refuses_at_once_and_tells_when_to_come_back() -> None:
    async def scenario() -> None:
        async with FaultInjector() as injector, running_upstream(injector, max_in_flight=2) as (upstream, _):
            injector.open.clear()
            waiting = [asyncio.create_task(ask(upstream)) for _ in range(2)]
            await injector.until(in_progress=2)
            started = time.monotonic()
            with pytest.raises(ResourceExhaustedError) as caught:
                await ask(upstream)
            assert time.monotonic() - started < 0.1
            assert (caught.value.reason, caught.value.retry_after) == ("QUEUE_FULL", 1.0)
            injector.open.set()
            await asyncio.gather(*waiting)

    asyncio.run(scenario())


def test_a_deadline_in_the_past_asks_nothing() -> None:
    async def scenario() -> None:
        async with FaultInjector() as injector, running_upstream(injector) as (upstream, _):
            with pytest.raises(DeadlineExceededError):
                await ask(upstream, remaining=0.0)
            assert injector.requests == []

    asyncio.run(scenario())


def test_the_own_time_limit_reports_a_model_that_does_not_answer() -> None:
    async def scenario() -> None:
        async with (
            FaultInjector() as injector,
            running_upstream(injector, upstream_timeout_seconds=0.2) as (upstream, _),
        ):
            injector.open.clear()
            with pytest.raises(UnavailableError) as caught:
                await ask(upstream)
            assert caught.value.reason == "UPSTREAM_TIMEOUT"

    asyncio.run(scenario())


def test_a_failure_of_torchserve_is_translated() -> None:
    async def scenario() -> None:
        async with FaultInjector() as injector, running_upstream(injector) as (upstream, _):
            injector.failure = (grpc.StatusCode.INTERNAL, "Worker died.")
            with pytest.raises(UnavailableError) as caught:
                await ask(upstream)
            assert caught.value.reason == "WORKER_RESTARTING"

    asyncio.run(scenario())


def test_a_question_over_the_message_limit_is_not_sent() -> None:
    async def scenario() -> None:
        async with FaultInjector() as injector, running_upstream(injector, max_message_bytes=1000) as (upstream, _):
            with pytest.raises(InvalidRequestError) as caught:
                await ask(upstream, encoded=bytes(1000))
            assert caught.value.reason == "MESSAGE_TOO_LARGE"
            assert injector.requests == []

    asyncio.run(scenario())


@pytest.mark.parametrize("prediction", [b"\xff", b""])
def test_an_answer_that_is_not_ours_is_an_internal_error(prediction: bytes) -> None:
    async def scenario() -> None:
        async with FaultInjector() as injector, running_upstream(injector) as (upstream, _):
            injector.prediction = prediction
            with pytest.raises(InternalError):
                await ask(upstream)

    asyncio.run(scenario())


def test_bytes_in_flight_are_bounded() -> None:
    async def scenario() -> None:
        async with FaultInjector() as injector, running_upstream(injector, max_in_flight_bytes=50_000) as (upstream, _):
            injector.open.clear()
            waiting = [asyncio.create_task(ask(upstream, encoded=bytes(20_000))) for _ in range(2)]
            await injector.until(in_progress=2)
            with pytest.raises(ResourceExhaustedError) as caught:
                await ask(upstream, encoded=bytes(20_000))
            assert (caught.value.reason, caught.value.retry_after) == ("QUEUE_FULL", 1.0)
            injector.open.set()
            await asyncio.gather(*waiting)
            await ask(upstream, encoded=bytes(20_000))

    asyncio.run(scenario())


def test_a_question_over_the_bytes_in_flight_is_sent_when_it_is_the_only_one() -> None:
    async def scenario() -> None:
        async with FaultInjector() as injector, running_upstream(injector, max_in_flight_bytes=1000) as (upstream, _):
            await ask(upstream, encoded=bytes(20_000))

    asyncio.run(scenario())


def test_who_may_wait_gets_the_next_room() -> None:
    async def scenario() -> None:
        async with FaultInjector() as injector, running_upstream(injector, max_in_flight=1) as (upstream, _):
            injector.open.clear()
            calls = [predict_call()]
            asking = [asyncio.create_task(upstream.ask("digits", "", calls, 5.0, wait=True)) for _ in range(3)]
            await injector.until(in_progress=1)
            injector.open.set()
            await asyncio.gather(*asking)
            assert (injector.peak, injector.finished) == (1, 3)

    asyncio.run(scenario())


def test_the_wait_for_room_ends_with_the_deadline() -> None:
    async def scenario() -> None:
        async with FaultInjector() as injector, running_upstream(injector, max_in_flight=1) as (upstream, _):
            injector.open.clear()
            first = asyncio.create_task(ask(upstream))
            await injector.until(in_progress=1)
            with pytest.raises(DeadlineExceededError):
                await upstream.ask("digits", "", [predict_call()], 0.1, wait=True)
            injector.open.set()
            await first
            await ask(upstream)
            assert len(injector.requests) == 2

    asyncio.run(scenario())


def test_the_own_time_limit_does_not_cancel_the_upstream_call() -> None:
    async def scenario() -> None:
        async with (
            FaultInjector() as injector,
            running_upstream(injector, upstream_timeout_seconds=0.2) as (upstream, _),
        ):
            injector.open.clear()
            with pytest.raises(UnavailableError):
                await ask(upstream)
            await asyncio.sleep(0.3)
            assert upstream.in_flight == 1
            injector.open.set()
            await upstream.drain(5.0)
            assert (injector.cancelled, injector.finished) == (0, 1)

    asyncio.run(scenario())


def test_the_largest_answer_travels_in_the_payload() -> None:
    async def scenario() -> None:
        async with FaultInjector() as injector, running_upstream(injector) as (upstream, _):
            await ask(upstream)
            await upstream.ask("digits", "", [predict_call()], None, max_response_bytes=1234)
            assert [request.max_response_bytes for _, _, request in injector.requests] == [64 * 2**20, 1234]

    asyncio.run(scenario())
