"""The judges of the chaos run: what is wrong is noticed, and what is right is let pass."""

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pathlens.explanation import ExplanationResult
from pathlens.wire.requests import request_from_explain, request_from_predict
from pathlens.wire.responses import explain_response, predict_response
from pathlens.wire.v1 import explanation_service_pb2 as pb
from reliability.case import Case, Outcome
from reliability.chaos import Observations, Phase
from reliability.faults import Kill
from reliability.health_watch import HealthWatch
from reliability.promises import NO_OUTCOME, Circumstances, Manner, Refusal, refusal_is_right
from reliability.questions import Questions
from reliability.resources import Life, Resources, Role, Sample
from reliability.trend import Trend
from reliability.verdict import judge
from tiny_bundle import tiny_explainer

CALM = Circumstances()
FAULT = Circumstances(fault=True)
HURRIED = Circumstances(Manner(deadline=0.1))
LEAVING = Circumstances(Manner(leaves_after=0.1))
STOPPING = Circumstances(stopping=True)
RESTARTING = Refusal("UNAVAILABLE", "WORKER_RESTARTING", 2.5)
FULL = Refusal("RESOURCE_EXHAUSTED", "QUEUE_FULL", 1.0)
OUT_OF_TIME = Refusal("DEADLINE_EXCEEDED")
CANCELLED = Refusal("CANCELLED")
STOPPED = Refusal("UNAVAILABLE", "STOPPING", 2.5)


@pytest.mark.parametrize(
    ("refusal", "circumstances"),
    [(RESTARTING, FAULT), (FULL, CALM), (OUT_OF_TIME, HURRIED), (CANCELLED, LEAVING), (STOPPED, STOPPING)],
)
def test_a_refusal_is_right_in_its_circumstances_alone(refusal: Refusal, circumstances: Circumstances) -> None:
    assert refusal_is_right(refusal, frozenset(), True, circumstances)
    others = {CALM, FAULT, HURRIED, LEAVING, STOPPING} - {circumstances}
    always = refusal is FULL
    assert [one for one in others if refusal_is_right(refusal, frozenset(), True, one)] == (
        list(others) if always else []
    )


@pytest.mark.parametrize("refusal", [RESTARTING, FULL, STOPPED])
def test_who_may_come_back_has_to_hear_when(refusal: Refusal) -> None:
    circumstances = Circumstances(fault=True, stopping=True)
    assert not refusal_is_right(replace(refusal, retry_after=None), frozenset(), True, circumstances)


@pytest.mark.parametrize("refusal", [RESTARTING, FULL])
def test_what_needs_no_worker_is_answered_during_a_fault(refusal: Refusal) -> None:
    assert not refusal_is_right(refusal, frozenset(), False, FAULT)


@pytest.mark.parametrize("code", ["INTERNAL", "UNKNOWN", NO_OUTCOME])
def test_defects_are_never_right(code: str) -> None:
    worst = Circumstances(Manner(deadline=0.1, leaves_after=0.1), fault=True, stopping=True)
    assert not refusal_is_right(Refusal(code), frozenset(), True, worst)


def questions(seed: int = 0) -> Questions:
    return Questions(tiny_explainer(), np.random.default_rng(seed))


def outcome(*responses: bytes, refusal: Refusal | None = None) -> Outcome:
    return Outcome(responses, refusal, 0.0, 0.1)


def answers(cases: Sequence[Case]) -> list[bytes]:
    """What the explainer answers to each case."""
    found = []
    for case in cases:
        if case.method == "Predict":
            (answer,) = tiny_explainer().answer([request_from_predict(pb.PredictRequest.FromString(case.payloads[0]))])
            assert isinstance(answer, ExplanationResult)
            found.append(predict_response(answer).SerializeToString())
        else:
            (answer,) = tiny_explainer().answer([request_from_explain(pb.ExplainRequest.FromString(case.payloads[0]))])
            assert isinstance(answer, ExplanationResult)
            found.append(explain_response(answer).SerializeToString())
    return found


@pytest.mark.parametrize("method", ["Predict", "Explain"])
def test_somebody_elses_answer_is_wrong(method: str) -> None:
    maker = questions()
    cases = [maker.predict() if method == "Predict" else maker.explain() for _ in range(20)]
    cases = [case for case in cases if case.check is not None]
    responses = answers(cases)
    for mine, case in enumerate(cases):
        right = [i for i, response in enumerate(responses) if case.complaint(outcome(response), CALM) is None]
        assert right == [mine]


def test_an_answer_of_a_stream_belongs_to_its_id() -> None:
    maker = questions()
    drawn = (maker.stream(4) for _ in range(100))
    case = next(case for case in drawn if all(item.check is not None for item in case.items.values()))
    requests = [pb.StreamExplainRequest.FromString(payload) for payload in case.payloads]
    alone = [Case("", "Explain", (request.request.SerializeToString(),)) for request in requests]
    results = [pb.ExplainResponse.FromString(answer) for answer in answers(alone)]
    responses = [
        pb.StreamExplainResponse(id=request.id, result=pb.ExplainResult(response=result)).SerializeToString()
        for request, result in zip(requests, results, strict=True)
    ]
    assert case.complaint(outcome(*reversed(responses)), CALM) is None
    assert case.complaint(outcome(*responses[1:]), CALM) is not None
    assert case.complaint(outcome(responses[0], *responses[:-1]), CALM) is not None
    swapped = pb.StreamExplainResponse(id=requests[0].id, result=pb.ExplainResult(response=results[1]))
    assert case.complaint(outcome(swapped.SerializeToString(), *responses[1:]), CALM) is not None


def test_an_answer_where_none_is_right_is_wrong() -> None:
    case = Case("malformed", "Predict", (b"",), None, {"INVALID_ARGUMENT IMAGE_MISSING"}, needs_worker=False)
    assert case.complaint(outcome(refusal=Refusal("INVALID_ARGUMENT", "IMAGE_MISSING")), CALM) is None
    assert case.complaint(outcome(refusal=Refusal("INVALID_ARGUMENT", "IMAGE_EMPTY")), CALM) is not None
    assert case.complaint(outcome(b""), CALM) is not None


def test_a_slope_is_found_in_noise_and_not_made_of_it() -> None:
    rng = np.random.default_rng(0)
    seconds = np.arange(300.0)
    noise = rng.normal(0.0, 2.0, seconds.size)
    level = Trend.of(list(zip(seconds, 100.0 + noise, strict=True)))
    rising = Trend.of(list(zip(seconds, 100.0 + 3.0 * seconds / 60.0 + noise, strict=True)))
    assert level is not None
    assert rising is not None
    assert abs(level.slope) < 3 * level.error
    assert rising.slope == pytest.approx(3.0, abs=3 * rising.error)
    assert level.growth < 1.0 < rising.growth


def observed() -> Observations:
    """A run without a fault of the service."""
    served: Any = None
    resources = Resources(served)
    for second in range(180):
        roles: tuple[tuple[Role, int], ...] = (("gateway", 1), ("jvm", 2), ("worker", 3 if second < 30 else 4))
        resources.samples += [Sample(second, role, pid, 100 * 2**20, 20) for role, pid in roles]
    resources.lives = {
        2: Life("jvm", 2, 1, 0.0, 180.0),
        3: Life("worker", 3, 2, 0.0, 30.0),
        4: Life("worker", 4, 2, 31.0, 180.0),
    }
    found = Observations(0, 0.0, resources, kills=[Kill("worker", 3, 30.0, 32.5)], exit_status=0)
    found.tally.outcomes["Predict", "OK"] = 10
    found.phases = [Phase("storm", 0.0, 60.0), Phase("calm", 60.0, 178.0), Phase("drain", 178.0, 180.0)]
    for name in ("readiness", "liveness"):
        channel: Any = None
        watch = HealthWatch(channel, name)
        watch.seen = [(0.0, True)]
        found.watches.append(watch)
    return found


def broken(observations: Observations) -> list[str]:
    return [promise.name for promise in judge(observations) if not promise.kept]


def test_a_run_without_a_fault_keeps_every_promise() -> None:
    assert broken(observed()) == []


def test_a_slow_recovery_and_none_at_all_are_noticed() -> None:
    for recovered in (35.1, math.inf):
        observations = observed()
        observations.kills[0].recovered = recovered
        assert broken(observations) == ["well again within 5 s of a kill"]


def test_a_worker_that_ends_by_itself_is_noticed() -> None:
    observations = observed()
    observations.resources.lives[4] = Life("worker", 4, 2, 31.0, 90.0)
    observations.resources.lives[5] = Life("worker", 5, 2, 92.0, 180.0)
    assert broken(observations) == ["no process ends that was not killed"]


def test_a_leak_is_noticed() -> None:
    observations = observed()
    observations.resources.samples = [
        replace(one, resident_bytes=one.resident_bytes + int(one.at * 2**20 / 5), descriptors=20 + int(one.at / 10))
        if one.role == "gateway"
        else one
        for one in observations.resources.samples
    ]
    assert set(broken(observations)) == {
        "gateway: descriptors level in the storm",
        "gateway: descriptors level in the calm",
        "gateway: MiB level in the calm",
    }


def test_health_that_lies_is_noticed() -> None:
    observations = observed()
    observations.watches[0].seen += [(70.0, False), (75.0, True)]
    assert broken(observations) == ["health says what is"]


@pytest.mark.parametrize("status", ["INTERNAL INTERNAL", "UNKNOWN", NO_OUTCOME])
def test_a_defect_is_noticed(status: str) -> None:
    observations = observed()
    observations.tally.outcomes["Predict", status] = 1
    assert "nothing is INTERNAL or UNKNOWN" in broken(observations)


def test_what_is_left_of_it_is_noticed(tmp_path: Path) -> None:
    observations = observed()
    observations.leftovers = [f"file {tmp_path}"]
    observations.exit_status = None
    assert broken(observations) == ["SIGTERM drains, and it exits with 0", "nothing is left"]
