"""When TorchServe is restarted, how often, and when not any more; the real one is in tests/service."""

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pathlens import supervision
from pathlens.errors import ServerStartError
from pathlens.model_version import ModelVersion
from pathlens.supervision import Supervisor

START_SECONDS = 7.0


class ScriptedTorchServe:
    """Stands in for the process: its starts fail as they are told to.

    Attributes:
        failures: What the next starts raise.
        slow: While set, a start lasts until `release`.
        events: What was done with it.
    """

    def __init__(self) -> None:
        self.is_running = True
        self.failures: list[Exception] = []
        self.slow = False
        self.events: list[str] = []
        self.release = threading.Event()

    @property
    def pid(self) -> int:
        # Asked for by whoever breaks a start off. The process is a made-up one.
        self.release.set()
        raise ServerStartError("there is no process")

    def start(self) -> None:
        self.events.append("start")
        if self.slow and self.release.wait(20):
            raise ServerStartError("The JVM was killed.")
        if self.failures:
            raise self.failures.pop(0)
        self.is_running = True

    def wait_until_ready(self, check: Callable[[ModelVersion], None]) -> None:
        check(ModelVersion("digits", "1.0"))

    def end(self, drain_seconds: float) -> None:
        assert drain_seconds == 0
        self.is_running = False
        self.events.append("end")


class RecordingEntrance:
    def __init__(self, torchserve: ScriptedTorchServe) -> None:
        self.unready_seconds = 0.0
        self.reasons: list[str] = []
        self.retries_after: list[float] = []
        self._torchserve = torchserve

    def suspend(self, reason: str, retry_after: float) -> None:
        self.reasons.append(reason)
        self.retries_after.append(retry_after)
        self._torchserve.events.append("suspend")

    def resume(self) -> None:
        self.unready_seconds = 0.0
        self._torchserve.events.append("resume")

    def give_up(self) -> None:
        self._torchserve.events.append("give up")


class Supervised:
    """A supervisor with everything around it."""

    def __init__(self, max_restarts: int = 3) -> None:
        self.torchserve = ScriptedTorchServe()
        self.entrance = RecordingEntrance(self.torchserve)
        self.supervisor = Supervisor(
            cast("Any", self.torchserve), lambda _: None, self.entrance, 5.0, max_restarts, START_SECONDS
        )
        self.supervisor.start()

    def die(self) -> None:
        """End TorchServe and wait until it is back, or given up."""
        count = self.torchserve.events.count("resume")
        self.torchserve.is_running = False
        wait_until(lambda: self.torchserve.events.count("resume") > count or self.supervisor.failure is not None)


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)


@pytest.fixture(autouse=True)
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervision, "_POLL_SECONDS", 0.005)
    monkeypatch.setattr(supervision, "_FIRST_PAUSE_SECONDS", 0.001)


@pytest.fixture
def supervised() -> Iterator[Supervised]:
    made = Supervised()
    yield made
    made.supervisor.stop()


def test_a_torchserve_that_is_well_is_left_alone(supervised: Supervised) -> None:
    supervised.entrance.unready_seconds = 4.9
    time.sleep(0.1)
    assert supervised.torchserve.events == []


def test_calls_are_refused_before_and_taken_after_the_restart(supervised: Supervised) -> None:
    supervised.die()
    assert supervised.torchserve.events == ["suspend", "end", "start", "resume"]
    assert supervised.entrance.reasons == ["ended"]


def test_a_deaf_torchserve_is_restarted(supervised: Supervised) -> None:
    supervised.entrance.unready_seconds = 5.1
    wait_until(lambda: "resume" in supervised.torchserve.events)
    assert supervised.entrance.reasons == ["deaf"]


@pytest.mark.parametrize("failure", [ServerStartError("no memory"), ValueError("a defect")])
def test_a_start_that_fails_is_followed_by_another(supervised: Supervised, failure: Exception) -> None:
    supervised.torchserve.failures = [failure, failure]
    supervised.die()
    assert supervised.entrance.reasons == ["ended", "start_failed", "start_failed"]


def test_starts_that_fail_too_often_end_in_giving_up(supervised: Supervised, caplog: pytest.LogCaptureFixture) -> None:
    supervised.torchserve.failures = [ServerStartError("no memory")] * 10
    supervised.die()
    assert supervised.torchserve.events.count("start") == 3
    assert supervised.torchserve.events[-2:] == ["give up", "end"]
    assert supervised.supervisor.failure is not None
    assert supervised.supervisor.failure.reason == "TORCHSERVE_DIED"
    assert [record.levelname for record in caplog.records].count("CRITICAL") == 1


@pytest.mark.parametrize("what", ["end", "suspend"])
def test_a_supervisor_that_cannot_go_on_ends_the_service(
    supervised: Supervised, what: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(supervised.torchserve if what == "end" else supervised.entrance, what, fail)
    supervised.die()
    wait_until(lambda: "give up" in supervised.torchserve.events)
    failure = supervised.supervisor.failure
    assert failure is not None
    assert failure.reason == "TORCHSERVE_DIED"
    assert "OSError" in failure.message
    assert [record.levelname for record in caplog.records].count("CRITICAL") == 1


def test_a_torchserve_that_dies_after_each_restart_is_given_up(supervised: Supervised) -> None:
    for _ in range(4):
        supervised.die()
    assert supervised.torchserve.events.count("start") == 3
    assert supervised.supervisor.failure is not None


def test_a_time_of_health_makes_earlier_restarts_forgotten(
    supervised: Supervised, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervision, "_HEALTHY_SECONDS", 0.02)
    for _ in range(6):
        supervised.die()
        wait_until(lambda: supervised.supervisor._restarts == 0)
    assert supervised.supervisor.failure is None


def test_a_stop_breaks_off_a_start() -> None:
    supervised = Supervised()
    supervised.torchserve.slow = True
    supervised.torchserve.is_running = False
    wait_until(lambda: "start" in supervised.torchserve.events)
    started = time.monotonic()
    supervised.supervisor.stop()
    assert time.monotonic() - started < 5
    assert "resume" not in supervised.torchserve.events


def test_a_stop_breaks_off_a_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervision, "_FIRST_PAUSE_SECONDS", 20.0)
    supervised = Supervised()
    supervised.torchserve.failures = [ServerStartError("no memory")]
    supervised.torchserve.is_running = False
    wait_until(lambda: supervised.torchserve.events.count("suspend") == 2)
    started = time.monotonic()
    supervised.supervisor.stop()
    assert time.monotonic() - started < 5
    assert supervised.torchserve.events.count("start") == 1


@given(restarts=st.integers(0, 10_000))
def test_pauses_never_shrink_and_are_bounded(restarts: int) -> None:
    assert 0 <= supervision._pause(restarts) <= supervision._pause(restarts + 1) <= 30.0


def test_the_first_restart_follows_at_once() -> None:
    assert supervision._pause(0) == 0


def test_callers_are_told_to_come_back_after_what_the_last_start_took(supervised: Supervised) -> None:
    supervised.die()
    supervised.die()
    first, second = supervised.entrance.retries_after
    assert first == START_SECONDS
    # The start in between took no time.
    assert second < 1
