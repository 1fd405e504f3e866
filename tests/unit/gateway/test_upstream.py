import asyncio
import time
from collections.abc import Coroutine
from typing import Any

import grpc
import pytest

from pathlens.errors import (
    DeadlineExceededError,
    InternalError,
    InvalidRequestError,
    NotFoundError,
    ResourceExhaustedError,
    UnavailableError,
)
from pathlens.gateway.answer import Answer
from pathlens.gateway.metrics import Metrics
from pathlens.gateway.upstream import Upstream
from pathlens.model_version import ModelVersion
from pathlens.wire.internal.v1 import worker_pb2
from pathlens.wire.v1 import explanation_service_pb2 as messages

from .fault_injector import UNDECODABLE, FaultInjector, predict_call, running_upstream, until_queued


def ask(upstream: Upstream, remaining: float | None = None, encoded: bytes = b"image") -> Coroutine[None, None, Answer]:
    return upstream.ask("digits", "1.0", [predict_call(encoded)], remaining)


def value(metrics: Metrics, name: str, **labels: str) -> float | None:
    return metrics.registry.get_sample_value(name, labels)


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
            deadline = injector.requests[0][2].calls[0].deadline.ToNanoseconds() / 1e9
            assert deadline == pytest.approx(time.time() + 7.0, abs=1.0)

    asyncio.run(scenario())


def test_a_caller_without_a_deadline_gets_the_time_limit_of_the_gateway() -> None:
    async def scenario() -> None:
        async with FaultInjector() as injector, running_upstream(injector) as (upstream, _):
            await ask(upstream)
            deadline = injector.requests[0][2].calls[0].deadline.ToNanoseconds() / 1e9
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
            assert metrics.registry.get_sample_value("pathlens_upstream_inflight", {"model": "digits"}) == 1
            assert metrics.registry.get_sample_value("pathlens_upstream_abandoned_total") == 1
            injector.open.set()
            assert await upstream.drain(5.0) == 0
            assert metrics.registry.get_sample_value("pathlens_upstream_inflight", {"model": "digits"}) == 0

    asyncio.run(scenario())


def test_an_abandoned_call_takes_the_place_of_a_new_one() -> None:
    async def scenario() -> None:
        limits: dict[str, Any] = {"max_in_flight": 1, "max_queued": 0}
        async with FaultInjector() as injector, running_upstream(injector, **limits) as (upstream, _):
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
        limits: dict[str, Any] = {"max_in_flight": 2, "max_queued": 1}
        async with FaultInjector() as injector, running_upstream(injector, **limits) as (upstream, metrics):
            injector.open.clear()
            waiting = [asyncio.create_task(ask(upstream)) for _ in range(3)]
            await injector.until(in_progress=2)
            assert value(metrics, "pathlens_queued", kind="prediction") == 1
            with pytest.raises(ResourceExhaustedError) as caught:
                await ask(upstream)
            assert (caught.value.reason, caught.value.retry_after) == ("QUEUE_FULL", 1.0)
            assert value(metrics, "pathlens_refused_total", kind="prediction", reason="QUEUE_FULL") == 1
            injector.open.set()
            await asyncio.gather(*waiting)
            assert value(metrics, "pathlens_queued", kind="prediction") == 0

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
            assert int(caught.value.metadata["bytes"]) > int(caught.value.metadata["limit"]) == 1000
            assert all(caught.value.metadata[value] in caught.value.message for value in ("bytes", "limit"))
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
        limits: dict[str, Any] = {"max_in_flight_bytes": 50_000, "max_queued": 0}
        async with FaultInjector() as injector, running_upstream(injector, **limits) as (upstream, _):
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


def test_who_waits_gets_the_next_room() -> None:
    async def scenario() -> None:
        async with FaultInjector() as injector, running_upstream(injector, max_in_flight=1) as (upstream, _):
            injector.open.clear()
            calls = [predict_call()]
            asking = [asyncio.create_task(upstream.ask("digits", "", calls, 5.0)) for _ in range(3)]
            await injector.until(in_progress=1)
            injector.open.set()
            await asyncio.gather(*asking)
            assert (injector.peak, injector.finished) == (1, 3)

    asyncio.run(scenario())


def test_the_wait_for_room_ends_with_the_deadline() -> None:
    async def scenario() -> None:
        async with FaultInjector() as injector, running_upstream(injector, max_in_flight=1) as (upstream, metrics):
            injector.open.clear()
            first = asyncio.create_task(ask(upstream))
            await injector.until(in_progress=1)
            with pytest.raises(DeadlineExceededError):
                await ask(upstream, remaining=0.1)
            assert value(metrics, "pathlens_queue_abandoned_total", kind="prediction") == 1
            injector.open.set()
            await first
            await ask(upstream)
            assert len(injector.requests) == 2

    asyncio.run(scenario())


def test_the_wait_for_room_ends_with_the_own_time_limit_where_there_is_no_deadline() -> None:
    async def scenario() -> None:
        limits: dict[str, Any] = {"max_in_flight": 1, "upstream_timeout_seconds": 0.2}
        async with FaultInjector() as injector, running_upstream(injector, **limits) as (upstream, _):
            injector.open.clear()
            begun = upstream.begin(ModelVersion("digits", "1.0"), predict_call())
            with pytest.raises(UnavailableError) as caught:
                await ask(upstream)
            assert caught.value.reason == "UPSTREAM_TIMEOUT"
            injector.open.set()
            await asyncio.wait({begun})
            assert len(injector.requests) == 1

    asyncio.run(scenario())


def test_a_question_whose_caller_left_the_queue_is_never_sent() -> None:
    async def scenario() -> None:
        async with FaultInjector() as injector, running_upstream(injector, max_in_flight=1) as (upstream, metrics):
            injector.open.clear()
            first = asyncio.create_task(ask(upstream))
            await injector.until(in_progress=1)
            second = asyncio.create_task(ask(upstream))
            await until_queued(upstream, "prediction", 1)
            second.cancel()
            injector.open.set()
            await asyncio.wait({first, second})
            await ask(upstream)
            assert len(injector.requests) == 2
            assert value(metrics, "pathlens_queue_abandoned_total", kind="prediction") == 1

    asyncio.run(scenario())


def test_a_deadline_below_the_expected_cost_is_refused_without_work() -> None:
    async def scenario() -> None:
        async with FaultInjector() as injector, running_upstream(injector) as (upstream, metrics):
            injector.handler_seconds = 10.0
            await ask(upstream, remaining=5.0)
            # The first one that is spoken against is tried.
            await ask(upstream, remaining=5.0)
            with pytest.raises(DeadlineExceededError) as caught:
                await ask(upstream, remaining=5.0)
            assert caught.value.reason == "DEADLINE_TOO_SHORT"
            assert (caught.value.metadata["expected"], caught.value.metadata["remaining"]) == ("10", "5")
            assert len(injector.requests) == 2
            assert value(metrics, "pathlens_refused_total", kind="prediction", reason="DEADLINE_TOO_SHORT") == 1
            await ask(upstream, remaining=11.0)
            await ask(upstream)

    asyncio.run(scenario())


def test_a_deadline_below_the_wait_for_others_is_refused_without_work() -> None:
    async def scenario() -> None:
        async with FaultInjector() as injector, running_upstream(injector, max_in_flight=8) as (upstream, _):
            injector.handler_seconds = 0.05
            await ask(upstream)
            injector.open.clear()
            pair = [asyncio.create_task(ask(upstream)) for _ in range(2)]
            await injector.until(in_progress=2)
            # The second one learns that the first one holds it up.
            await asyncio.sleep(0.2)
            injector.open.set()
            await asyncio.gather(*pair)
            await ask(upstream, remaining=0.2)
            injector.open.clear()
            ahead = [asyncio.create_task(ask(upstream)) for _ in range(6)]
            await injector.until(in_progress=6)
            for reason in ("DEADLINE_EXCEEDED", "DEADLINE_TOO_SHORT"):
                with pytest.raises(DeadlineExceededError) as caught:
                    await ask(upstream, remaining=0.2)
                assert caught.value.reason == reason
            assert caught.value.metadata["waiting"] == "0.35"
            injector.open.set()
            await asyncio.gather(*ahead)

    asyncio.run(scenario())


def test_what_was_refused_by_the_handler_tells_nothing_about_its_cost() -> None:
    async def scenario() -> None:
        async with FaultInjector() as injector, running_upstream(injector) as (upstream, _):
            injector.handler_seconds = 1000.0
            refused = worker_pb2.WorkerCall(explain=messages.ExplainRequest(image=messages.Image(encoded=UNDECODABLE)))
            for _ in range(4):
                await upstream.ask("digits", "", [refused], 5.0)

    asyncio.run(scenario())


def test_the_own_time_limit_does_not_cancel_the_upstream_call() -> None:
    async def scenario() -> None:
        async with (
            FaultInjector() as injector,
            running_upstream(injector, upstream_timeout_seconds=0.2, max_in_flight=8) as (upstream, _),
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


def test_a_question_that_cannot_be_built_gives_its_place_back(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise MemoryError

    async def scenario() -> None:
        limits: dict[str, Any] = {"max_in_flight": 1, "max_queued": 0}
        async with FaultInjector() as injector, running_upstream(injector, **limits) as (upstream, _):
            with monkeypatch.context() as patch:
                patch.setattr("pathlens.gateway.upstream.request_of", broken)
                for _ in range(3):
                    with pytest.raises(MemoryError):
                        await ask(upstream)
            assert (await ask(upstream)).replies[0].predict.predictions[0].label == "image"

    asyncio.run(scenario())


def test_a_call_that_ends_with_its_torchserve_is_told_of_the_restart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pathlens.gateway.upstream._FAREWELL_SECONDS", 0.1)

    async def scenario() -> None:
        async with FaultInjector() as injector, running_upstream(injector) as (upstream, _):
            injector.open.clear()
            asking = asyncio.create_task(ask(upstream))
            await injector.until(in_progress=1)
            upstream.suspend(7.0)
            await upstream.connect(injector.address)
            with pytest.raises(UnavailableError) as caught:
                await asking
            assert caught.value.reason == "TORCHSERVE_RESTARTING"

    asyncio.run(scenario())


def test_a_change_of_torchserve_that_is_broken_off_leaves_no_call_behind() -> None:
    async def scenario() -> None:
        async with FaultInjector() as injector, running_upstream(injector) as (upstream, _):
            injector.open.clear()
            asking = asyncio.create_task(ask(upstream))
            await injector.until(in_progress=1)
            upstream.suspend(7.0)
            changing = asyncio.create_task(upstream.connect(injector.address))
            await asyncio.sleep(0)
            changing.cancel()
            await asyncio.wait({changing})
            async with asyncio.timeout(5):
                await upstream.close()
                with pytest.raises(UnavailableError):
                    await asking

    asyncio.run(scenario())


def test_a_call_that_ends_with_the_gateway_is_told_of_the_stop() -> None:
    async def scenario() -> None:
        async with FaultInjector() as injector, running_upstream(injector) as (upstream, _):
            injector.open.clear()
            asking = asyncio.create_task(ask(upstream))
            await injector.until(in_progress=1)
            await upstream.close()
            with pytest.raises(UnavailableError) as caught:
                await asking
            assert caught.value.reason == "STOPPING"

    asyncio.run(scenario())


def test_a_probe_that_is_refused_for_want_of_room_leaves_its_turn_to_the_next() -> None:
    async def scenario() -> None:
        limits: dict[str, Any] = {"max_in_flight": 1, "max_queued": 0}
        async with FaultInjector() as injector, running_upstream(injector, **limits) as (upstream, _):
            injector.handler_seconds = 60.0
            await ask(upstream)
            injector.open.clear()
            other = asyncio.create_task(ask(upstream))
            await injector.until(in_progress=1)
            with pytest.raises(ResourceExhaustedError):
                await ask(upstream, remaining=5.0)
            injector.open.set()
            await other
            injector.handler_seconds = 0.0
            # Against all expectation.
            assert (await ask(upstream, remaining=5.0)).replies
            assert len(injector.requests) == 3

    asyncio.run(scenario())


def test_calls_of_a_forgotten_version_give_their_room_to_others_and_none_is_sent_any_more() -> None:
    old = ModelVersion("digits", "1.0")

    async def scenario() -> None:
        async with FaultInjector() as injector, running_upstream(injector, max_in_flight=1) as (upstream, _):
            injector.open.clear()
            hung = asyncio.create_task(ask(upstream))
            await injector.until(in_progress=1)
            waiting = asyncio.create_task(ask(upstream))
            new = asyncio.create_task(upstream.ask("digits", "2.0", [predict_call()], None))
            await until_queued(upstream, "prediction", 2)
            upstream.forget(old)
            await injector.until(in_progress=2)
            with pytest.raises(UnavailableError):
                await waiting
            assert [request[1] for request in injector.requests] == ["1.0", "2.0"]
            assert upstream.in_flight == 1
            injector.open.set()
            await asyncio.gather(hung, new)
            assert injector.cancelled == 0

    asyncio.run(scenario())


def test_an_answer_that_comes_late_does_not_bring_a_forgotten_version_back() -> None:
    old = ModelVersion("digits", "1.0")

    async def scenario() -> None:
        async with FaultInjector() as injector, running_upstream(injector) as (upstream, _):
            await ask(upstream)
            assert upstream.traffic.answered_since(old, 0.0)
            injector.open.clear()
            asking = asyncio.create_task(ask(upstream))
            await injector.until(in_progress=1)
            upstream.forget(old)
            injector.open.set()
            await asking
            assert not upstream.traffic.answered_since(old, 0.0)
            assert len(upstream.traffic) == 0

    asyncio.run(scenario())


def test_a_version_that_is_not_served_leaves_nothing_behind() -> None:
    async def scenario() -> None:
        async with FaultInjector() as injector, running_upstream(injector) as (upstream, _):
            injector.failure = (grpc.StatusCode.INTERNAL, "Model not found")
            with pytest.raises(NotFoundError):
                await ask(upstream)
            assert len(upstream.traffic) == 0

    asyncio.run(scenario())
