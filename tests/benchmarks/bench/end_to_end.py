"""The third part: a gateway and a real TorchServe, called over loopback by a client that shares the machine."""

import asyncio
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import grpc
import numpy as np

from benchmarks.bench.handler import CALLS, archive_of, call_message
from benchmarks.bench.in_process import Row, Tell
from benchmarks.bench.routes import answers, requests
from benchmarks.bench.settings import Settings
from benchmarks.bench.subjects import Subject
from benchmarks.load_client import LoadClient
from pathlens.bundle.store import load_bundle
from pathlens.explainer import Explainer
from pathlens.explanation import ExplanationRequest
from pathlens.wire.v1 import explanation_service_pb2 as pb
from reliability.served_process import ServedProcess

IN_FLIGHT = 16
LEAST_SHARE = 0.9
"""Of the explainer's own throughput, in the same process and on the same requests."""
MOST_ADDED_MILLISECONDS = 2.0
_SERVICE = "/pathlens.v1.ExplanationService/"
_STAGES = ("decode", "predict", "pathway", "gradient", "encode")
_WARM_UP_SECONDS = 1.0
_CALL_SECONDS = 60.0
_REPLIES: Mapping[str, type[pb.PredictResponse] | type[pb.ExplainResponse]] = {
    "Predict": pb.PredictResponse,
    "Explain": pb.ExplainResponse,
}


def measure(subject: Subject, settings: Settings, tell: Tell) -> Iterator[list[Row] | str]:
    """Measure Predict and Explain with one and with sixteen calls in flight.

    The explainer runs in this process before and after each load, while the service is idle, on the same requests: JPEG
    files, which it decodes, in batches of as many as were in flight.

    Args:
        subject: What is served.
        settings: How.
        tell: Is told what is measured next.

    Yields:
        The rows of one call after the other; and, as text, what is wrong.
    """
    archive = archive_of(subject, settings)
    explainer = load_bundle(archive.parent / "bundle").explainer()
    picture, label = subject.pictures[0], int(subject.predicted[0])
    tell("starting the service")
    # The worker inherits it; without it, it would use every core.
    os.environ["OMP_NUM_THREADS"] = str(settings.threads)
    with ServedProcess(archive, archive.parent) as service:
        for call, route in CALLS.items():
            tell(f"{call} end to end")
            request = call_message(route, picture, label).SerializeToString()
            asked = requests(route, [picture], [label])
            replies, added, handled, latencies = _one_after_the_other(service, call, request, settings.load_seconds)
            yield from _wrong(call, replies[-1], explainer, asked)
            alone = _per_second(explainer, asked, settings.load_seconds / 4)
            p50 = float(np.median(added))
            yield [
                {
                    "name": call,
                    "in_flight": 1,
                    "answered_per_second": round(len(latencies) / sum(latencies), 1),
                    "in_process_per_second": round(alone, 1),
                    "p50_ms": round(1e3 * float(np.median(latencies)), 3),
                    "handler_p50_ms": round(1e3 * float(np.median(handled)), 3),
                    "added_p50_ms": round(1e3 * p50, 3),
                    "mean_batch": 1.0,
                    "target": MOST_ADDED_MILLISECONDS,
                    "meets": 1e3 * p50 <= MOST_ADDED_MILLISECONDS,
                }
            ]
            several = asked * IN_FLIGHT
            before = _per_second(explainer, several, settings.load_seconds / 4)
            row = asyncio.run(_load(service, call, request, settings.load_seconds))
            within = (before + _per_second(explainer, several, settings.load_seconds / 4)) / 2
            share = row["answered_per_second"] / within
            yield [
                row
                | {
                    "in_process_per_second": round(within, 1),
                    "share": round(share, 3),
                    "target": LEAST_SHARE,
                    "meets": share >= LEAST_SHARE,
                }
            ]


def _one_after_the_other(
    service: ServedProcess, call: str, request: bytes, seconds: float
) -> tuple[list[bytes], list[float], list[float], list[float]]:
    """Call again and again; return replies, what each call took beyond its handler's stages, these, and the whole."""
    replies: list[bytes] = []
    added, handled, latencies = list[float](), list[float](), list[float]()
    with grpc.insecure_channel(service.address, options=(("grpc.enable_http_proxy", 0),)) as channel:
        stub: Any = channel.unary_unary(_SERVICE + call)
        started = time.perf_counter()
        while (began := time.perf_counter()) < started + _WARM_UP_SECONDS + seconds or not latencies:
            reply = stub(request, timeout=_CALL_SECONDS)
            latency = time.perf_counter() - began
            replies = [reply]
            if began < started + _WARM_UP_SECONDS:
                continue
            timings = _REPLIES[call].FromString(reply).timings
            handled.append(sum(getattr(timings, stage).ToNanoseconds() for stage in _STAGES) / 1e9)
            latencies.append(latency)
            added.append(latency - handled[-1])
    return replies, added, handled, latencies


async def _load(service: ServedProcess, call: str, request: bytes, seconds: float) -> Row:
    async with LoadClient(service.address, _SERVICE + call, request) as client:
        await client.closed_loop(IN_FLIGHT, _WARM_UP_SECONDS)
        batches = _batches(service)
        load = await client.closed_loop(IN_FLIGHT, seconds)
        batches = _batches(service) - batches
    summary = load.summary()
    return {
        "name": call,
        "in_flight": IN_FLIGHT,
        "answered_per_second": summary["answered_per_second"],
        "p50_ms": summary["p50_ms"],
        "mean_batch": round(load.codes["OK"] / max(1.0, batches), 2),
        "outcomes": summary["outcomes"],
    }


def _batches(service: ServedProcess) -> float:
    """Count what was computed together so far, which the gateway observes once each."""
    return sum(
        value
        for (metric, *labels), value in service.counters().items()
        if metric == "pathlens_stage_duration_seconds_count" and "predict" in labels
    )


def _per_second(explainer: Explainer, asked: Sequence[ExplanationRequest], seconds: float) -> float:
    answers(explainer, asked)
    answered, started = 0, time.perf_counter()
    while (spent := time.perf_counter() - started) < seconds or not answered:
        answers(explainer, asked)
        answered += len(asked)
    return answered / max(spent, time.perf_counter() - started)


def _wrong(call: str, reply: bytes, explainer: Explainer, asked: Sequence[ExplanationRequest]) -> list[str]:
    found = _REPLIES[call].FromString(reply).predictions[0]
    (expected,) = answers(explainer, asked)
    best = expected.predictions[0]
    if found.class_index == best.class_index and abs(found.logit - best.logit) <= 1e-4 * max(1, abs(best.logit)):
        return []
    return [f"{call} end to end: class {found.class_index} with logit {found.logit}, in-process {best}"]
