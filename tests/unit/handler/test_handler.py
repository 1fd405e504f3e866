"""The TorchServe handler, loaded by TorchServe's own loader and called with TorchServe's own context."""

import ast
import inspect
import io
import json
import logging
import time
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from google.rpc import code_pb2
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ts.context import Context, RequestProcessor
from ts.model_loader import ModelLoaderFactory
from ts.service import Service

import pathlens_handler
from pathlens.bundle.archive import pack
from pathlens.bundle.store import load_bundle, save_bundle
from pathlens.errors import BundleError, PathlensError
from pathlens.explanation import ExplanationOptions, ExplanationRequest, Output, PathwaySource, Targets
from pathlens.wire.internal.v1 import worker_pb2
from pathlens.wire.log_line import record_from_line
from pathlens.wire.models import class_pathway_from_message, model_from_message
from pathlens.wire.requests import image_to_message, options_to_message
from pathlens.wire.responses import result_from_message
from pathlens.wire.status import error_from_status
from pathlens.wire.v1 import explanation_service_pb2 as pb
from pathlens_handler import PathlensHandler
from tiny_bundle import LABELS, TWO_SIDED, WITHOUT_PATHWAY, pixels, png, tensor, tiny_bundle
from tiny_graphs import graphed_bundle

Call = worker_pb2.WorkerCall
PNG = png(pixels(0))


@pytest.fixture(scope="module")
def model(backend: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder into which TorchServe unpacks an archive."""
    folder = tmp_path_factory.mktemp("handler")
    graphs = None if backend == "torch" else graphed_bundle().graphs
    if graphs is not None:
        graphs = replace(graphs, generation=None)
    save_bundle(replace(tiny_bundle(), generator=None, graphs=graphs), folder / "bundle")
    with zipfile.ZipFile(pack(folder / "bundle", folder, "1.5")) as archive:
        archive.extractall(folder / "model")
    return folder / "model"


@pytest.fixture(scope="module")
def context(model: Path) -> Context:
    manifest = json.loads((model / "MAR-INF" / "MANIFEST.json").read_text())
    return Context("tiny", str(model), manifest, 8, None, "0.12.0")


@pytest.fixture(scope="module")
def handler(context: Context) -> PathlensHandler:
    handler = PathlensHandler()
    handler.initialize(context)
    return handler


@pytest.fixture
def ask(handler: PathlensHandler, context: Context) -> Any:
    def handle(*rows: dict[str, Any]) -> list[bytes]:
        context.request_processor = [RequestProcessor({}) for _ in rows]
        return handler.handle(list(rows), context)

    return handle


def row(*calls: Call, **fields: Any) -> dict[str, Any]:
    # TorchServe hands over bytearrays.
    return {"pathlens": bytearray(worker_pb2.WorkerRequest(calls=calls, **fields).SerializeToString())}


def asked_by(call: Call, **fields: Any) -> Call:
    call.MergeFrom(Call(**fields))
    return call


def read(reply: bytes) -> Sequence[worker_pb2.WorkerReply]:
    return worker_pb2.WorkerResponse.FromString(reply).replies


def explain(image: Any = PNG, **options: Any) -> Call:
    wanted = options_to_message(ExplanationOptions(**options))
    return Call(explain=pb.ExplainRequest(image=image_to_message(image), options=wanted))


def predict(image: Any = PNG, count: int = 0) -> Call:
    return Call(predict=pb.PredictRequest(image=image_to_message(image), prediction_count=count))


def class_pathway(**which: Any) -> Call:
    return Call(get_class_pathway=pb.GetClassPathwayRequest(**which))


def error(reply: worker_pb2.WorkerReply) -> PathlensError:
    assert reply.status.code
    assert reply.WhichOneof("reply") is None
    return error_from_status(reply.status)


def overflowing() -> pb.Image:
    return image_to_message(np.full((3, 8, 8), 3e38, np.float32))


def unknown_source() -> pb.ExplanationOptions:
    options = pb.ExplanationOptions()
    setattr(options, "source", 99)  # noqa: B010 - the stubs know that there is no such number
    return options


def impossible_shape(shape: list[int], data: bytes) -> Call:
    content = pb.Tensor(data_type=pb.DATA_TYPE_UINT8, shape=shape, data=data)
    return Call(predict=pb.PredictRequest(image=pb.Image(tensor=content)))


BY_CONTRIBUTION = ExplanationOptions(source=PathwaySource.NEURON_MCT)
BAD_ROWS: list[dict[str, Any]] = [
    {},
    {"pathlens": bytearray(b"\xff\xff garbage")},
    {"pathlens": "text"},
    {"pathlens": {"json": 1}},
    {"pathlens": 7},
    {"pathlens": None},
    {"body": bytearray(b"not an image")},
    {"body": bytearray()},
    {"body": {"json": 1}},
    {"body": "text"},
    {"data": None},
    row(Call()),
    row(Call(explain=pb.ExplainRequest())),
    row(Call(predict=pb.PredictRequest(image=overflowing()))),
    row(Call(explain=pb.ExplainRequest(image=overflowing(), options=options_to_message(BY_CONTRIBUTION)))),
    row(Call(explain=pb.ExplainRequest(image=pb.Image(encoded=PNG), options=unknown_source()))),
    row(predict(b"")),
    row(explain(PNG[:70])),
    row(explain(targets=Targets(class_indices=(99,)))),
    row(explain(targets=Targets(labels=("unicorn",)))),
    row(explain(source=PathwaySource.GENERATED)),
    row(explain(sparsity=0.5)),
    row(explain(tensor(0), outputs=frozenset({Output.OVERLAY}))),
    row(class_pathway()),
    row(class_pathway(class_index=-1)),
    row(class_pathway(class_index=WITHOUT_PATHWAY)),
    row(
        Call(
            predict=pb.PredictRequest(
                image=pb.Image(tensor=pb.Tensor(data_type=pb.DATA_TYPE_UINT8, shape=[1] * 70, data=b"a"))
            )
        )
    ),
    row(
        Call(
            predict=pb.PredictRequest(
                image=pb.Image(tensor=pb.Tensor(data_type=pb.DATA_TYPE_UINT8, shape=[0, 2**62, 2**62]))
            )
        )
    ),
    row(asked_by(predict(), deadline=Timestamp(seconds=2**62))),
    row(asked_by(predict(), deadline=Timestamp(seconds=1))),
]
GOOD_ROW = row(predict(), explain(top_neurons=3))


class TestBatches:
    def test_there_is_one_reply_for_each_row_and_one_for_each_call(self, ask: Any) -> None:
        replies = ask(row(predict(), explain(), predict()), {"body": bytearray(PNG)}, row(), row(explain()))
        assert [len(read(replies[index])) for index in (0, 2, 3)] == [3, 0, 1]
        assert json.loads(replies[1])[0]["label"] in LABELS

    def test_no_rows_have_no_replies(self, ask: Any) -> None:
        assert ask() == []

    @pytest.mark.parametrize("number", range(len(BAD_ROWS)))
    def test_a_bad_row_leaves_its_neighbours_as_they_are(self, number: int, ask: Any) -> None:
        first, bad, last = ask(GOOD_ROW, BAD_ROWS[number], GOOD_ROW)
        (alone,) = ask(GOOD_ROW)
        for reply in (first, last):
            assert [facts(one) for one in read(reply)] == [facts(one) for one in read(alone)]
        if "pathlens" in BAD_ROWS[number]:
            (refused,) = read(bad)
            assert error(refused).message
        else:
            assert json.loads(bad)["error"]["code"] == "INVALID_ARGUMENT"

    @given(order=st.lists(st.integers(-3, len(BAD_ROWS) - 1), max_size=8))
    @settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
    def test_any_mixture_of_rows_gets_its_replies_in_order(self, order: list[int], ask: Any) -> None:
        good = {-1: GOOD_ROW, -2: {"body": bytearray(PNG)}, -3: row(Call(get_model=pb.GetModelRequest()))}
        rows = [good[number] if number < 0 else BAD_ROWS[number] for number in order]
        replies = ask(*rows)
        assert len(replies) == len(rows)
        for number, sent, reply in zip(order, rows, replies, strict=True):
            assert isinstance(reply, bytes)
            if "pathlens" in sent:
                codes = [one.status.code for one in read(reply)]
                assert all(code == 0 for code in codes) if number < 0 else all(codes)
            else:
                assert isinstance(json.loads(reply), list) is (number < 0)

    @given(garbage=st.binary(max_size=60))
    @settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
    def test_garbage_bytes_get_a_worker_response(self, garbage: bytes, ask: Any) -> None:
        (reply,) = ask({"pathlens": bytearray(garbage)})
        for one in read(reply):
            assert one.status.code or one.WhichOneof("reply")

    def test_garbage_is_named(self, ask: Any) -> None:
        (refused,) = read(ask({"pathlens": bytearray(b"\xff\xff garbage")})[0])
        assert (error(refused).code, error(refused).reason) == ("INVALID_ARGUMENT", "REQUEST_UNDECODABLE")

    def test_all_rows_of_a_batch_are_computed_together(
        self, ask: Any, handler: PathlensHandler, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        batches: list[int] = []
        answer = handler._explainer.answer

        def counted(requests: Sequence[ExplanationRequest]) -> Any:
            batches.append(len(requests))
            return answer(requests)

        monkeypatch.setattr(handler._explainer, "answer", counted)
        ask(row(predict(), explain()), {"body": bytearray(PNG)}, row(explain(), Call(get_model=pb.GetModelRequest())))
        assert batches == [4]

    def test_a_defect_while_reading_one_call_stays_with_it_and_its_text_is_not_told(
        self, ask: Any, handler: PathlensHandler, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def broken() -> None:
            raise RuntimeError("the secret of /etc/shadow")

        monkeypatch.setattr(handler._explainer, "describe", broken)
        failed, answered = read(ask(row(Call(get_model=pb.GetModelRequest()), predict()))[0])
        assert error(failed).code == "INTERNAL"
        assert b"secret" not in failed.SerializeToString()
        assert answered.status.code == code_pb2.OK


class TestCalls:
    def test_an_explanation_is_what_the_explainer_says(self, ask: Any, model: Path) -> None:
        options: dict[str, Any] = {"targets": Targets(top_k=2), "top_neurons": 4, "outputs": frozenset(Output)}
        options["source"] = PathwaySource.NEURON_MCT
        (reply,) = read(ask(row(explain(**options)))[0])
        result = result_from_message(reply.explain)
        explainer = load_bundle(model / "bundle").explainer("cpu", "1.5")
        (expected,) = explainer.explain([PNG], ExplanationOptions(**options))
        assert result.model == expected.model
        assert len(result.explanations) == 2
        for one, other in zip(result.explanations, expected.explanations, strict=True):
            np.testing.assert_allclose(one.map, other.map, atol=1e-6)  # type: ignore[arg-type]
            assert one.overlay_png == other.overlay_png
            assert one.class_pathway_iou == other.class_pathway_iou
            for mask, same in zip(one.pathway, other.pathway, strict=True):
                np.testing.assert_array_equal(mask.mask, same.mask)
            assert [neuron.index for neuron in one.top_neurons] == [neuron.index for neuron in other.top_neurons]

    def test_a_prediction_is_what_the_explainer_says(self, ask: Any, model: Path) -> None:
        (reply,) = read(ask(row(predict(count=2)))[0])
        result = result_from_message(reply.predict)
        (expected,) = load_bundle(model / "bundle").explainer("cpu", "1.5").predict([PNG], 2)
        assert [one.class_index for one in result.predictions] == [one.class_index for one in expected.predictions]
        assert result.explanations == ()

    def test_the_model_is_described(self, ask: Any, model: Path) -> None:
        (reply,) = read(ask(row(Call(get_model=pb.GetModelRequest())))[0])
        description = model_from_message(reply.get_model.model)
        bundle = load_bundle(model / "bundle")
        assert description == bundle.explainer("cpu", "1.5").describe()
        assert vars(description.model) == {"name": "tiny", "version": "1.5", "bundle_sha256": bundle.sha256}

    @pytest.mark.parametrize("which", [{"class_index": 0}, {"label": "ant"}])
    def test_a_class_pathway_is_returned(self, which: dict[str, Any], ask: Any) -> None:
        (reply,) = read(ask(row(class_pathway(**which)))[0])
        stored = class_pathway_from_message(reply.get_class_pathway)
        assert (stored.class_index, stored.label) == (0, "ant")
        expected = tiny_bundle().bank.transfer([0])
        for part, mask in zip(stored.pathway, expected.masks, strict=True):
            np.testing.assert_array_equal(part.mask, mask[0].numpy())
        assert stored.statistics == tiny_bundle().bank.statistics[0]
        assert stored.frequencies == ()

    def test_frequencies_are_returned_where_they_are_asked_for(self, ask: Any) -> None:
        (reply,) = read(ask(row(class_pathway(class_index=0, include_frequencies=True)))[0])
        frequencies = class_pathway_from_message(reply.get_class_pathway).frequencies
        flat = np.concatenate([part.frequency.ravel() for part in frequencies])
        np.testing.assert_array_equal(flat, tiny_bundle().bank.counts[0].frequency.float().numpy())

    @pytest.mark.parametrize(
        ("call", "code", "reason"),
        [
            (class_pathway(), "INVALID_ARGUMENT", "CLASS_MISSING"),
            (class_pathway(class_index=5), "NOT_FOUND", "CLASS_NOT_FOUND"),
            (class_pathway(label="unicorn"), "NOT_FOUND", "CLASS_NOT_FOUND"),
            (class_pathway(label="eel"), "FAILED_PRECONDITION", "CLASS_PATHWAY_MISSING"),
            (Call(), "INVALID_ARGUMENT", "IMAGE_MISSING"),
            (explain(b""), "INVALID_ARGUMENT", "IMAGE_EMPTY"),
            (explain(source=PathwaySource.GENERATED), "FAILED_PRECONDITION", "PATHWAY_SOURCE_UNAVAILABLE"),
        ],
    )
    def test_what_cannot_be_answered_has_its_code_and_reason(
        self, call: Call, code: str, reason: str, ask: Any
    ) -> None:
        (reply,) = read(ask(row(call))[0])
        assert (error(reply).code, error(reply).reason) == (code, reason)

    def test_timings_name_the_stages_and_lie_within_the_time_of_the_handler(self, ask: Any) -> None:
        before, started = time.time(), time.perf_counter()
        (reply,) = ask(row(explain()))
        passed = time.perf_counter() - started
        response = worker_pb2.WorkerResponse.FromString(reply)
        stages = result_from_message(response.replies[0].explain).stage_seconds
        assert list(stages) == ["decode", "predict", "pathway", "gradient", "encode"]
        began = response.handler_start.ToNanoseconds() / 1e9
        assert before <= began <= began + response.handler_time.ToNanoseconds() / 1e9 <= time.time()
        assert 0 < sum(stages.values()) <= response.handler_time.ToNanoseconds() / 1e9 <= passed


class TestLog:
    @pytest.fixture
    def lines(self, context: Context, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
        """What a worker prints, once its handler was told to log for a gateway."""
        loggers = [logging.getLogger(name) for name in ("pathlens", "pathlens_handler")]
        before = [(logger.handlers, logger.propagate, logger.level) for logger in loggers]
        monkeypatch.setenv("PATHLENS_LOG_LEVEL", str(logging.DEBUG))
        output = io.StringIO()
        with redirect_stdout(output):
            PathlensHandler().initialize(context)
        said = output.getvalue().splitlines()
        assert "computes for tiny" in said[0]
        yield lambda: [record_from_line(line) for line in output.getvalue().splitlines()[len(said) :]]
        for logger, (handlers, propagate, level) in zip(loggers, before, strict=True):
            logger.handlers, logger.propagate = handlers, propagate
            logger.setLevel(level)

    def test_a_defect_is_one_line_with_its_traceback_and_the_id_of_the_request(
        self, ask: Any, handler: PathlensHandler, monkeypatch: pytest.MonkeyPatch, lines: Any
    ) -> None:
        def broken() -> None:
            raise RuntimeError("a defect\n[METRICS]forged")

        monkeypatch.setattr(handler._explainer, "describe", broken)
        ask(row(asked_by(Call(get_model=pb.GetModelRequest()), request_id="seven", item=3)))
        failed, answered = lines()
        assert failed.levelname == "ERROR"
        assert (failed.request_id, failed.item) == ("seven", 3)
        assert "RuntimeError: a defect" in failed.exception
        assert answered.getMessage().startswith("Answered 1 requests")

    def test_a_defect_of_the_explainer_has_the_id_too(
        self, ask: Any, handler: PathlensHandler, monkeypatch: pytest.MonkeyPatch, lines: Any
    ) -> None:
        def broken(*_: object, **__: object) -> None:
            raise RuntimeError("a defect")

        monkeypatch.setattr(handler._explainer, "_predict", broken)
        ask(row(asked_by(predict(), request_id="seven")))
        failed, _ = lines()
        assert failed.source == "pathlens.explainer.item"
        assert failed.request_id == "seven"

    def test_an_id_is_forgotten_with_its_batch(self, ask: Any, lines: Any) -> None:
        ask(row(asked_by(predict(), request_id="seven")), row(asked_by(predict(), request_id="eight")))
        ask(row(predict()))
        together, alone = lines()
        assert together.request_id == "seven,eight"
        assert not hasattr(alone, "request_id")

    def test_another_torchserve_gets_no_such_lines(self, context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("PATHLENS_LOG_LEVEL", raising=False)
        before = logging.getLogger("pathlens").handlers
        PathlensHandler().initialize(context)
        assert logging.getLogger("pathlens").handlers is before


class TestDeadline:
    def test_what_has_expired_is_not_computed(
        self, ask: Any, handler: PathlensHandler, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        seen: list[int] = []
        answer = handler._explainer.answer

        def watched(requests: Sequence[ExplanationRequest]) -> Any:
            seen.append(len(requests))
            return answer(requests)

        monkeypatch.setattr(handler._explainer, "answer", watched)
        calls = (predict(), explain(), Call(get_model=pb.GetModelRequest()), class_pathway(class_index=0))
        replies = read(ask(row(*(asked_by(call, deadline=moment(-1)) for call in calls)))[0])
        assert [error(reply).code for reply in replies] == ["DEADLINE_EXCEEDED"] * 4
        assert seen == [0]

    def test_what_has_time_left_is_computed(self, ask: Any) -> None:
        (reply,) = read(ask(row(asked_by(predict(), deadline=moment(60))))[0])
        assert reply.status.code == code_pb2.OK

    def test_work_ends_before_torchserve_kills_the_worker_for_it(
        self, ask: Any, handler: PathlensHandler, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(handler, "_seconds", -1.0)
        (reply,) = read(ask(row(asked_by(predict(), deadline=moment(60))))[0])
        assert error(reply).code == "DEADLINE_EXCEEDED"

    def test_the_time_for_decoding_comes_from_the_environment(
        self, context: Context, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("PATHLENS_DECODE_SECONDS", "0.25")
        handler = PathlensHandler()
        handler.initialize(context)
        assert handler._explainer.limits.seconds == 0.25

    @pytest.mark.parametrize(("mebibytes", "sliced"), [(None, True), ("1", True), ("0", False)])
    def test_the_most_frequent_classes_are_sliced_before_the_first_request_if_there_is_memory(
        self, mebibytes: str | None, sliced: bool, context: Context, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        if mebibytes is not None:
            monkeypatch.setenv("PATHLENS_SLICE_MEBIBYTES", mebibytes)
        handler = PathlensHandler()
        handler.initialize(context)
        # Slices of the other classes would not be worth it.
        assert (TWO_SIDED in handler._explainer.backend.slices) == sliced

    def test_the_deadline_of_one_row_is_not_that_of_another(self, ask: Any) -> None:
        late, timely = ask(row(asked_by(predict(), deadline=moment(-1))), row(predict()))
        assert read(late)[0].status.code == code_pb2.DEADLINE_EXCEEDED
        assert read(timely)[0].status.code == code_pb2.OK


class TestSize:
    def test_a_reply_over_the_limit_is_refused_and_the_others_are_kept(self, ask: Any) -> None:
        noise = png(np.random.default_rng(0).integers(0, 256, (200, 200, 3), dtype=np.uint8))
        large = explain(noise, outputs=frozenset({Output.OVERLAY}))
        (content,) = ask(row(predict(), large, predict(), max_response_bytes=80_000))
        first, refused, last = read(content)
        assert error(refused).reason == "RESPONSE_TOO_LARGE"
        assert first.predict.predictions
        assert last.predict.predictions
        assert len(content) <= 80_000
        (unbounded,) = ask(row(large))
        assert len(unbounded) > 80_000
        assert read(unbounded)[0].status.code == code_pb2.OK


class TestRest:
    @pytest.mark.parametrize("key", ["body", "data"])
    @pytest.mark.parametrize("kind", [bytes, bytearray])
    def test_an_image_gets_predictions_as_json(
        self, key: str, kind: type[bytes | bytearray], ask: Any, context: Context, model: Path
    ) -> None:
        (reply,) = ask({key: kind(PNG)})
        predictions = json.loads(reply)
        (expected,) = load_bundle(model / "bundle").explainer().predict([PNG])
        assert [one["class_index"] for one in predictions] == [one.class_index for one in expected.predictions]
        assert set(predictions[0]) == {"class_index", "label", "probability"}
        assert predictions[0]["probability"] == pytest.approx(expected.predictions[0].probability, abs=1e-6)
        assert context.get_response_status(0)[0] == 200
        assert context.get_response_content_type(0) == "application/json"

    @pytest.mark.parametrize(
        ("content", "reason"),
        [
            (bytearray(b"not an image"), "IMAGE_UNDECODABLE"),
            (bytearray(), "IMAGE_EMPTY"),
            ({"json": 1}, "IMAGE_MISSING"),
            ("text", "IMAGE_MISSING"),
        ],
    )
    def test_anything_else_gets_http_status_400(self, content: Any, reason: str, ask: Any, context: Context) -> None:
        good, bad = ask({"body": bytearray(PNG)}, {"body": content})
        assert json.loads(bad)["error"]["reason"] == reason
        assert context.get_response_status(1)[0] == 400
        assert context.get_response_content_type(1) == "application/json"
        assert context.get_response_status(0)[0] == 200
        assert isinstance(json.loads(good), list)

    def test_a_defect_gets_http_status_500_without_its_text(
        self, ask: Any, context: Context, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def broken(*_: object) -> None:
            raise RuntimeError("secret")

        monkeypatch.setattr("pathlens.explainer.explainer.decode_picture", broken)
        (reply,) = ask({"body": bytearray(PNG)})
        assert json.loads(reply)["error"]["code"] == "INTERNAL"
        assert b"secret" not in reply
        assert context.get_response_status(0)[0] == 500

    def test_the_answer_to_the_gateway_is_binary_and_never_an_http_error(self, ask: Any, context: Context) -> None:
        ask(row(explain(b"")))
        assert context.get_response_content_type(0) == "application/octet-stream"
        assert context.get_response_status(0)[0] == 200


class TestModule:
    def test_torchserve_loads_it(self, model: Path) -> None:
        loader = ModelLoaderFactory.get_model_loader()
        service = loader.load("tiny", str(model), "pathlens_handler.py", None, 4, None)
        assert isinstance(service, Service)
        parameter = {"name": "body", "value": bytearray(PNG), "contentType": ""}
        processors, rows, _ = Service.retrieve_data_for_inference([{"requestId": b"1", "parameters": [parameter]}])
        service.context.request_processor = processors
        (reply,) = service._entry_point(rows, service.context)
        assert json.loads(reply)[0]["label"] in LABELS

    def test_it_has_exactly_one_class(self) -> None:
        own = [
            name
            for name, member in inspect.getmembers(pathlens_handler, inspect.isclass)
            if member.__module__ == pathlens_handler.__name__
        ]
        assert own == ["PathlensHandler"]

    def test_it_imports_the_rooms_it_may_and_no_others(self) -> None:
        tree = ast.parse(Path(pathlens_handler.__file__).read_text())
        imported = {
            name
            for node in ast.walk(tree)
            for name in (
                [alias.name for alias in node.names]
                if isinstance(node, ast.Import)
                else [node.module or ""]
                if isinstance(node, ast.ImportFrom)
                else []
            )
        }
        rooms = {".".join(name.split(".")[:2]) for name in imported if name.startswith("pathlens")}
        assert rooms <= {f"pathlens.{room}" for room in ("explainer", "bundle", "wire", "errors", "explanation")}
        others = {name.split(".")[0] for name in imported} - {"pathlens"}
        assert others <= {"json", "logging", "os", "time", "collections", "dataclasses", "pathlib", "typing", "google"}

    def test_a_model_folder_without_bundle_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(BundleError, match="is not a bundle"):
            PathlensHandler().initialize(Context("m", str(tmp_path), {"model": {}}, 1, None, "0.12.0"))


def moment(seconds_from_now: float) -> Timestamp:
    stamp = Timestamp()
    stamp.FromNanoseconds(time.time_ns() + round(seconds_from_now * 1e9))
    return stamp


def facts(reply: worker_pb2.WorkerReply) -> object:
    assert reply.status.code == code_pb2.OK
    answer = reply.explain if reply.HasField("explain") else reply.predict
    return [(one.class_index, round(one.logit, 4)) for one in answer.predictions], len(reply.explain.explanations)
