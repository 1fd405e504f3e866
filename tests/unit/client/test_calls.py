import math
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from google.rpc import code_pb2, status_pb2

from pathlens.client import AsyncClient, Client
from pathlens.errors import (
    DeadlineExceededError,
    InternalError,
    InvalidRequestError,
    NotFoundError,
    PathlensError,
    UnavailableError,
)
from pathlens.explanation import ExplanationOptions, ExplanationResult, Targets
from pathlens.wire.status import status_from_error
from pathlens.wire.v1 import explanation_service_pb2 as pb

from .both_clients import Kind, both_clients, call
from .scripted_service import ScriptedService, serving

OPTIONS = ExplanationOptions(targets=Targets(labels=("cat",)), sparsity=0.9)
UNARY: list[tuple[str, tuple[Any, ...]]] = [
    ("predict", (b"one", 3)),
    ("predict", (np.zeros((4, 4, 3), np.uint8),)),
    ("explain", (b"one", OPTIONS)),
    ("batch_explain", ([b"one", b"two"], OPTIONS)),
    ("get_class_pathway", ("cat", True)),
    ("get_class_pathway", (3,)),
    ("list_models", ()),
    ("get_model", ()),
]
ALL = [*UNARY, ("stream_explain", ([b"one", b"two"], OPTIONS))]
every_call = pytest.mark.parametrize(("method", "arguments"), ALL, ids=[method for method, _ in ALL])


@every_call
def test_both_clients_send_the_same(method: str, arguments: tuple[Any, ...]) -> None:
    sent = []
    for kind in (Client, AsyncClient):
        with serving(ScriptedService()) as service:
            call(kind, service.address, method, *arguments, model="digits", version="2", request_id="seven")
            (seen,) = service.seen
            sent.append((seen.method, seen.request, seen.metadata["x-request-id"], service.streamed))
    assert sent[0] == sent[1]


@both_clients
def test_the_answers_are_those_to_what_was_asked(kind: Kind, tmp_path: Path) -> None:
    file = tmp_path / "image"
    file.write_bytes(b"from a file")
    with serving(ScriptedService()) as service:
        for method in ("predict", "explain"):
            assert label(call(kind, service.address, method, b"one")) == "one"
            assert label(call(kind, service.address, method, file)) == "from a file"
        batch = call(kind, service.address, "batch_explain", [b"one", file])
        assert list(map(label, batch)) == ["one", "from a file"]
        stream = call(kind, service.address, "stream_explain", [b"one", file])
        assert [(position, label(answer)) for position, answer in stream] == [(0, "one"), (1, "from a file")]
        assert call(kind, service.address, "get_class_pathway", "cat").label == "cat"
        assert call(kind, service.address, "get_class_pathway", 0).class_index == 0
        assert call(kind, service.address, "get_model", model="digits").model.name == "digits"


def label(answer: Any) -> str:
    assert isinstance(answer, ExplanationResult)
    return answer.predictions[0].label


class MalformedService(ScriptedService):
    """Answers with messages that have the right type and make no sense."""

    def Explain(self, *_: Any) -> pb.ExplainResponse:  # noqa: N802
        return pb.ExplainResponse(explanations=[pb.Explanation()])

    def BatchExplain(self, *_: Any) -> pb.BatchExplainResponse:  # noqa: N802
        return pb.BatchExplainResponse(results=[malformed_result()])

    def GetClassPathway(self, *_: Any) -> pb.GetClassPathwayResponse:  # noqa: N802
        return pb.GetClassPathwayResponse()

    def ListModels(self, *_: Any) -> pb.ListModelsResponse:  # noqa: N802
        return pb.ListModelsResponse(models=[pb.Model(input_shape=[8, 8])])

    def GetModel(self, *_: Any) -> pb.GetModelResponse:  # noqa: N802
        return pb.GetModelResponse()


def malformed_result() -> pb.ExplainResult:
    mask = pb.TapMask(tap="relu", shape=[100], mask=b"x")
    explanation = pb.Explanation(source=pb.PATHWAY_SOURCE_TRANSFERRED, pathway=[mask])
    return pb.ExplainResult(response=pb.ExplainResponse(explanations=[explanation]))


@pytest.mark.parametrize(
    ("method", "arguments"),
    [
        ("explain", [b"one"]),
        ("batch_explain", [[b"one"]]),
        ("stream_explain", [[b"one"]]),
        ("get_class_pathway", [0]),
        ("list_models", []),
        ("get_model", []),
    ],
)
@both_clients
def test_an_answer_that_makes_no_sense_is_an_error_of_the_service(
    kind: Kind, method: str, arguments: list[Any]
) -> None:
    service = MalformedService()
    service.stream = lambda requests: iter(
        [pb.StreamExplainResponse(id=item.id, result=malformed_result()) for item in requests]
    )
    with serving(service), pytest.raises(InternalError) as failure:
        call(kind, service.address, method, *arguments, request_id="mine")
    assert (failure.value.reason, failure.value.metadata["request_id"]) == ("RESPONSE_MALFORMED", "mine")


@both_clients
def test_an_answer_to_no_image_of_the_stream_is_an_error_of_the_service(kind: Kind) -> None:
    service = ScriptedService()
    service.stream = lambda requests: iter([pb.StreamExplainResponse(id="no number") for _ in requests])
    with serving(service), pytest.raises(InternalError) as failure:
        call(kind, service.address, "stream_explain", [b"one"])
    assert failure.value.reason == "RESPONSE_MALFORMED"


@every_call
@both_clients
def test_the_callers_request_id_is_sent_and_is_in_the_error(
    kind: Kind, method: str, arguments: tuple[Any, ...]
) -> None:
    with serving(ScriptedService(NotFoundError("Nothing there.", metadata={"model": "cats"}))) as service:
        with pytest.raises(NotFoundError) as failure:
            call(kind, service.address, method, *arguments, request_id="seven")
        assert service.seen[0].metadata["x-request-id"] == "seven"
        assert failure.value.metadata == {"model": "cats", "request_id": "seven"}


@both_clients
def test_calls_without_a_request_id_get_one_each(kind: Kind) -> None:
    with serving(ScriptedService(NotFoundError("Nothing there."))) as service:
        with pytest.raises(NotFoundError) as failure:
            call(kind, service.address, "list_models")
        call(kind, service.address, "list_models")
        first, second = (seen.metadata["x-request-id"] for seen in service.seen)
        assert failure.value.metadata["request_id"] == first != second
        assert len(first) == 32


@both_clients
def test_an_id_that_the_service_gave_is_kept(kind: Kind) -> None:
    with serving(ScriptedService(NotFoundError("Nothing there.", metadata={"request_id": "its own"}))) as service:
        with pytest.raises(NotFoundError) as failure:
            call(kind, service.address, "list_models")
        assert failure.value.metadata["request_id"] == "its own"


@both_clients
@pytest.mark.parametrize("method", ["batch_explain", "stream_explain"])
def test_an_error_of_a_single_image_is_returned_with_the_request_id(kind: Kind, method: str) -> None:
    class Refusing(ScriptedService):
        def BatchExplain(self, *_: Any) -> pb.BatchExplainResponse:  # noqa: N802
            return pb.BatchExplainResponse(results=[refused])

    refused = pb.ExplainResult(status=status_from_error(InvalidRequestError("No image.")))
    service = Refusing()
    service.stream = lambda items: (pb.StreamExplainResponse(id=item.id, result=refused) for item in items)
    with serving(service):
        answers = call(kind, service.address, method, [b"one"], request_id="seven")
        error = answers[0] if method == "batch_explain" else answers[0][1]
        assert isinstance(error, InvalidRequestError)
        assert error.metadata["request_id"] == "seven"


@both_clients
def test_an_error_of_the_connection_has_the_request_id_too(kind: Kind) -> None:
    with pytest.raises(UnavailableError, match="pathlens serve") as failure:
        call(kind, "127.0.0.1:1", "list_models", request_id="seven")
    assert failure.value.metadata == {"address": "127.0.0.1:1", "request_id": "seven"}
    assert failure.value.reason == "UNAVAILABLE"


@every_call
@both_clients
@pytest.mark.parametrize("request_id", ["", "two words", "line\nbreak", "größe", "x" * 129])
def test_a_request_id_that_cannot_travel_is_refused(
    kind: Kind, method: str, arguments: tuple[Any, ...], request_id: str
) -> None:
    with serving(ScriptedService()) as service:
        with pytest.raises(InvalidRequestError, match="request_id"):
            call(kind, service.address, method, *arguments, request_id=request_id)
        assert service.seen == []


@every_call
@both_clients
@pytest.mark.parametrize("timeout", [0, -1.0, math.nan, math.inf, 1e9])
def test_a_timeout_that_is_none_is_refused(kind: Kind, method: str, arguments: tuple[Any, ...], timeout: float) -> None:
    with serving(ScriptedService()) as service:
        with pytest.raises(InvalidRequestError, match="timeout"):
            call(kind, service.address, method, *arguments, timeout=timeout)
        assert service.seen == []


@both_clients
def test_a_client_with_a_timeout_that_is_none_is_not_made(kind: Kind) -> None:
    with pytest.raises(InvalidRequestError, match="timeout"):
        kind("localhost:8080", timeout=0)


@both_clients
def test_calls_have_the_timeout_of_their_client_or_their_own_and_streams_only_their_own(kind: Kind) -> None:
    with serving(ScriptedService()) as service:
        times = []
        for method, settings in (
            ("list_models", {}),
            ("list_models", {"timeout": 9.0}),
            ("stream_explain", {}),
            ("stream_explain", {"timeout": 9.0}),
        ):
            call(kind, service.address, method, *([[b"one"]] if method == "stream_explain" else []), **settings)
            times.append(service.seen[-1].time_remaining)
    assert times[0] == pytest.approx(60, abs=2)
    assert times[1] == pytest.approx(9, abs=2)
    # gRPC's own servers report a call without a deadline as one of centuries.
    assert times[2] is None or times[2] > 1e8
    assert times[3] == pytest.approx(9, abs=2)


def test_the_longest_timeout_reaches_the_service() -> None:
    with serving(ScriptedService()) as service:
        call(Client, service.address, "list_models", timeout=1e7)
        assert service.seen[0].time_remaining == pytest.approx(1e7, rel=0.01)


@both_clients
def test_a_deadline_that_passes_is_told_with_its_length(kind: Kind) -> None:
    with serving(ScriptedService(threading.Event())) as service:
        with pytest.raises(DeadlineExceededError, match=r"did not answer within 0\.2 s") as failure:
            call(kind, service.address, "list_models", timeout=0.2)
        assert failure.value.metadata["timeout"] == "0.2"


@both_clients
@pytest.mark.parametrize("selector", [2**31, None])
def test_a_class_that_no_message_can_name_is_refused(kind: Kind, selector: Any) -> None:
    with pytest.raises(InvalidRequestError, match="name it by its label or by its index"):
        call(kind, "localhost:1", "get_class_pathway", selector)


@both_clients
def test_a_number_of_predictions_that_no_message_can_hold_is_refused(kind: Kind) -> None:
    with pytest.raises(InvalidRequestError):
        call(kind, "localhost:1", "predict", b"one", -1)


@contextmanager
def contradicting(details: bytes) -> Iterator[str]:
    """Serve failures whose details are not those of the call, as a broken proxy may send them."""

    def fail(_: bytes, context: grpc.ServicerContext) -> bytes:
        context.set_trailing_metadata((("grpc-status-details-bin", details),))
        context.abort(grpc.StatusCode.INTERNAL, "what was meant")

    handlers: dict[str, Any] = {"ListModels": grpc.unary_unary_rpc_method_handler(fail)}
    with ThreadPoolExecutor(1) as pool:
        server = grpc.server(pool)
        server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler("pathlens.v1.ExplanationService", handlers),)
        )
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        yield f"127.0.0.1:{port}"
        server.stop(None).wait()


@both_clients
@pytest.mark.parametrize(
    "details", [status_pb2.Status(code=code_pb2.NOT_FOUND).SerializeToString(), b"\xff\xff no message"]
)
def test_details_that_contradict_the_call_are_left_aside(kind: Kind, details: bytes) -> None:
    with contradicting(details) as address, pytest.raises(PathlensError, match="what was meant") as failure:
        call(kind, address, "list_models")
    assert isinstance(failure.value, InternalError)
