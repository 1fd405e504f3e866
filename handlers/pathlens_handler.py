"""TorchServe's entry point for a pathlens bundle: decode the requests, explain them as one batch, encode the replies.

Two kinds of request arrive. The gateway sends a serialised `pathlens.internal.v1.WorkerRequest` under the key
"pathlens" and gets a `WorkerResponse`; every call in it has its own status, because an exception here would fail the
whole batch. Any other TorchServe user may send an image as the plain body of an HTTP request and gets JSON predictions.
"""

import json
import logging
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from google.protobuf.message import DecodeError

from pathlens.bundle.store import load_bundle
from pathlens.errors import DeadlineExceededError, InvalidRequestError, PathlensError
from pathlens.explainer import DecodingLimits, Explainer
from pathlens.explainer.kernels import keep_kernels
from pathlens.explainer.memory import keep_freed_memory
from pathlens.explanation import ExplanationRequest, ExplanationResult
from pathlens.wire.internal.v1 import worker_pb2
from pathlens.wire.log_line import log_context, write_log_lines
from pathlens.wire.models import class_pathway_response, model_to_message
from pathlens.wire.requests import request_from_explain, request_from_predict
from pathlens.wire.responses import duration, explain_response, predict_response
from pathlens.wire.status import OK, response_too_large, status_from_error
from pathlens.wire.v1 import explanation_service_pb2 as pb

Answer = ExplanationResult | PathlensError
Reply = tuple[bytes, str, int]
"""Content, content type and HTTP status of one row."""
Encoder = Callable[[Sequence[Answer]], Reply]
"""Turns the answers of the whole batch into the reply of one row."""

# A protobuf has no registered media type; TorchServe's gRPC side ignores it.
_BINARY, _JSON = "application/octet-stream", "application/json"

_logger = logging.getLogger(__name__)

_RESERVED_BYTES = 64 * 1024
"""Room in every answer for what surrounds the replies, and for the refusals of those that do not fit."""


_SHARE_OF_TIME = 0.8
"""Of the time after which TorchServe kills a worker, how much one batch may take before its work ends in an error."""


_WARM_SECONDS = 2.0
"""How much longer a worker may take to load so that its first explanations take less time."""


# TorchServe wants exactly one class in this module.
class PathlensHandler:
    """Answers TorchServe batches with one explainer."""

    def initialize(self, context: Any) -> None:
        """Load the bundle that lies beside this file in the model archive."""
        if (level := os.environ.get("PATHLENS_LOG_LEVEL")) is not None:
            # The gateway that has started this worker makes records of these lines again.
            write_log_lines(int(level), "pathlens", __name__)
            # TorchServe's own two lines for each request, which its JVM reads and parses and nobody asks for.
            for logger in (logging.getLogger(), logging.getLogger("ts")):
                logger.setLevel(logging.WARNING)
        keep_freed_memory()
        keep_kernels()
        properties = context.system_properties
        gpu = properties.get("gpu_id")
        bundle = load_bundle(Path(properties["model_dir"]) / "bundle")
        version = context.manifest["model"]["modelVersion"]
        limits = DecodingLimits(seconds=float(os.environ.get("PATHLENS_DECODE_SECONDS", "5")))
        slice_bytes = int(os.environ.get("PATHLENS_SLICE_MEBIBYTES", "256")) * 2**20
        self._explainer = bundle.explainer("cpu" if gpu is None else f"cuda:{gpu}", version, limits, slice_bytes)
        self._explainer.warm(_WARM_SECONDS)
        self._seconds = _SHARE_OF_TIME * float(os.environ.get("PATHLENS_RESPONSE_TIMEOUT", "120"))

    def handle(self, data: list[dict[str, Any]], context: Any) -> list[bytes]:
        """Answer one TorchServe batch: one reply per row, whatever the row holds."""
        started = time.perf_counter()
        log_context.set({})
        requests: list[ExplanationRequest] = []
        encoders = [_decode(row, self._explainer, requests, started) for row in data]
        latest = time.time() + self._seconds
        answers = self._explainer.answer(
            [replace(request, deadline=min(request.deadline or latest, latest)) for request in requests]
        )
        replies = []
        for index, encode in enumerate(encoders):
            content, content_type, status = encode(answers)
            context.set_response_content_type(index, content_type)
            if status != 200:
                context.set_response_status(code=status, idx=index)
            replies.append(content)
        _logger.debug("Answered %d requests in %.6f s", len(data), time.perf_counter() - started)
        return replies


def _log_with(calls: Sequence[worker_pb2.WorkerCall]) -> None:
    """Let everything that is logged until the next batch carry the ids of the calls that it answers."""
    known = log_context.get()
    ids = dict.fromkeys(filter(None, str(known.get("request_id", "")).split(",")))
    ids |= dict.fromkeys(call.request_id for call in calls if call.request_id)
    items = {call.item for call in calls}
    if ids:
        item = items.pop() if len(ids) == len(items) == 1 else 0
        log_context.set({"request_id": ",".join(ids), **({"item": item} if item else {})})


def _decode(row: dict[str, Any], explainer: Explainer, requests: list[ExplanationRequest], started: float) -> Encoder:
    """Append what the row asks for to `requests` and return what will encode its reply."""
    if "pathlens" in row:
        return _decode_worker_request(row["pathlens"], explainer, requests, started)
    image = row.get("body", row.get("data"))
    if not isinstance(image, bytes | bytearray):
        error = InvalidRequestError("Send one image file as the body of the request.", reason="IMAGE_MISSING")
        return lambda _: _json_reply(error)
    position = len(requests)
    requests.append(ExplanationRequest(bytes(image), None))
    return lambda answers: _json_reply(answers[position])


def _json_reply(answer: Answer) -> Reply:
    if isinstance(answer, PathlensError):
        status = 400 if isinstance(answer, InvalidRequestError) else 500
        error = {"code": answer.code, "reason": answer.reason, "message": answer.message}
        return json.dumps({"error": error}).encode(), _JSON, status
    predictions = [
        {"class_index": best.class_index, "label": best.label, "probability": best.probability}
        for best in answer.predictions
    ]
    return json.dumps(predictions).encode(), _JSON, 200


def _decode_worker_request(
    data: object, explainer: Explainer, requests: list[ExplanationRequest], started: float
) -> Encoder:
    try:
        if not isinstance(data, bytes | bytearray):
            raise DecodeError("TorchServe made text or JSON of it, as the content type said")
        message = worker_pb2.WorkerRequest.FromString(bytes(data))
        _log_with(message.calls)
    except (DecodeError, ValueError):
        error = InvalidRequestError("The input 'pathlens' is not a WorkerRequest.", reason="REQUEST_UNDECODABLE")
        reply = worker_pb2.WorkerReply(status=status_from_error(error))
        content = worker_pb2.WorkerResponse(replies=[reply]).SerializeToString()
        return lambda _: (content, _BINARY, 200)
    encoders = [_decode_call(call, explainer, requests) for call in message.calls]

    def encode(answers: Sequence[Answer]) -> Reply:
        encoding_started = time.perf_counter()
        replies = [encode_call(answers) for encode_call in encoders]
        encoding = time.perf_counter() - encoding_started
        for reply in replies:
            if reply.HasField("explain"):
                timings = reply.explain.timings
                timings.encode.FromNanoseconds(timings.encode.ToNanoseconds() + round(encoding * 1e9))
        response = worker_pb2.WorkerResponse(replies=_fitted(replies, message.max_response_bytes))
        seconds = time.perf_counter() - started
        response.handler_time.CopyFrom(duration(seconds))
        response.handler_start.FromNanoseconds(time.time_ns() - round(seconds * 1e9))
        return response.SerializeToString(), _BINARY, 200

    return encode


def _decode_call(
    call: worker_pb2.WorkerCall, explainer: Explainer, requests: list[ExplanationRequest]
) -> Callable[[Sequence[Answer]], worker_pb2.WorkerReply]:
    kind = call.WhichOneof("call")
    try:
        deadline = call.deadline.ToNanoseconds() / 1e9 if call.HasField("deadline") else None
        if deadline is not None and time.time() > deadline:
            raise DeadlineExceededError("The deadline passed while the request waited for the worker.")
        if kind == "get_model":
            model = pb.GetModelResponse(model=model_to_message(explainer.describe()))
            reply = worker_pb2.WorkerReply(status=OK, get_model=model)
            return lambda _: reply
        if kind == "get_class_pathway":
            wanted = call.get_class_pathway
            which = wanted.WhichOneof("class")
            if which is None:
                raise InvalidRequestError(
                    "Name a class by class_index or label.", reason="CLASS_MISSING", field="class"
                )
            stored = explainer.class_pathway(getattr(wanted, which), wanted.include_frequencies)
            reply = worker_pb2.WorkerReply(status=OK, get_class_pathway=class_pathway_response(stored))
            return lambda _: reply
        request = request_from_predict(call.predict) if kind == "predict" else request_from_explain(call.explain)
        request = replace(request, deadline=deadline)
    except Exception as error:
        if not isinstance(error, PathlensError):
            _logger.exception("Reading a request failed")
        failure = worker_pb2.WorkerReply(status=status_from_error(error))
        return lambda _: failure
    position = len(requests)
    requests.append(request)
    return lambda answers: _encode_answer(answers[position], explaining=kind == "explain")


def _encode_answer(answer: Answer, explaining: bool) -> worker_pb2.WorkerReply:
    if isinstance(answer, PathlensError):
        return worker_pb2.WorkerReply(status=status_from_error(answer))
    try:
        if explaining:
            return worker_pb2.WorkerReply(status=OK, explain=explain_response(answer))
        return worker_pb2.WorkerReply(status=OK, predict=predict_response(answer))
    except Exception as error:
        _logger.exception("Encoding an answer failed")
        return worker_pb2.WorkerReply(status=status_from_error(error))


def _fitted(replies: Sequence[worker_pb2.WorkerReply], max_bytes: int) -> list[worker_pb2.WorkerReply]:
    """Refuse, one by one, the replies for which there is no room any more."""
    room = max_bytes - _RESERVED_BYTES
    kept = []
    for reply in replies:
        size = reply.ByteSize()
        if max_bytes and size > room:
            remedy = "ask for fewer outputs, targets or images at once"
            if reply.HasField("get_class_pathway"):
                remedy = "ask for the class pathway without frequencies"
            kept.append(worker_pb2.WorkerReply(status=status_from_error(response_too_large(size, max_bytes, remedy))))
        else:
            kept.append(reply)
            room -= size
    return kept
