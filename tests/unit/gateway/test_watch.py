import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc
import pytest
from google.protobuf import any_pb2
from google.rpc import status_pb2

from pathlens.errors import DeadlineExceededError
from pathlens.gateway.answer import Answer
from pathlens.gateway.upstream import Upstream
from pathlens.gateway.watch import Watch
from pathlens.wire.internal.v1 import worker_pb2
from pathlens.wire.v1 import explanation_service_pb2 as messages

from .fault_injector import UNDECODABLE, FaultInjector, description, predict_call, running_upstream

PATIENCE = 0.1
LONG = 0.5
"""Time for more canaries than it takes to call a model down."""


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pathlens.gateway.watch._PERIOD_SECONDS", 0.02)
    monkeypatch.setattr("pathlens.gateway.watch._PATIENCE_SECONDS", PATIENCE)


@asynccontextmanager
async def watched(
    injector: FaultInjector, longest: float = 60.0, *, all_calls: bool = True, **limits: int
) -> AsyncIterator[tuple[Upstream, list[bool]]]:
    reports: list[bool] = []

    async def report(up: bool) -> None:
        reports.append(up)

    async with injector, running_upstream(injector, **limits) as (upstream, metrics):
        watch = Watch([description()], upstream, report, longest, metrics, all_calls=all_calls)
        watching = asyncio.create_task(watch.run())
        try:
            yield upstream, reports
        finally:
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)


async def until_reported(reports: list[bool], expected: list[bool]) -> None:
    async with asyncio.timeout(5):
        while reports != expected:
            await asyncio.sleep(0.01)


def test_a_model_that_answers_is_up() -> None:
    async def scenario() -> None:
        injector = FaultInjector()
        async with watched(injector) as (_, reports):
            await asyncio.sleep(LONG)
            assert len(injector.canaries) > 3
            assert reports == []

    asyncio.run(scenario())


def test_a_dead_worker_is_reported_and_so_is_its_return() -> None:
    async def scenario() -> None:
        injector = FaultInjector()
        async with watched(injector) as (_, reports):
            injector.failure = (grpc.StatusCode.INTERNAL, "Worker died.")
            await until_reported(reports, [False])
            injector.failure = None
            await until_reported(reports, [False, True])

    asyncio.run(scenario())


def test_canaries_are_counted_by_what_became_of_them() -> None:
    async def scenario() -> None:
        injector = FaultInjector()
        async with injector, running_upstream(injector) as (upstream, metrics):

            async def until_more(result: str) -> None:
                labels = {"model": "digits", "version": "1.0", "result": result}
                before = metrics.registry.get_sample_value("pathlens_canaries_total", labels)
                assert before is not None
                async with asyncio.timeout(5):
                    while metrics.registry.get_sample_value("pathlens_canaries_total", labels) == before:
                        await asyncio.sleep(0.01)

            watching = asyncio.create_task(Watch([description()], upstream, ignore, 60.0, metrics).run())
            await until_more("answered")
            injector.failure = (grpc.StatusCode.INTERNAL, "Worker died.")
            await until_more("failed")
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)

    asyncio.run(scenario())


def test_a_canary_that_is_long_without_an_answer_is_counted_once() -> None:
    async def scenario() -> None:
        injector = FaultInjector()
        async with injector, running_upstream(injector) as (upstream, metrics):

            def count(result: str) -> float | None:
                labels = {"model": "digits", "version": "1.0", "result": result}
                return metrics.registry.get_sample_value("pathlens_canaries_total", labels)

            injector.describing.clear()
            watching = asyncio.create_task(Watch([description()], upstream, ignore, 60.0, metrics).run())
            await asyncio.sleep(LONG)
            assert (len(injector.canaries), count("failed"), count("answered")) == (1, 1, 0)
            injector.describing.set()
            async with asyncio.timeout(5):
                while not count("answered"):
                    await asyncio.sleep(0.01)
            # Not the first one, whose answer came after all.
            assert len(injector.canaries) > 1
            assert count("failed") == 1
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)

    asyncio.run(scenario())


async def ignore(_up: bool) -> None:
    pass


def test_a_version_that_is_followed_no_more_has_no_part_in_health() -> None:
    async def scenario() -> None:
        reports: list[bool] = []

        async def report(up: bool) -> None:
            reports.append(up)

        down, well = description("down"), description()
        async with FaultInjector() as injector, running_upstream(injector) as (upstream, metrics):
            injector.failing.add("down")
            watch = Watch([well], upstream, report, 60.0, metrics)
            watching = asyncio.create_task(watch.run())
            await asyncio.sleep(PATIENCE)
            watch.follow([well, down])
            await until_reported(reports, [False])
            watch.follow([well])
            await until_reported(reports, [False, True])
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)

    asyncio.run(scenario())


@pytest.mark.parametrize("label", [b"image", UNDECODABLE])
def test_a_worker_whose_predictions_all_fail_is_reported_whatever_it_answers_to_others(label: bytes) -> None:
    async def scenario() -> None:
        injector = FaultInjector()
        async with watched(injector) as (upstream, reports):
            injector.broken = True
            async with asyncio.timeout(5):
                while not reports:
                    await upstream.ask("digits", "1.0", [explain_call(label)], None)
                    await asyncio.sleep(0.01)
            assert reports == [False]
            injector.broken = False
            await until_reported(reports, [False, True])

    asyncio.run(scenario())


def test_a_version_whose_image_fits_into_no_message_is_not_watched(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        large = messages.Model(model=messages.ServedModel(name="large", version="1.0"), input_shape=[3, 100, 100])
        reports: list[bool] = []

        async def report(up: bool) -> None:
            reports.append(up)

        async with (
            FaultInjector() as injector,
            running_upstream(injector, max_message_bytes=5000) as (
                upstream,
                metrics,
            ),
        ):
            watching = asyncio.create_task(Watch([large, description()], upstream, report, 60.0, metrics).run())
            await asyncio.sleep(LONG)
            assert injector.canaries
            injector.broken = True
            await until_reported(reports, [False])
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)

    asyncio.run(scenario())
    assert caplog.text.count("Model large 1.0 is not watched") == 1


def test_probabilities_that_are_not_finite_are_reported() -> None:
    async def scenario() -> None:
        injector = FaultInjector()
        injector.probability = float("nan")
        async with watched(injector) as (_, reports):
            await until_reported(reports, [False])

    asyncio.run(scenario())


def test_a_broken_worker_without_room_for_a_canary_is_reported() -> None:
    async def scenario() -> None:
        injector = FaultInjector()
        injector.broken = True
        async with watched(injector, max_in_flight=1) as (upstream, reports):

            async def caller() -> None:
                while not reports:
                    await upstream.ask("digits", "1.0", [predict_call()], None)

            # Before the first canary, and always two that wait.
            await asyncio.wait_for(asyncio.gather(*(caller() for _ in range(3))), 5)
            assert not injector.canaries
            assert reports == [False]

    asyncio.run(scenario())


def test_a_canary_that_waits_while_all_others_fail_is_a_failure() -> None:
    async def scenario() -> None:
        injector = FaultInjector()
        injector.broken = True
        injector.describing.clear()
        injector.held[b"slow"] = asyncio.Event()
        async with watched(injector) as (upstream, reports):
            slow = asyncio.create_task(upstream.ask("digits", "1.0", [explain_call(b"slow")], None))
            async with asyncio.timeout(5):
                while not reports:
                    await upstream.ask("digits", "1.0", [predict_call()], None)
                    await asyncio.sleep(0.01)
            assert reports == [False]
            injector.held[b"slow"].set()
            await slow

    asyncio.run(scenario())


@pytest.mark.parametrize("longest", [PATIENCE * 3, 60.0])
def test_a_version_whose_room_another_one_holds_is_down_once_that_one_has_hung(longest: float) -> None:
    async def scenario() -> None:
        reports: list[bool] = []

        async def report(up: bool) -> None:
            reports.append(up)

        async with FaultInjector() as injector, running_upstream(injector, max_in_flight=1) as (upstream, metrics):
            computing = await computation(injector, upstream)
            new = Watch([description(version="2.0")], upstream, report, longest, metrics)
            watching = asyncio.create_task(new.run())
            if longest < LONG:
                await until_reported(reports, [False])
            else:
                await asyncio.sleep(LONG)
                assert reports == []
            injector.open.set()
            injector.describing.set()
            await computing
            await until_reported(reports, [False, True] if longest < LONG else [])
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)

    asyncio.run(scenario())


def test_a_canary_that_is_refused_while_nothing_of_torchserve_works_is_a_failure() -> None:
    async def scenario() -> None:
        injector = FaultInjector()
        injector.failure = (grpc.StatusCode.INTERNAL, "Cannot reserve 16 bytes of direct buffer memory")
        async with watched(injector) as (_, reports):
            await until_reported(reports, [False])

    asyncio.run(scenario())


def test_one_failure_is_no_report() -> None:
    async def scenario() -> None:
        injector = FaultInjector()
        async with watched(injector) as (_, reports):
            for _ in range(3):
                injector.describing.clear()
                await asyncio.sleep(PATIENCE * 1.5)
                injector.describing.set()
                await asyncio.sleep(PATIENCE)
            assert reports == []

    asyncio.run(scenario())


def test_an_answer_that_cannot_be_read_is_reported_and_watching_goes_on() -> None:
    unreadable = any_pb2.Any(type_url="type.googleapis.com/google.rpc.ErrorInfo", value=b"\xff")
    reply = worker_pb2.WorkerReply(status=status_pb2.Status(code=13, details=[unreadable]))

    async def scenario() -> None:
        injector = FaultInjector()
        async with watched(injector) as (_, reports):
            injector.prediction = worker_pb2.WorkerResponse(replies=[reply]).SerializeToString()
            await until_reported(reports, [False])
            injector.prediction = None
            await until_reported(reports, [False, True])

    asyncio.run(scenario())


def test_a_silent_worker_is_reported_and_gets_no_second_canary() -> None:
    async def scenario() -> None:
        injector = FaultInjector()
        async with watched(injector) as (upstream, reports):
            injector.describing.clear()
            await until_reported(reports, [False])
            asked = len(injector.canaries)
            await asyncio.sleep(LONG)
            assert len(injector.canaries) == asked
            assert upstream.in_flight == 1
            injector.describing.set()
            await until_reported(reports, [False, True])
            assert injector.cancelled == 0

    asyncio.run(scenario())


def test_a_busy_worker_that_answers_others_is_up() -> None:
    async def scenario() -> None:
        injector = FaultInjector()
        async with watched(injector) as (upstream, reports):
            injector.describing.clear()
            for _ in range(20):
                await upstream.ask("digits", "1.0", [predict_call()], None)
                await asyncio.sleep(LONG / 20)
            assert reports == []

    asyncio.run(scenario())


def test_a_full_queue_is_no_failure() -> None:
    async def scenario() -> None:
        injector = FaultInjector()
        async with watched(injector, max_in_flight=1) as (upstream, reports):
            injector.open.clear()
            while not injector.in_progress:
                with pytest.raises(DeadlineExceededError):
                    await upstream.ask("digits", "1.0", [predict_call()], 0.1)
            await asyncio.sleep(LONG)
            assert reports == []

    asyncio.run(scenario())


def test_a_long_computation_is_no_failure() -> None:
    async def scenario() -> None:
        injector = FaultInjector()
        async with watched(injector) as (upstream, reports):
            computing = await computation(injector, upstream)
            await asyncio.sleep(LONG)
            assert reports == []
            injector.open.set()
            await computing

    asyncio.run(scenario())


def test_a_canary_may_wait_for_calls_that_are_not_seen_from_here() -> None:
    async def scenario() -> None:
        injector = FaultInjector()
        async with watched(injector, all_calls=False) as (_, reports):
            injector.describing.clear()
            await asyncio.sleep(LONG)
            assert reports == []

    asyncio.run(scenario())


def test_a_canary_waits_no_longer_than_any_computation_may_take() -> None:
    async def scenario() -> None:
        injector = FaultInjector()
        async with watched(injector, longest=0.3, all_calls=False) as (_, reports):
            injector.describing.clear()
            await until_reported(reports, [False])

    asyncio.run(scenario())


def test_a_computation_longer_than_any_may_be_is_reported() -> None:
    async def scenario() -> None:
        injector = FaultInjector()
        async with watched(injector, longest=PATIENCE * 2) as (upstream, reports):
            computing = await computation(injector, upstream)
            await until_reported(reports, [False])
            injector.open.set()
            await computing

    asyncio.run(scenario())


def test_a_long_computation_of_a_torchserve_that_does_not_answer_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    async def unheard(_upstream: Upstream, _seconds: float) -> bool:
        return False

    async def scenario() -> None:
        # No real peer of a test can stop answering one call and go on with its own event loop.
        monkeypatch.setattr(Upstream, "pings", unheard)
        injector = FaultInjector()
        async with watched(injector) as (upstream, reports):
            computing = await computation(injector, upstream)
            await until_reported(reports, [False])
            injector.open.set()
            await computing

    asyncio.run(scenario())


def explain_call(encoded: bytes) -> worker_pb2.WorkerCall:
    return worker_pb2.WorkerCall(explain=messages.ExplainRequest(image=messages.Image(encoded=encoded)))


async def computation(injector: FaultInjector, upstream: Upstream) -> asyncio.Task[Answer]:
    """Begin a prediction that keeps the only worker, and so the canaries, waiting."""
    injector.open.clear()
    injector.describing.clear()
    computing = asyncio.create_task(upstream.ask("digits", "1.0", [predict_call()], None))
    await injector.until(in_progress=1)
    return computing
