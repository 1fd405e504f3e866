"""A minute of chaos on a real service: kills, departures, bad and oversized requests; `make soak` takes longer."""

import asyncio
from collections.abc import Sequence

import pytest

from reliability.chaos import Chaos, Observations, Plan
from reliability.resources import ROLES
from reliability.verdict import Promise, judge

pytestmark = pytest.mark.timeout(900)

SEED = 7
# Java and torch take three seconds of computing to start. `make soak`, which has the machine for itself, asks for five
# seconds; beside other programs on two cores it takes as much longer as they leave less time.
RECOVERY_SECONDS = 30.0
# Answers that a run is worth nothing without, and what a service refuses.
ANSWERED = ("Predict", "Explain", "BatchExplain", "StreamExplain", "GetClassPathway", "ListModels", "GetModel")
REFUSED = ("malformed", "too large to send")


@pytest.fixture(scope="module")
def observations(tmp_path_factory: pytest.TempPathFactory) -> Observations:
    return asyncio.run(Chaos(Plan.short(), SEED, tmp_path_factory.mktemp("chaos")).run())


@pytest.fixture(scope="module")
def promises(observations: Observations) -> Sequence[Promise]:
    return judge(observations, RECOVERY_SECONDS)


def test_every_promise_is_kept(promises: Sequence[Promise]) -> None:
    assert [promise for promise in promises if not promise.kept] == []


def test_a_worker_and_a_jvm_were_killed(observations: Observations) -> None:
    assert {kill.victim for kill in observations.kills} == {"worker", "jvm"}


@pytest.mark.parametrize("kind", ANSWERED)
def test_every_call_was_answered(observations: Observations, kind: str) -> None:
    assert observations.tally.outcomes[kind, "OK"] > 0


@pytest.mark.parametrize("kind", REFUSED)
def test_bad_requests_were_made(observations: Observations, kind: str) -> None:
    assert sum(count for (one, _), count in observations.tally.outcomes.items() if one == kind) > 0


def test_callers_left(observations: Observations) -> None:
    assert observations.tally.departures["Predict"] > 0
    assert observations.tally.departures["StreamExplain"] > 0


def test_every_part_of_the_service_was_watched(observations: Observations) -> None:
    assert {sample.role for sample in observations.resources.samples} == set(ROLES)
    assert [watch.name for watch in observations.watches if watch.seen] == ["readiness", "liveness"]
