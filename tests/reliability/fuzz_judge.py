"""Says what is wrong with what came back from the service."""

import math
import re
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import grpc
import numpy as np
from google.protobuf.message import DecodeError
from google.rpc import code_pb2, error_details_pb2, status_pb2

from pathlens.wire.v1 import explanation_service_pb2 as pb
from reliability.fuzz_call import BATCH, CONNECTION, SERVICE, STREAM, FuzzCall
from reliability.fuzz_sender import PATIENCE_SECONDS, Outcome

_ERRORS = Path(__file__).parents[2] / "docs" / "errors.md"
_INTERNALS = re.compile(
    r"Traceback|site-packages|/(?:home|usr|tmp|work|root|opt|var)/|\.py\b|0x[0-9a-f]{6,}|<class|object at|org\.pytorch"
    r"|java\.|torch\.|numpy|PIL\.|protobuf|\b[A-Z]\w+(?:Error|Exception)\b"
)
# Nothing restarts while it is being fuzzed, and no input is our own defect.
_NEVER = frozenset({"INTERNAL", "UNKNOWN", "UNAVAILABLE", "DATA_LOSS", "ABORTED", "UNIMPLEMENTED"})
# Decided by gRPC, not by us: they carry no details.
_BY_GRPC = frozenset({"DEADLINE_EXCEEDED", "CANCELLED"})
_STATUS_ON_THE_WIRE = re.compile(rb"grpc-status[\x01\x02](\d+)")
_TOLERANCE = 1e-4


@cache
def documented_reasons() -> frozenset[str]:
    """Read the reasons that docs/errors.md explains."""
    return frozenset(re.findall(r"`([A-Z_]{3,})`", _ERRORS.read_text()))


def judged(call: FuzzCall, outcome: Outcome) -> list[str]:
    """Judge what came back.

    Args:
        call: What was sent.
        outcome: What came back.

    Returns:
        What is wrong with it, a sentence each; nothing if all is well.
    """
    if call.method == CONNECTION:
        # What gRPC answers to broken HTTP/2 is its own; what reaches us, the gateway counts.
        return []
    found = list(_wrong_status(call, outcome))
    if outcome.seconds > PATIENCE_SECONDS:
        found.append(f"the call took {outcome.seconds:.0f} s")
    try:
        found += _wrong_responses(call, outcome)
    except DecodeError:
        found.append("a response is no message of this call")
    return found


def summary(call: FuzzCall, outcome: Outcome) -> list[str]:
    """Name what each case came to, for the table: OK, the reason of an error, or a code that has none.

    Args:
        call: What was sent.
        outcome: What came back.

    Returns:
        A name for each case that was answered.
    """
    if outcome.code is None:
        found = _STATUS_ON_THE_WIRE.search(outcome.responses[0])
        return ["connection " + ("answered" if found else "ended" if outcome.responses[0] else "silent")]
    if outcome.code is not grpc.StatusCode.OK:
        return [_reason(outcome) or outcome.code.name]
    if call.method in (BATCH, STREAM):
        return [_item_reason(result) for result in _results(call, outcome)] or ["OK"]
    return ["OK"]


def _reason(outcome: Outcome) -> str:
    return str(_info(status_pb2.Status.FromString(outcome.details)).reason)


def _item_reason(result: pb.ExplainResult) -> str:
    return _info(result.status).reason if result.status.code else "OK"


def _info(status: status_pb2.Status) -> error_details_pb2.ErrorInfo:
    info = error_details_pb2.ErrorInfo()
    for detail in status.details:
        if detail.Unpack(info):
            break
    return info


def _results(call: FuzzCall, outcome: Outcome) -> list[pb.ExplainResult]:
    if call.method == STREAM:
        return [pb.StreamExplainResponse.FromString(content).result for content in outcome.responses]
    return list(pb.BatchExplainResponse.FromString(outcome.responses[0]).results)


def _wrong_status(call: FuzzCall, outcome: Outcome) -> Iterator[str]:
    code = outcome.code
    if code is grpc.StatusCode.OK or code is None:
        return
    if code.name in _NEVER:
        yield f"{code.name}: {outcome.message}"
    if leak := _INTERNALS.search(outcome.message):
        yield f"the message shows {leak[0]!r}"
    if code.name in _BY_GRPC and not outcome.details:
        if call.timeout is None:
            yield f"{code.name} without a deadline of the caller's: the call hung"
        return
    # Metadata over 8 KiB are refused by gRPC before anybody reads the call.
    by_grpc = code is grpc.StatusCode.RESOURCE_EXHAUSTED and call.metadata and "metadata" in outcome.message
    if not outcome.details and not by_grpc and call.method.startswith(SERVICE):
        yield f"{code.name} without an ErrorInfo of ours: {outcome.message}"
    elif outcome.details:
        status = status_pb2.Status.FromString(outcome.details)
        yield from _wrong_error(status, code.name)
        if status.message != outcome.message:
            yield "the message of the call and the one of its details differ"


def _wrong_error(status: status_pb2.Status, code: str) -> Iterator[str]:
    name = code_pb2.Code.Name(status.code) if status.code in code_pb2.Code.values() else str(status.code)
    if name != code:
        yield f"the details say {name} and the call {code}"
    if name in _NEVER:
        yield f"{name}: {status.message}"
    info = _info(status)
    if info.domain != "pathlens":
        yield f"{name} without an ErrorInfo of ours: {status.message}"
    elif info.reason not in documented_reasons():
        yield f"reason {info.reason!r} is not documented"
    if not status.message:
        yield f"{name} without a message"
    for text in (status.message, *info.metadata.values()):
        if leak := _INTERNALS.search(text):
            yield f"the details show {leak[0]!r}: {text}"


def _wrong_responses(call: FuzzCall, outcome: Outcome) -> Iterator[str]:
    if not outcome.responses or not call.method.startswith(SERVICE):
        return
    if call.method == STREAM:
        yield from _wrong_stream(call, outcome)
    elif call.method == BATCH:
        expected = len(pb.BatchExplainRequest.FromString(call.messages[0]).items)
        results = _results(call, outcome)
        if len(results) != expected:
            yield f"{len(results)} results for {expected} items"
        for result in results:
            yield from _wrong_result(result)
    else:
        check = _CHECKS.get(call.method.removeprefix(SERVICE))
        if check is not None:
            yield from check(outcome.responses[0])


def _wrong_stream(call: FuzzCall, outcome: Outcome) -> Iterator[str]:
    answered = [pb.StreamExplainResponse.FromString(content) for content in outcome.responses]
    for response in answered:
        yield from _wrong_result(response.result)
    if outcome.code is grpc.StatusCode.OK:
        # An id that is too long comes back as its beginning.
        asked = sorted(pb.StreamExplainRequest.FromString(message).id[:79] for message in call.messages)
        if sorted(response.id[:79] for response in answered) != asked:
            yield "the ids of the answers are not those of the requests"


def _wrong_result(result: pb.ExplainResult) -> Iterator[str]:
    if result.status.code:
        if result.HasField("response"):
            yield "an item has both an error and an answer"
        yield from _wrong_error(result.status, code_pb2.Code.Name(result.status.code))
    else:
        yield from _wrong_explanations(result.response)


def _wrong_prediction(content: bytes) -> Iterator[str]:
    response = pb.PredictResponse.FromString(content)
    yield from _wrong_predictions(list(response.predictions))


def _wrong_explained(content: bytes) -> Iterator[str]:
    yield from _wrong_explanations(pb.ExplainResponse.FromString(content))


def _wrong_class_pathway(content: bytes) -> Iterator[str]:
    pathway = pb.GetClassPathwayResponse.FromString(content).class_pathway
    yield from _wrong_masks(list(pathway.pathway), pathway.sparsity)
    for frequency in pathway.frequencies:
        values = np.frombuffer(frequency.frequency.data, "<f4")
        if not ((values >= 0) & (values <= 1)).all():
            yield f"the frequencies of tap {frequency.tap} are no fractions"


def _wrong_predictions(predictions: list[pb.Prediction]) -> Iterator[str]:
    probabilities = [one.probability for one in predictions]
    if not probabilities:
        yield "no prediction"
    if not all(math.isfinite(one.logit) and 0.0 <= one.probability <= 1.0 for one in predictions):
        yield f"predictions are not finite: {probabilities}"
    if probabilities != sorted(probabilities, reverse=True):
        yield f"predictions are not in order: {probabilities}"
    classes = {one.class_index for one in predictions}
    total = math.fsum(probabilities)
    if len(classes) != len(predictions) or total > 1 + _TOLERANCE:
        yield f"predictions repeat a class, or sum to {total}"
    if classes == set(range(5)) and abs(total - 1) > _TOLERANCE:
        yield f"the probabilities of all classes sum to {total}"


def _wrong_explanations(response: pb.ExplainResponse) -> Iterator[str]:
    yield from _wrong_predictions(list(response.predictions))
    if not response.explanations:
        yield "no explanation"
    targets = [one.target.class_index for one in response.explanations]
    if len(set(targets)) != len(targets):
        yield f"targets repeat: {targets}"
    for explanation in response.explanations:
        yield from _wrong_explanation(explanation)


def _wrong_explanation(explanation: pb.Explanation) -> Iterator[str]:
    yield from _wrong_masks(list(explanation.pathway), explanation.sparsity)
    if explanation.HasField("class_pathway_iou") and not 0.0 <= explanation.class_pathway_iou <= 1.0:
        yield f"the IoU is {explanation.class_pathway_iou}"
    if explanation.HasField("faithfulness"):
        checked = explanation.faithfulness
        p, q = checked.confidence, checked.pathway_confidence
        if not (0.0 <= p <= 1.0 and 0.0 <= q <= 1.0 and 0.0 <= checked.confidence_drop <= 1.0):
            yield f"the confidences are {p} and {q}, the drop is {checked.confidence_drop}"
        elif p > _TOLERANCE and abs(checked.confidence_drop - max(0.0, p - q) / p) > _TOLERANCE:
            yield f"the drop is {checked.confidence_drop}, but the confidences are {p} and {q}"
    ranks = [rank for field, rank in explanation.typicality.ListFields() if field.name.endswith("_rank")]
    if not all(0.0 < rank < 1.0 for rank in ranks):
        yield f"the ranks are {ranks}"
    if explanation.HasField("map"):
        values = np.frombuffer(explanation.map.data, "<f4")
        if values.size != math.prod(explanation.map.shape) or not np.isfinite(values).all():
            yield "the map is not finite, or not of its shape"
    for picture in (explanation.heatmap_png, explanation.overlay_png):
        if picture and not (picture.startswith(b"\x89PNG") and picture.endswith(b"IEND\xaeB`\x82")):
            yield "a picture is no PNG"
    contributions = [abs(neuron.contribution) for neuron in explanation.top_neurons]
    if not all(map(math.isfinite, contributions)) or contributions != sorted(contributions, reverse=True):
        yield "the contributions of neurons are not finite, or not in order"
    if explanation.HasField("linearity") and not math.isfinite(explanation.linearity.relative_error):
        yield f"the linearity error is {explanation.linearity.relative_error}"


def _wrong_masks(masks: list[pb.TapMask], sparsity: float) -> Iterator[str]:
    if not 0.0 <= sparsity <= 1.0:
        yield f"the sparsity is {sparsity}"
    kept = sum(mask.kept for mask in masks)
    neurons = sum(math.prod(mask.shape) for mask in masks)
    if neurons and abs(1 - kept / neurons - sparsity) > _TOLERANCE:
        yield f"{kept} of {neurons} neurons are kept, but the sparsity is {sparsity}"
    for mask in masks:
        bits = np.unpackbits(np.frombuffer(mask.mask, np.uint8))
        if len(bits) - math.prod(mask.shape) not in range(8) or bits.sum() != mask.kept:
            yield f"the mask of tap {mask.tap} is not what it says"


_CHECKS: dict[str, Callable[[bytes], Iterator[str]]] = {
    "Predict": _wrong_prediction,
    "Explain": _wrong_explained,
    "GetClassPathway": _wrong_class_pathway,
}
