"""Calls of several callers in one request to TorchServe: who goes with whom, and that nobody notices."""

import asyncio
import time
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import replace
from typing import Any

import grpc
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pathlens.errors import DeadlineExceededError, PathlensError, UnavailableError
from pathlens.gateway.answer import Answer
from pathlens.gateway.costs import Work
from pathlens.gateway.dispatch import Dispatch, request_of
from pathlens.gateway.errand import Errand
from pathlens.gateway.metrics import Metrics
from pathlens.gateway.upstream import Upstream
from pathlens.model_version import ModelVersion
from pathlens.wire.internal.v1 import torchserve_pb2, worker_pb2
from pathlens.wire.status import OK, error_from_status
from pathlens.wire.v1 import explanation_service_pb2 as messages

from .fault_injector import UNDECODABLE, FaultInjector, predict_call, running_upstream

INTEGRATED, MARGINAL = messages.PATHWAY_SOURCE_NEURON_INTGRAD, messages.PATHWAY_SOURCE_NEURON_MCT


def explain_call(encoded: bytes = b"image", **options: Any) -> worker_pb2.WorkerCall:
    request = messages.ExplainRequest(
        image=messages.Image(encoded=encoded), options=messages.ExplanationOptions(**options)
    )
    return worker_pb2.WorkerCall(explain=request)


def ask(
    upstream: Upstream,
    call: worker_pb2.WorkerCall,
    remaining: float | None = None,
    pixels: int | None = 100,
    version: str = "1.0",
) -> Coroutine[None, None, Answer]:
    return upstream.ask("digits", version, [call], remaining, pixels=pixels)


async def settle() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


def contents(injector: FaultInjector) -> list[list[bytes]]:
    """The images of each request, in the order in which they came."""
    return [
        [(call.predict if call.HasField("predict") else call.explain).image.encoded for call in request.calls]
        for _, _, request in injector.requests
    ]


def label(answer: Answer) -> str:
    (reply,) = answer.replies
    return (reply.predict if reply.HasField("predict") else reply.explain).predictions[0].label


async def joined(
    injector: FaultInjector,
    upstream: Upstream,
    waiting: Sequence[Coroutine[None, None, Answer]],
    known: Sequence[worker_pb2.WorkerCall] = (predict_call(b"known"),),
) -> list[Answer | BaseException]:
    """Let calls wait behind another one, when the costs of some are known."""
    for call in known:
        await ask(upstream, call)
    injector.requests.clear()
    injector.open.clear()
    first = asyncio.create_task(ask(upstream, predict_call(b"first")))
    await injector.until(in_progress=1)
    tasks = [asyncio.create_task(one) for one in waiting]
    await settle()
    injector.open.set()
    answers = await asyncio.gather(*tasks, return_exceptions=True)
    await first
    return answers


def test_a_lone_call_is_sent_at_once() -> None:
    async def scenario() -> None:
        async with FaultInjector() as injector, running_upstream(injector, max_in_flight=2) as (upstream, _):
            for number in range(3):
                await ask(upstream, predict_call(b"%d" % number))
            injector.open.clear()
            waiting = [asyncio.create_task(ask(upstream, predict_call(b"busy"))) for _ in range(2)]
            await injector.until(in_progress=2)
            assert contents(injector) == [[b"0"], [b"1"], [b"2"], [b"busy"], [b"busy"]]
            injector.open.set()
            await asyncio.gather(*waiting)

    asyncio.run(scenario())


def test_calls_that_wait_leave_together_and_each_gets_its_own_answer() -> None:
    async def scenario() -> None:
        names = [b"one", b"two", b"three"]
        async with FaultInjector() as injector, running_upstream(injector, max_in_flight=1) as (upstream, metrics):
            answers = await joined(injector, upstream, [ask(upstream, predict_call(name)) for name in names])
            assert contents(injector) == [[b"first"], names]
            assert [label(answer).encode() for answer in answers if isinstance(answer, Answer)] == names
            assert [answer.is_first for answer in answers if isinstance(answer, Answer)].count(True) == 1
            counted = metrics.registry.get_sample_value("pathlens_upstream_calls_sum", {"kind": "prediction"})
            assert counted == 5

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("limits", "pixels", "sizes"),
    [
        ({"batch_chunk": 2}, 1, [1, 2, 2]),
        ({"batch_chunk": 1}, 1, [1, 1, 1, 1, 1]),
        ({"join_seconds": 0.0}, 1, [1, 1, 1, 1, 1]),
        ({"max_message_bytes": 4000}, 1, [1, 3, 1]),
        ({"max_in_flight_bytes": 1300}, 1, [1, 2, 2]),
        ({}, 1024 * 1536, [1, 2, 2]),
        ({}, None, [1, 1, 1, 1, 1]),
    ],
)
def test_a_request_is_bounded(limits: dict[str, Any], pixels: int | None, sizes: list[int]) -> None:
    async def scenario() -> None:
        async with FaultInjector() as injector, running_upstream(injector, max_in_flight=1, **limits) as (upstream, _):
            injector.handler_seconds = 0.001
            await joined(injector, upstream, [ask(upstream, predict_call(), pixels=pixels) for _ in range(4)])
            assert [len(one) for one in contents(injector)] == sizes

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("call", "version"),
    [
        (explain_call(b"other", source=MARGINAL), "1.0"),
        (explain_call(b"other", targets=messages.Targets(class_indices=[1, 2])), "1.0"),
        (explain_call(b"other", linearity_radius=1.0), "1.0"),
        (explain_call(b"other"), "2.0"),
        (predict_call(b"other"), "1.0"),
    ],
)
def test_what_costs_otherwise_goes_by_itself(call: worker_pb2.WorkerCall, version: str) -> None:
    async def scenario() -> None:
        async with FaultInjector() as injector, running_upstream(injector, max_in_flight=1) as (upstream, _):
            usual = explain_call(b"usual")
            waiting = [ask(upstream, usual), ask(upstream, call, version=version), ask(upstream, usual)]
            await joined(injector, upstream, waiting, known=[usual, call])
            assert sorted(contents(injector)[1:]) == [[b"other"], [b"usual", b"usual"]]

    asyncio.run(scenario())


def test_integrals_are_never_joined() -> None:
    async def scenario() -> None:
        async with FaultInjector() as injector, running_upstream(injector, max_in_flight=1) as (upstream, _):
            call = explain_call(source=INTEGRATED)
            await joined(injector, upstream, [ask(upstream, call) for _ in range(2)], known=[call])
            assert [len(one) for one in contents(injector)] == [1, 1, 1]

    asyncio.run(scenario())


def test_other_options_are_no_obstacle() -> None:
    async def scenario() -> None:
        async with FaultInjector() as injector, running_upstream(injector, max_in_flight=1) as (upstream, _):
            calls = [
                explain_call(),
                explain_call(outputs=[messages.OUTPUT_HEATMAP], targets=messages.Targets(class_indices=[1])),
            ]
            await joined(injector, upstream, [ask(upstream, call) for call in calls], known=calls[:1])
            assert [len(one) for one in contents(injector)] == [1, 2]

    asyncio.run(scenario())


def test_what_was_never_done_goes_alone() -> None:
    async def scenario() -> None:
        async with FaultInjector() as injector, running_upstream(injector, max_in_flight=1) as (upstream, _):
            injector.handler_seconds = 0.01
            await joined(injector, upstream, [ask(upstream, explain_call()) for _ in range(3)], known=[])
            # Of the first explanation it is learned what the others cost.
            assert [len(one) for one in contents(injector)] == [1, 1, 2]

    asyncio.run(scenario())


@pytest.mark.parametrize(("seconds", "sizes"), [(0.06, [1, 1, 1, 1, 1]), (0.04, [1, 2, 2]), (0.01, [1, 4])])
def test_a_request_takes_no_longer_than_it_may(seconds: float, sizes: list[int]) -> None:
    async def scenario() -> None:
        limits = {"max_in_flight": 1, "join_seconds": 0.1}
        async with FaultInjector() as injector, running_upstream(injector, **limits) as (upstream, _):
            injector.handler_seconds = seconds
            await joined(injector, upstream, [ask(upstream, predict_call()) for _ in range(4)])
            assert [len(one) for one in contents(injector)] == sizes

    asyncio.run(scenario())


def test_nobody_is_joined_who_has_no_time_for_others() -> None:
    async def scenario() -> None:
        limits = {"max_in_flight": 1, "join_seconds": 60.0}
        async with FaultInjector() as injector, running_upstream(injector, **limits) as (upstream, _):
            injector.handler_seconds = 10.0
            hurried = ask(upstream, predict_call(b"hurried"), 15.0)
            patient = [ask(upstream, predict_call(b"patient"), remaining) for remaining in (None, 100.0)]
            await joined(injector, upstream, [patient[0], hurried, patient[1]])
            assert contents(injector)[1:] == [[b"patient", b"patient"], [b"hurried"]]

    asyncio.run(scenario())


def test_every_call_has_its_own_deadline() -> None:
    async def scenario() -> None:
        async with FaultInjector() as injector, running_upstream(injector, max_in_flight=1) as (upstream, _):
            await joined(injector, upstream, [ask(upstream, predict_call(), seconds) for seconds in (5.0, 15.0, None)])
            (_, _, request) = injector.requests[1]
            left = [call.deadline.ToNanoseconds() / 1e9 - time.time() for call in request.calls]
            assert left == [pytest.approx(seconds, abs=1.0) for seconds in (5.0, 15.0, 20.0)]

    asyncio.run(scenario())


def test_who_left_while_waiting_is_not_sent_and_holds_up_nobody() -> None:
    async def scenario() -> None:
        async with FaultInjector() as injector, running_upstream(injector, max_in_flight=1) as (upstream, metrics):

            async def leaves() -> Answer:
                with pytest.raises(TimeoutError):
                    async with asyncio.timeout(0):
                        await ask(upstream, predict_call(b"left"))
                return Answer([], 0.0)

            waiting = [ask(upstream, predict_call(b"one")), leaves(), ask(upstream, predict_call(b"two"))]
            await joined(injector, upstream, waiting)
            assert contents(injector) == [[b"first"], [b"one", b"two"]]
            abandoned = metrics.registry.get_sample_value("pathlens_queue_abandoned_total", {"kind": "prediction"})
            assert abandoned == 1

    asyncio.run(scenario())


def test_whose_time_was_up_while_waiting_is_not_sent() -> None:
    async def scenario() -> None:
        async with FaultInjector() as injector, running_upstream(injector, max_in_flight=1) as (upstream, _):

            async def expires() -> Answer:
                with pytest.raises(DeadlineExceededError):
                    await ask(upstream, predict_call(b"late"), 0.05)
                injector.open.set()
                return Answer([], 0.0)

            await ask(upstream, predict_call())
            injector.open.clear()
            first = asyncio.create_task(ask(upstream, predict_call()))
            await injector.until(in_progress=1)
            injector.requests.clear()
            waiting = [ask(upstream, predict_call(b"one")), expires(), ask(upstream, predict_call(b"two"))]
            await asyncio.gather(first, *waiting)
            assert contents(injector) == [[b"one", b"two"]]

    asyncio.run(scenario())


@pytest.mark.parametrize("leaver", [0, 1])
def test_who_leaves_after_the_sending_takes_nothing_from_the_others(leaver: int) -> None:
    async def scenario() -> None:
        async with FaultInjector() as injector, running_upstream(injector, max_in_flight=1) as (upstream, metrics):
            await ask(upstream, predict_call())
            injector.open.clear()
            first = asyncio.create_task(ask(upstream, predict_call()))
            await injector.until(in_progress=1)
            tasks = [asyncio.create_task(ask(upstream, predict_call(b"%d" % number))) for number in range(2)]
            await settle()
            injector.open.set()
            await first
            injector.open.clear()
            await injector.until(in_progress=1)
            tasks.pop(leaver).cancel()
            await settle()
            injector.open.set()
            assert label(await tasks[0]) == str(1 - leaver)
            assert contents(injector)[-1] == [b"0", b"1"]
            assert injector.cancelled == 0
            assert metrics.registry.get_sample_value("pathlens_upstream_abandoned_total") == 1
            # The place is free again.
            await ask(upstream, predict_call())

    asyncio.run(scenario())


def test_a_failure_reaches_everyone_once_and_the_room_comes_back() -> None:
    async def scenario() -> None:
        limits: dict[str, Any] = {"max_in_flight": 1, "max_queued": 3}
        async with FaultInjector() as injector, running_upstream(injector, **limits) as (upstream, _):
            await ask(upstream, predict_call())
            injector.open.clear()
            first = asyncio.create_task(ask(upstream, predict_call()))
            await injector.until(in_progress=1)
            tasks = [asyncio.create_task(ask(upstream, predict_call())) for _ in range(3)]
            await settle()
            injector.failure = (grpc.StatusCode.INTERNAL, "Worker died.")
            injector.open.set()
            await first
            for task in tasks:
                with pytest.raises(UnavailableError) as caught:
                    await task
                assert caught.value.reason == "WORKER_RESTARTING"
            injector.failure = None
            assert upstream.in_flight == 0
            assert label(await ask(upstream, predict_call())) == "image"

    asyncio.run(scenario())


def test_a_bad_image_is_one_bad_image() -> None:
    async def scenario() -> None:
        async with FaultInjector() as injector, running_upstream(injector, max_in_flight=1) as (upstream, _):
            calls = [explain_call(b"good"), explain_call(b"not an image"), explain_call(b"fine")]
            answers = await joined(injector, upstream, [ask(upstream, call) for call in calls], known=calls[:1])
            replies = [answer.replies[0] for answer in answers if isinstance(answer, Answer)]
            assert len(contents(injector)[1]) == 3
            assert [reply.status.code == OK.code for reply in replies] == [True, False, True]

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("images", "first"),
    [([UNDECODABLE, b"good", b"fine"], [False, True, False]), ([UNDECODABLE] * 2, [True, False])],
)
def test_the_stages_are_told_to_the_first_one_whose_answer_holds_them(images: list[bytes], first: list[bool]) -> None:
    async def scenario() -> None:
        async with FaultInjector() as injector, running_upstream(injector, max_in_flight=1) as (upstream, _):
            waiting = [ask(upstream, explain_call(image)) for image in images]
            answers = await joined(injector, upstream, waiting, known=[explain_call()])
            assert [len(one) for one in contents(injector)] == [1, len(images)]
            assert [answer.is_first for answer in answers if isinstance(answer, Answer)] == first

    asyncio.run(scenario())


def test_a_probe_that_was_sent_with_others_and_then_abandoned_was_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    probing: list[asyncio.Task[Answer]] = []

    def sent(errands: Sequence[Errand], task: asyncio.Task[Answer]) -> Dispatch:
        # The moment in which it is taken along, and does not know it yet.
        for probe in probing if len(errands) == 3 else ():
            probe.cancel()
        return Dispatch(errands, task)

    monkeypatch.setattr("pathlens.gateway.upstream.Dispatch", sent)

    async def scenario() -> None:
        limits: dict[str, Any] = {"max_in_flight": 1, "join_seconds": 60.0}
        async with FaultInjector() as injector, running_upstream(injector, **limits) as (upstream, metrics):
            # Ten seconds, for one as for three, and whoever is ahead holds up for all of them.
            work = Work.of("digits", [predict_call()])
            for items in (1, 3):
                upstream._costs.learn(replace(work, items=items), 10.0)
            upstream._costs.learn_wait("digits", 10.0, 10.0)
            injector.handler_seconds = 10.0
            injector.open.clear()
            patient = [asyncio.create_task(ask(upstream, predict_call())) for _ in range(3)]
            await injector.until(in_progress=1)
            probing.append(asyncio.create_task(ask(upstream, predict_call(b"probe"), 25.0)))
            await settle()
            injector.open.set()
            await asyncio.gather(*patient)
            assert [len(one) for one in contents(injector)] == [1, 3]
            assert probing[0].cancelled()
            assert metrics.registry.get_sample_value("pathlens_upstream_abandoned_total") == 1
            with pytest.raises(DeadlineExceededError) as caught:
                await ask(upstream, predict_call(), 5.0)
            assert caught.value.reason == "DEADLINE_TOO_SHORT"

    asyncio.run(scenario())


async def check_balance(metrics: Metrics) -> None:
    """Expect that nothing waits, and that nothing is in flight as soon as the answers have come."""
    for kind in ("prediction", "explanation", "bulk"):
        assert not metrics.registry.get_sample_value("pathlens_queued", {"kind": kind})
    async with asyncio.timeout(5):
        while metrics.registry.get_sample_value("pathlens_upstream_inflight", {"model": "digits"}):
            await asyncio.sleep(0.002)


async def check_places(injector: FaultInjector, upstream: Upstream, places: int) -> None:
    """Expect that so many calls are sent at once, and no more."""
    injector.open.clear()
    calls = [asyncio.create_task(ask(upstream, predict_call(), pixels=None)) for _ in range(places + 2)]
    await injector.until(in_progress=places)
    await asyncio.sleep(0.02)
    assert injector.in_progress == places
    injector.open.set()
    await asyncio.gather(*calls)


@pytest.mark.parametrize("callers", [2, 5, 24])
def test_all_who_wait_for_a_version_that_is_unloaded_are_told(callers: int) -> None:
    async def scenario() -> None:
        async with FaultInjector() as injector, running_upstream(injector, max_in_flight=1) as (upstream, metrics):
            await ask(upstream, predict_call())
            injector.open.clear()
            hung = asyncio.create_task(ask(upstream, predict_call()))
            await injector.until(in_progress=1)
            waiting = [asyncio.create_task(ask(upstream, predict_call())) for _ in range(callers)]
            await settle()
            upstream.forget(ModelVersion("digits", "1.0"))
            # Loaded again, and called behind them.
            fresh = [asyncio.create_task(ask(upstream, predict_call(b"fresh"))) for _ in range(2)]
            async with asyncio.timeout(5):
                outcomes = await asyncio.gather(*waiting, return_exceptions=True)
            assert [type(outcome) for outcome in outcomes] == [UnavailableError] * callers
            await injector.until(in_progress=2)
            injector.open.set()
            assert [label(answer) for answer in await asyncio.gather(hung, *fresh)] == ["image", "fresh", "fresh"]
            assert await upstream.drain(5.0) == 0
            await check_balance(metrics)
            await check_places(injector, upstream, 1)

    asyncio.run(scenario())


def test_a_request_that_cannot_be_built_fails_for_all_who_are_in_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise MemoryError

    async def scenario() -> None:
        async with FaultInjector() as injector, running_upstream(injector, max_in_flight=1) as (upstream, metrics):
            await ask(upstream, predict_call())
            injector.open.clear()
            first = asyncio.create_task(ask(upstream, predict_call()))
            await injector.until(in_progress=1)
            waiting = [asyncio.create_task(ask(upstream, predict_call())) for _ in range(12)]
            await settle()
            with monkeypatch.context() as patch:
                patch.setattr("pathlens.gateway.upstream.request_of", broken)
                injector.open.set()
                await first
                async with asyncio.timeout(5):
                    outcomes = await asyncio.gather(*waiting, return_exceptions=True)
            assert [type(outcome) for outcome in outcomes] == [MemoryError] * 12
            assert await upstream.drain(5.0) == 0
            await check_balance(metrics)
            assert metrics.registry.get_sample_value("pathlens_upstream_calls_sum", {"kind": "prediction"}) == 2
            await check_places(injector, upstream, 1)

    asyncio.run(scenario())


def test_an_answer_that_found_no_room_among_others_is_asked_for_alone() -> None:
    async def scenario() -> None:
        limits = {"max_in_flight": 1, "max_message_bytes": 10_000}
        async with FaultInjector() as injector, running_upstream(injector, **limits) as (upstream, _):
            injector.keeps_limit, injector.padding = True, 6000
            calls = [explain_call(b"one"), explain_call(b"two")]
            answers = await joined(injector, upstream, [ask(upstream, call) for call in calls], known=calls[:1])
            assert contents(injector) == [[b"first"], [b"one", b"two"], [b"two"]]
            assert [label(answer) for answer in answers if isinstance(answer, Answer)] == ["one", "two"]
            injector.padding = 20_000
            answer = await ask(upstream, calls[0])
            assert error_from_status(answer.replies[0].status).reason == "RESPONSE_TOO_LARGE"

    asyncio.run(scenario())


CALLS = st.tuples(
    st.sampled_from(["predict", "explain", "marginal", "integrated"]),
    # Whether its caller leaves, and how many rounds of the event loop pass before the next call.
    st.booleans(),
    st.integers(0, 40),
)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(CALLS, min_size=1, max_size=20), st.integers(1, 4), st.integers(1, 8))
def test_in_whatever_order_calls_come_each_gets_exactly_its_own_answer(
    drawn: list[tuple[str, bool, int]], places: int, chunk: int
) -> None:
    make: dict[str, Callable[[bytes], worker_pb2.WorkerCall]] = {
        "predict": predict_call,
        "explain": explain_call,
        "marginal": lambda content: explain_call(content, source=MARGINAL),
        "integrated": lambda content: explain_call(content, source=INTEGRATED),
    }

    async def scenario() -> None:
        limits = {"max_in_flight": places, "batch_chunk": chunk}
        async with FaultInjector() as injector, running_upstream(injector, **limits) as (upstream, _):
            for call in make.values():
                await ask(upstream, call(b"known"))
            injector.requests.clear()
            tasks = []
            for number, (kind, leaves, rounds) in enumerate(drawn):
                tasks.append(asyncio.create_task(ask(upstream, make[kind](b"%d" % number), 20.0)))
                for _ in range(rounds):
                    await asyncio.sleep(0)
                if leaves:
                    tasks[number].cancel()
            answers = await asyncio.gather(*tasks, return_exceptions=True)
            for number, answer in enumerate(answers):
                assert not isinstance(answer, PathlensError)
                if isinstance(answer, Answer):
                    assert label(answer) == str(number)
                else:
                    assert drawn[number][1]
            await upstream.drain(5.0)
            sent = [content for request in contents(injector) for content in request]
            assert len(sent) == len(set(sent))
            assert max(map(len, contents(injector)), default=1) <= chunk
            assert upstream.in_flight == 0

    asyncio.run(scenario())


EVENTS = st.one_of(
    st.tuples(st.just("ask"), st.sampled_from(["1.0", "2.0"])),
    st.tuples(st.just("ask too much"), st.sampled_from(["1.0", "2.0"])),
    st.tuples(st.just("forget"), st.sampled_from(["1.0", "2.0"])),
    st.tuples(st.sampled_from(["leave", "answer", "hang", "go on"]), st.just("")),
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(EVENTS, min_size=1, max_size=40), st.integers(1, 3))
def test_whatever_is_unloaded_or_cannot_be_built_nobody_is_left_behind(
    events: list[tuple[str, str]], places: int
) -> None:
    def request(errands: Sequence[Errand], patience: float) -> torchserve_pb2.PredictionsRequest:
        if any(call.predict.image.encoded.startswith(b"too much") for errand in errands for call in errand.calls):
            raise MemoryError
        return request_of(errands, patience)

    async def scenario() -> None:
        async with FaultInjector() as injector, running_upstream(injector, max_in_flight=places) as (upstream, metrics):
            await ask(upstream, predict_call())
            injector.open.clear()
            tasks: dict[str, asyncio.Task[Answer]] = {}
            versions: dict[str, str] = {}
            left, forgotten = set(), set()
            for number, (event, version) in enumerate(events):
                name = f"{event.removeprefix('ask ')} {number}"
                match event:
                    case "ask" | "ask too much":
                        versions[name] = version
                        tasks[name] = asyncio.create_task(ask(upstream, predict_call(name.encode()), version=version))
                        await asyncio.sleep(0)
                    case "forget":
                        upstream.forget(ModelVersion("digits", version))
                        forgotten |= {name for name in versions if versions[name] == version}
                    case "leave" if tasks:
                        name = list(tasks)[number % len(tasks)]
                        left.add(name)
                        tasks[name].cancel()
                    case "answer":
                        injector.open.set()
                    case "hang":
                        injector.open.clear()
                    case "go on":
                        await asyncio.sleep(0.002)
            injector.open.set()
            async with asyncio.timeout(10):
                outcomes = await asyncio.gather(*tasks.values(), return_exceptions=True)
            for name, outcome in zip(tasks, outcomes, strict=True):
                match outcome:
                    case Answer():
                        assert label(outcome) == name
                    case UnavailableError():
                        assert name in forgotten
                    case MemoryError():
                        assert any(other.startswith("too much") for other in tasks)
                    case _:
                        assert isinstance(outcome, asyncio.CancelledError)
                        assert name in left
            assert await upstream.drain(5.0) == 0
            await check_balance(metrics)
            await check_places(injector, upstream, places)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pathlens.gateway.upstream.request_of", request)
        asyncio.run(scenario())
