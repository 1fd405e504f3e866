"""Odd calls against the real service; tests/reliability/fuzz.py sends a hundred times as many of the same."""

import asyncio
from collections.abc import Coroutine, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import Any, TypeVar

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2

from pathlens.bundle.archive import pack
from pathlens.bundle.store import save_bundle
from pathlens.errors import InternalError, InvalidRequestError
from pathlens.wire.status import status_from_error
from pathlens.wire.v1 import explanation_service_pb2 as pb
from reliability.fuzz_call import CONNECTION, SERVICE, FuzzCall
from reliability.fuzz_cases import KINDS, fuzz_call, fuzz_call_of
from reliability.fuzz_frames import path_that_is_no_text
from reliability.fuzz_judge import judged
from reliability.fuzz_sender import FuzzSender, Outcome
from reliability.served_process import ServedProcess
from tiny_bundle import tiny_bundle

CALLS = 30
CONCURRENCY = 8
Result = TypeVar("Result")


@dataclass(frozen=True)
class Fuzzed:
    service: ServedProcess
    processes: dict[int, str]
    runner: asyncio.Runner
    sender: FuzzSender
    known_answer: bytes

    def run(self, work: Coroutine[Any, Any, Result]) -> Result:
        return self.runner.run(work)


@pytest.fixture(scope="module")
def fuzzed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fuzzed]:
    """A service, and what it is and says before anything odd is sent."""
    folder = tmp_path_factory.mktemp("fuzzed")
    save_bundle(tiny_bundle(), folder / "bundle")
    with ServedProcess(pack(folder / "bundle", folder), folder) as service, asyncio.Runner() as runner:
        sender = runner.run(opened(service))
        yield Fuzzed(service, service.processes(), runner, sender, runner.run(known_answer(sender)))
        runner.run(sender.__aexit__(None, None, None))


async def opened(service: ServedProcess) -> FuzzSender:
    return await FuzzSender(service.address).__aenter__()


def known_call() -> FuzzCall:
    image = pb.Image(tensor=pb.Tensor(data_type=pb.DATA_TYPE_UINT8, shape=[9, 9], data=bytes(range(81))))
    return FuzzCall("known", SERVICE + "Explain", (pb.ExplainRequest(image=image).SerializeToString(),))


async def known_answer(sender: FuzzSender) -> bytes:
    outcome = await sender.send(known_call())
    assert outcome.code is grpc.StatusCode.OK, outcome
    answer = pb.ExplainResponse.FromString(outcome.responses[0])
    answer.ClearField("timings")
    return answer.SerializeToString(deterministic=True)


async def wrong(sender: FuzzSender, calls: list[FuzzCall]) -> list[tuple[int, list[str]]]:
    limit = asyncio.Semaphore(CONCURRENCY)

    async def send(call: FuzzCall) -> list[str]:
        async with limit:
            return judged(call, await sender.send(call))

    found = await asyncio.gather(*map(send, calls))
    return [(number, words) for number, words in enumerate(found) if words]


@pytest.mark.parametrize("kind", KINDS)
def test_odd_calls_are_answered_or_refused_in_our_own_words(fuzzed: Fuzzed, kind: str) -> None:
    calls = [fuzz_call_of(Random(f"{kind}:{number}"), kind) for number in range(CALLS)]
    assert fuzzed.run(wrong(fuzzed.sender, calls)) == []
    assert fuzzed.run(known_answer(fuzzed.sender)) == fuzzed.known_answer


def test_a_path_that_is_no_text_does_not_close_the_port(fuzzed: Fuzzed) -> None:
    # It ends grpc's own server.
    fuzzed.run(fuzzed.sender.send(FuzzCall("connections", CONNECTION, (path_that_is_no_text(),))))
    assert fuzzed.run(known_answer(fuzzed.sender)) == fuzzed.known_answer
    assert "gRPC has closed port" in fuzzed.service.log.read_text()


def test_no_process_was_replaced(fuzzed: Fuzzed) -> None:
    assert sorted(fuzzed.processes.values()) == ["JVM", "gateway", "worker"]
    assert fuzzed.service.processes() == fuzzed.processes


def test_the_gateway_counts_no_defect_of_ours(fuzzed: Fuzzed) -> None:
    counters = fuzzed.service.counters()
    codes = {key[1] for key, value in counters.items() if key[0] == "pathlens_requests_total" and value}
    assert {"OK", "INVALID_ARGUMENT", "NOT_FOUND", "FAILED_PRECONDITION"} <= codes
    assert codes.isdisjoint({"INTERNAL", "UNKNOWN", "UNAVAILABLE"})


def test_a_seed_makes_the_same_calls_again() -> None:
    assert [fuzz_call(3, number) for number in range(30)] == [fuzz_call(3, number) for number in range(30)]
    assert fuzz_call(3, 0) != fuzz_call(4, 0)


def test_a_call_can_be_kept_in_a_file(tmp_path: Path) -> None:
    for number in range(50):
        call = fuzz_call(0, number)
        call.save(tmp_path / "call.json", [])
        assert FuzzCall.load(tmp_path / "call.json") == call


def refused(error: Exception) -> Outcome:
    status = status_from_error(error)
    code = next(code for code in grpc.StatusCode if code.value[0] == status.code)
    return Outcome(code, status.message, status.SerializeToString(), (), 0.1)


def predicted(**fields: float) -> Outcome:
    response = pb.PredictResponse(predictions=[pb.Prediction(logit=1.0, **fields)])  # type: ignore[arg-type]
    return Outcome(grpc.StatusCode.OK, "", b"", (response.SerializeToString(),), 0.1)


def foreign() -> bytes:
    status = status_pb2.Status(code=3, message="no")
    status.details.add().Pack(error_details_pb2.ErrorInfo(reason="OPTION_INVALID", domain="elsewhere"))
    return bytes(status.SerializeToString())


SOUND = refused(InvalidRequestError("The image has no bytes.", reason="IMAGE_EMPTY"))
JUDGEMENTS = {
    "a sound refusal": (SOUND, ""),
    "a sound answer": (predicted(probability=0.5), ""),
    "a defect of ours": (refused(InternalError("It failed.")), "INTERNAL"),
    "a reason that nobody documents": (refused(InvalidRequestError("No.", reason="WHO_KNOWS")), "not documented"),
    "a reason of somebody else's": (replace(SOUND, message="no", details=foreign()), "without an ErrorInfo"),
    "no reason at all": (replace(SOUND, details=b""), "without an ErrorInfo"),
    "a path": (refused(InvalidRequestError("See /tmp/x/y.", reason="IMAGE_EMPTY")), "show"),
    "a class of Python's": (refused(InvalidRequestError("A ValueError.", reason="IMAGE_EMPTY")), "show"),
    "a call that hangs": (Outcome(grpc.StatusCode.DEADLINE_EXCEEDED, "late", b"", (), 60.0), "hung"),
    "a probability of NaN": (predicted(probability=float("nan")), "not finite"),
    "a probability above one": (predicted(probability=1.5), "not finite"),
    "bytes that are no message": (Outcome(grpc.StatusCode.OK, "", b"", (b"\xff",), 0.1), "no message"),
}


@pytest.mark.parametrize(("outcome", "found"), JUDGEMENTS.values(), ids=JUDGEMENTS.keys())
def test_the_judge_says_what_is_wrong(outcome: Outcome, found: str) -> None:
    words = "; ".join(judged(FuzzCall("values", SERVICE + "Predict", (b"",)), outcome))
    assert found in words if found else not words
