import asyncio
import logging
import math
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tenacity import AsyncRetrying, RetryCallState, Retrying

from pathlens.client import AsyncClient, Client, RetryPolicy
from pathlens.client.retry import is_repeatable, repetition
from pathlens.errors import (
    DeadlineExceededError,
    FailedPreconditionError,
    InternalError,
    InvalidRequestError,
    NotFoundError,
    PathlensError,
    ResourceExhaustedError,
    UnavailableError,
)
from pathlens.wire.status import response_too_large

from .both_clients import Kind, both_clients, call
from .scripted_service import ScriptedService, Turn, serving

QUICK = RetryPolicy(attempts=4, first_wait=0.01, longest_wait=0.02)
FULL = ResourceExhaustedError("Full.", reason="QUEUE_FULL", retry_after=0.01)
RESTARTING = UnavailableError("Restarting.", reason="WORKER_RESTARTING", retry_after=0.01)
# What grpc's server makes of a call that comes while it closes.
UNREAD = (grpc.StatusCode.CANCELLED, "CANCELLED")


@both_clients
@pytest.mark.parametrize("turn", [FULL, RESTARTING, grpc.StatusCode.UNAVAILABLE, UNREAD], ids=str)
def test_a_call_that_fails_for_the_moment_is_repeated(kind: Kind, turn: Turn) -> None:
    with serving(ScriptedService(turn, turn)) as service:
        assert call(kind, service.address, "list_models", retries=QUICK)[0].model.name == "digits"
        assert len(service.seen) == 3


@both_clients
@pytest.mark.parametrize(
    "turn",
    [
        InvalidRequestError("Wrong.", retry_after=0.01),
        NotFoundError("Nothing there."),
        FailedPreconditionError("Not fitted for it."),
        DeadlineExceededError("Too late.", retry_after=0.01),
        InternalError("A defect.", retry_after=0.01),
        UnavailableError("Gone for good."),
        ResourceExhaustedError("Too large.", reason="MESSAGE_TOO_LARGE"),
        response_too_large(2, 1, "ask for less"),
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        grpc.StatusCode.UNAUTHENTICATED,
        grpc.StatusCode.UNKNOWN,
        grpc.StatusCode.CANCELLED,
    ],
    ids=str,
)
def test_a_call_that_repetition_cannot_help_is_sent_once(kind: Kind, turn: PathlensError | grpc.StatusCode) -> None:
    with serving(ScriptedService(turn, None)) as service:
        with pytest.raises(PathlensError) as failure:
            call(kind, service.address, "list_models", retries=QUICK)
        assert len(service.seen) == 1
        assert not isinstance(turn, PathlensError) or (failure.value.code, failure.value.reason) == (
            turn.code,
            turn.reason,
        )


@both_clients
def test_all_attempts_of_a_call_have_one_request_id(kind: Kind) -> None:
    with serving(ScriptedService(FULL, FULL)) as service:
        call(kind, service.address, "list_models", retries=QUICK)
        assert len({seen.metadata["x-request-id"] for seen in service.seen}) == 1


@both_clients
def test_the_time_that_the_service_names_is_the_least_wait(kind: Kind) -> None:
    later = UnavailableError("Restarting.", retry_after=0.4)
    with serving(ScriptedService(later)) as service:
        call(kind, service.address, "list_models", retries=QUICK)
        first, second = service.seen
        assert 0.4 <= second.moment - first.moment < 3


@both_clients
def test_after_the_last_attempt_its_error_is_raised(kind: Kind) -> None:
    with serving(ScriptedService(FULL, FULL, RESTARTING, None)) as service:
        with pytest.raises(UnavailableError) as failure:
            call(kind, service.address, "list_models", retries=RetryPolicy(3, 0.01, 0.01))
        assert failure.value.reason == "WORKER_RESTARTING"
        assert len(service.seen) == 3


@both_clients
def test_without_a_policy_nothing_is_repeated(kind: Kind) -> None:
    with serving(ScriptedService(FULL)) as service:
        with pytest.raises(ResourceExhaustedError):
            call(kind, service.address, "list_models", retries=None)
        assert len(service.seen) == 1


@both_clients
def test_a_service_that_comes_up_a_little_later_is_found(kind: Kind) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    service, done = ScriptedService(), threading.Event()

    def serve_later() -> None:
        time.sleep(0.5)
        with serving(service, port=port):
            done.wait(20)

    thread = threading.Thread(target=serve_later)
    thread.start()
    try:
        policy = RetryPolicy(attempts=100, first_wait=0.1, longest_wait=0.2)
        assert call(kind, f"127.0.0.1:{port}", "list_models", retries=policy, timeout=15)
    finally:
        done.set()
        thread.join()


@contextmanager
def hanging_up() -> Iterator[tuple[str, list[float]]]:
    """Accept connections and end them; gives the address, and the moments of all that came so far."""
    tried: list[float] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def hang_up() -> None:
            with suppress(OSError):
                while True:
                    listener.accept()[0].close()
                    tried.append(time.monotonic())

        thread = threading.Thread(target=hang_up)
        thread.start()
        try:
            yield f"127.0.0.1:{listener.getsockname()[1]}", tried
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()


@both_clients
def test_a_connection_that_failed_is_tried_again_well_within_a_second(kind: Kind) -> None:
    # By gRPC's own times the second connection would come after 0.8 s, and calls until then would fail unsent.
    with hanging_up() as (address, tried), pytest.raises(UnavailableError):
        call(kind, address, "list_models", timeout=0.7, retries=RetryPolicy(100, 0.05, 0.05))
    assert len(tried) > 1


@both_clients
def test_every_attempt_is_sent_with_the_time_that_is_left(kind: Kind) -> None:
    later = UnavailableError("Restarting.", retry_after=0.5)
    with serving(ScriptedService(later, later)) as service:
        call(kind, service.address, "list_models", timeout=5, retries=QUICK)
        first = service.seen[0]
        assert first.time_remaining is not None
        for seen in service.seen:
            assert seen.time_remaining is not None
            left = first.time_remaining - (seen.moment - first.moment)
            assert seen.time_remaining == pytest.approx(left, abs=0.4)


@both_clients
def test_all_attempts_together_stay_within_the_timeout(kind: Kind) -> None:
    later = UnavailableError("Restarting.", retry_after=0.5)
    with serving(ScriptedService(*[later] * 100)) as service:
        started = time.monotonic()
        with pytest.raises(UnavailableError):
            call(kind, service.address, "list_models", timeout=2, retries=RetryPolicy(100, 0.01, 0.01))
        assert time.monotonic() - started < 6
        assert 2 <= len(service.seen) <= 5


@both_clients
def test_a_wait_that_would_outlast_the_timeout_is_not_begun(kind: Kind) -> None:
    with serving(ScriptedService(UnavailableError("Restarting.", retry_after=30))) as service:
        started = time.monotonic()
        with pytest.raises(UnavailableError) as failure:
            call(kind, service.address, "list_models", timeout=10, retries=QUICK)
        assert time.monotonic() - started < 5
        assert failure.value.retry_after == 30


@both_clients
def test_an_attempt_that_hangs_ends_with_the_timeout_of_the_call(kind: Kind) -> None:
    hanging = threading.Event()
    with serving(ScriptedService(UnavailableError("Restarting.", retry_after=0.3), hanging)) as service:
        started = time.monotonic()
        with pytest.raises(DeadlineExceededError):
            call(kind, service.address, "list_models", timeout=2, retries=QUICK)
        assert 1.9 < time.monotonic() - started < 5
        assert len(service.seen) == 2


def test_a_task_that_is_cancelled_between_two_attempts_ends_at_once() -> None:
    async def scenario(address: str) -> float:
        async with AsyncClient(address) as client:
            task = asyncio.create_task(client.list_models())
            async with asyncio.timeout(5):
                while not service.seen:
                    await asyncio.sleep(0.01)
            # For the answer to come.
            await asyncio.sleep(0.1)
            started = time.monotonic()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            return time.monotonic() - started

    with serving(ScriptedService(UnavailableError("Restarting.", retry_after=20))) as service:
        assert asyncio.run(scenario(service.address)) < 5
        assert len(service.seen) == 1


@both_clients
def test_the_log_tells_of_a_repetition(kind: Kind, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "pathlens.client"), serving(ScriptedService(FULL)) as service:
        call(kind, service.address, "list_models", retries=QUICK, request_id="seven")
    assert "Attempt 1 of 4 of request seven failed (QUEUE_FULL)" in caplog.text


def failed(attempt: int, retry_after: float | None) -> RetryCallState:
    state = RetryCallState(Retrying(), None, (), {})
    state.attempt_number = attempt
    error = UnavailableError("Restarting.", retry_after=retry_after)
    state.set_exception((type(error), error, None))
    return state


@given(st.integers(1, 60), st.one_of(st.none(), st.floats(0, 1e4)), st.floats(1e-3, 10), st.floats(1, 100))
def test_a_wait_lies_between_the_named_time_and_the_back_off_beyond_it(
    attempt: int, retry_after: float | None, first: float, factor: float
) -> None:
    policy = RetryPolicy(4, first, first * factor)
    wait = repetition(policy, math.inf)["wait"](failed(attempt, retry_after))
    least = retry_after or 0.0
    assert least <= wait <= least + min(policy.longest_wait, first * 2 ** (attempt - 1)) * (1 + 1e-9)


def test_waits_are_spread_over_the_whole_of_the_back_off() -> None:
    wait = repetition(RetryPolicy(4, 1.0, 100.0), math.inf)["wait"]
    draws = sorted(wait(failed(3, None)) for _ in range(400))
    # The window of the third attempt is 4 s; all 400 miss an end of it by chance less than once in 1e17 runs.
    assert draws[0] < 0.4
    assert draws[-1] > 3.6


@given(st.one_of(st.none(), st.floats(0, 100)))
def test_only_what_is_full_or_away_is_repeatable(retry_after: float | None) -> None:
    for kind in PathlensError.__subclasses__():
        expected = kind in (UnavailableError, ResourceExhaustedError) and retry_after is not None
        assert is_repeatable(kind("No.", retry_after=retry_after)) == expected


def test_repetition_follows_the_arguments_of_both_controllers() -> None:
    arguments = repetition(RetryPolicy(), math.inf)
    assert Retrying(**arguments).reraise
    assert AsyncRetrying(**arguments).reraise


@pytest.mark.parametrize(
    "values", [(0, 0.1, 5.0), (4, 0.0, 5.0), (4, 1.0, 0.5), (4, math.nan, 5.0), (4, 0.1, math.inf), (4, 0.1, math.nan)]
)
def test_a_policy_out_of_range_is_refused(values: tuple[int, float, float]) -> None:
    with pytest.raises(InvalidRequestError):
        RetryPolicy(*values)


def test_the_policy_of_a_client_is_the_default_unless_another_is_given() -> None:
    with serving(ScriptedService(*[RESTARTING] * 9)) as service:
        with Client(service.address) as client, pytest.raises(UnavailableError):
            client.list_models()
        assert len(service.seen) == RetryPolicy().attempts == 4
