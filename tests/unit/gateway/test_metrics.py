import urllib.request
from collections.abc import Callable
from typing import Any

import pytest
from google.protobuf import duration_pb2
from google.rpc import code_pb2
from hypothesis import assume, given
from hypothesis import strategies as st
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from pathlens.errors import PathlensError, ServerStartError, UnauthenticatedError
from pathlens.gateway.answer import Answer
from pathlens.gateway.metrics import METHODS, Metrics
from pathlens.gateway.metrics_server import MetricsServer
from pathlens.model_version import ModelVersion
from pathlens.version import __version__
from pathlens.wire.internal.v1 import worker_pb2
from pathlens.wire.v1 import explanation_service_pb2 as messages

DIGITS = ModelVersion("digits", "1.0")
PLACES = 4


def serving(*versions: ModelVersion, max_class_labels: int = 20) -> Metrics:
    metrics = Metrics(max_class_labels)
    for version in versions:
        metrics.serve(version, PLACES)
    return metrics


def series(metrics: Metrics) -> set[tuple[str, ...]]:
    return {
        (sample.name, *(f"{key}={label}" for key, label in sample.labels.items()))
        for family in metrics.registry.collect()
        for sample in family.samples
    }


def value(metrics: Metrics, name: str, **labels: str) -> float | None:
    return metrics.registry.get_sample_value(name, labels)


def reply(
    source: Any, milliseconds: int = 2, label: str = "cat", typicality: messages.Typicality | None = None
) -> worker_pb2.WorkerReply:
    explanation = messages.Explanation(
        target=messages.Prediction(label=label),
        typicality=typicality,
        source=source,
        sparsity=0.9,
        class_pathway_iou=0.5,
        faithfulness=messages.Faithfulness(confidence_drop=0.25),
    )
    timings = messages.StageTimings(predict=duration_pb2.Duration(nanos=milliseconds * 1_000_000))
    return worker_pb2.WorkerReply(
        explain=messages.ExplainResponse(predictions=[explanation.target], explanations=[explanation], timings=timings)
    )


def labels(**changes: str) -> dict[str, str]:
    """The labels of transferred pathways of a class."""
    return {"model": "digits", "version": "1.0", "source": "transferred", "class": "cat"} | changes


def test_the_exposition_holds_the_agreed_names() -> None:
    families = {family.name for family in text_string_to_metric_families(generate_latest(Metrics().registry).decode())}
    assert families >= {
        "pathlens_requests",
        "pathlens_request_duration_seconds",
        "pathlens_stage_duration_seconds",
        "pathlens_inflight",
        "pathlens_pathway_sparsity_ratio",
        "pathlens_class_pathway_iou_ratio",
        "pathlens_confidence_drop_ratio",
        "pathlens_pathway_rank_ratio",
        "pathlens_build_info",
        "pathlens_upstream_inflight",
        "pathlens_upstream_abandoned",
        "pathlens_queued",
        "pathlens_queue_abandoned",
        "pathlens_refused",
        "pathlens_canaries",
        "pathlens_ready",
        "pathlens_upstream_inflight_limit",
        "process_resident_memory_bytes",
    }


def test_the_build_info_tells_the_version() -> None:
    assert value(Metrics(), "pathlens_build_info", version=__version__) == 1


def test_a_call_that_reaches_no_model_has_a_series_for_every_code() -> None:
    metrics = Metrics()
    assert len(METHODS) == 7
    for method in METHODS:
        for code in code_pb2.Code.DESCRIPTOR.values_by_name:
            assert value(metrics, "pathlens_requests_total", method=method, model="", version="", code=code) == 0


@pytest.mark.parametrize("method", METHODS)
def test_the_series_of_a_version_begin_at_zero(method: str) -> None:
    metrics = serving(DIGITS)
    labels = {"model": "digits", "version": "1.0"}
    errors: list[type[PathlensError]] = [PathlensError, *PathlensError.__subclasses__()]
    # Whoever has no token is refused before a version is looked for.
    errors.remove(UnauthenticatedError)
    for error in errors:
        assert value(metrics, "pathlens_requests_total", method=method, code=error.code, **labels) == 0
    assert value(metrics, "pathlens_request_duration_seconds_count", method=method, source="", **labels) == 0
    assert value(metrics, "pathlens_canaries_total", result="answered", **labels) == 0
    assert value(metrics, "pathlens_canaries_total", result="failed", **labels) == 0
    assert value(metrics, "pathlens_model_info", **labels) == 1
    assert value(metrics, "pathlens_upstream_inflight", model="digits") == 0
    assert value(metrics, "pathlens_upstream_inflight_limit", model="digits") == PLACES


@pytest.mark.parametrize("kind", ["prediction", "explanation", "bulk"])
def test_every_refusal_of_admission_begins_at_zero(kind: str) -> None:
    metrics = Metrics()
    assert value(metrics, "pathlens_queued", kind=kind) == 0
    assert value(metrics, "pathlens_queue_abandoned_total", kind=kind) == 0
    for reason in ("QUEUE_FULL", "DEADLINE_TOO_SHORT"):
        assert value(metrics, "pathlens_refused_total", kind=kind, reason=reason) == 0


def test_a_request_in_progress_is_counted_until_it_ends() -> None:
    metrics = serving(DIGITS)
    metrics.requests.started("Explain")
    assert value(metrics, "pathlens_inflight", method="Explain") == 1
    metrics.requests.finished("Explain", "OK", 0.02, DIGITS, "neuron_mct")
    assert value(metrics, "pathlens_inflight", method="Explain") == 0
    labels = {"method": "Explain", "model": "digits", "version": "1.0"}
    assert value(metrics, "pathlens_requests_total", code="OK", **labels) == 1
    seconds = value(metrics, "pathlens_request_duration_seconds_sum", source="neuron_mct", **labels)
    assert seconds == pytest.approx(0.02)


@given(st.text(), st.text())
def test_what_is_not_served_never_becomes_a_label(name: str, version: str) -> None:
    metrics = serving(DIGITS)
    asked = ModelVersion(name, version)
    assume(asked != DIGITS)
    before = series(metrics)
    metrics.requests.finished("Predict", "NOT_FOUND", 0.01, asked, "")
    metrics.answer_received(asked, Answer([reply(messages.PATHWAY_SOURCE_TRANSFERRED)], 0.01))
    metrics.canary_ended(asked, "failed")
    assert series(metrics) == before
    assert value(metrics, "pathlens_requests_total", method="Predict", model="", version="", code="NOT_FOUND") == 1


def test_the_last_calls_of_a_retired_version_are_counted_until_it_is_forgotten() -> None:
    metrics = serving(DIGITS)
    metrics.retire(DIGITS)
    labels = {"method": "Predict", "model": "digits", "version": "1.0", "code": "OK"}
    assert value(metrics, "pathlens_model_info", model="digits", version="1.0") is None
    metrics.requests.finished("Predict", "OK", 0.01, DIGITS, "")
    assert value(metrics, "pathlens_requests_total", **labels) == 1
    metrics.forget(DIGITS)
    assert value(metrics, "pathlens_requests_total", **labels) is None


def test_nothing_is_left_of_a_forgotten_model() -> None:
    metrics = Metrics()
    before = series(metrics)
    metrics.serve(DIGITS, PLACES)
    metrics.requests.finished("Explain", "OK", 0.01, DIGITS, "generated")
    metrics.answer_received(DIGITS, Answer([worker_pb2.WorkerReply()], 0.01))
    metrics.retire(DIGITS)
    metrics.forget(DIGITS)
    assert series(metrics) == before


def test_a_version_that_came_back_keeps_its_series() -> None:
    metrics = serving(DIGITS)
    metrics.requests.finished("Predict", "OK", 0.01, DIGITS, "")
    metrics.retire(DIGITS)
    metrics.serve(DIGITS, PLACES)
    metrics.forget(DIGITS)
    labels = {"method": "Predict", "model": "digits", "version": "1.0", "code": "OK"}
    assert value(metrics, "pathlens_requests_total", **labels) == 1


def test_a_model_keeps_its_limit_while_another_version_is_served() -> None:
    metrics = serving(DIGITS)
    metrics.serve(ModelVersion("digits", "2.0"), PLACES)
    metrics.retire(DIGITS)
    metrics.forget(DIGITS)
    assert value(metrics, "pathlens_upstream_inflight_limit", model="digits") == PLACES


def test_the_figures_of_a_pathway_are_observed_by_its_source() -> None:
    metrics = serving(DIGITS)
    metrics.answer_received(DIGITS, Answer([reply(messages.PATHWAY_SOURCE_NEURON_MCT)], 0.001))
    for name, figure in [
        ("pathlens_pathway_sparsity_ratio", 0.9),
        ("pathlens_class_pathway_iou_ratio", 0.5),
        ("pathlens_confidence_drop_ratio", 0.25),
    ]:
        assert value(
            metrics, f"{name}_sum", model="digits", version="1.0", source="neuron_mct", **{"class": "cat"}
        ) == pytest.approx(figure)


def test_figures_that_were_not_computed_are_not_observed() -> None:
    metrics = serving(DIGITS)
    bare = messages.Explanation(source=messages.PATHWAY_SOURCE_TRANSFERRED)
    metrics.answer_received(
        DIGITS, Answer([worker_pb2.WorkerReply(explain=messages.ExplainResponse(explanations=[bare]))], 0.001)
    )
    nameless = {"class": "other"}
    for name in ("pathlens_class_pathway_iou_ratio", "pathlens_confidence_drop_ratio"):
        assert value(metrics, f"{name}_count", **labels(**nameless)) is None
    assert value(metrics, "pathlens_pathway_sparsity_ratio_count", **labels(**nameless)) == 1


RANK = "pathlens_pathway_rank_ratio"
TRANSFERRED = messages.PATHWAY_SOURCE_TRANSFERRED


def test_every_rank_is_observed_under_its_statistic() -> None:
    metrics = serving(DIGITS)
    typicality = messages.Typicality(sparsity_rank=0.1, confidence_drop_rank=0.72, class_images=500)
    metrics.answer_received(DIGITS, Answer([reply(TRANSFERRED, typicality=typicality)], 0.001))
    assert value(metrics, f"{RANK}_sum", **labels(statistic="sparsity")) == pytest.approx(0.1)
    assert value(metrics, f"{RANK}_sum", **labels(statistic="confidence_drop")) == pytest.approx(0.72)
    assert value(metrics, f"{RANK}_count", **labels(statistic="class_pathway_iou")) is None
    assert value(metrics, f"{RANK}_count", **labels(statistic="class_images")) is None


def test_ranks_have_a_bucket_for_each_tenth_and_no_other() -> None:
    metrics = serving(DIGITS)
    typicality = messages.Typicality(confidence_drop_rank=0.72)
    metrics.answer_received(DIGITS, Answer([reply(TRANSFERRED, typicality=typicality)], 0.001))
    buckets = {
        sample.labels["le"]: sample.value
        for family in metrics.registry.collect()
        for sample in family.samples
        if sample.name == f"{RANK}_bucket"
    }
    tenths = [f"0.{number}" for number in range(1, 10)]
    assert buckets == {bound: float(bound > "0.7") for bound in tenths} | {"1.0": 1.0, "+Inf": 1.0}


@pytest.mark.parametrize(("images", "label"), [(120, "cat"), (119, "other"), (0, "other")])
def test_ranks_among_too_few_images_of_a_class_are_not_the_class_s_own(images: int, label: str) -> None:
    metrics = serving(DIGITS)
    typicality = messages.Typicality(confidence_drop_rank=0.5, class_images=images)
    metrics.answer_received(DIGITS, Answer([reply(TRANSFERRED, typicality=typicality)], 0.001))
    assert value(metrics, f"{RANK}_count", **labels(statistic="confidence_drop", **{"class": label})) == 1
    assert value(metrics, "pathlens_confidence_drop_ratio_count", **labels()) == 1


def test_classes_beyond_the_limit_are_one() -> None:
    metrics = serving(DIGITS, max_class_labels=2)
    for label in ("cat", "dog", "eel", "cat", "fox"):
        metrics.answer_received(DIGITS, Answer([reply(TRANSFERRED, label=label)], 0.001))
    counts = {
        label: value(metrics, "pathlens_confidence_drop_ratio_count", **labels(**{"class": label}))
        for label in ("cat", "dog", "eel", "fox", "other")
    }
    assert counts == {"cat": 2, "dog": 1, "eel": None, "fox": None, "other": 2}


def test_a_caller_cannot_use_up_the_labels_with_targets_that_nobody_predicts() -> None:
    metrics = serving(DIGITS, max_class_labels=2)
    targets = [messages.Prediction(class_index=index, label=f"class {index}") for index in range(5)]
    asked = messages.ExplainResponse(
        predictions=[targets[4], targets[1]],
        explanations=[messages.Explanation(target=target, source=TRANSFERRED) for target in targets],
    )
    for _ in range(2):
        metrics.answer_received(DIGITS, Answer([worker_pb2.WorkerReply(explain=asked)], 0.001))
    counts = {
        label: value(metrics, "pathlens_pathway_sparsity_ratio_count", **labels(**{"class": label}))
        for label in ("class 0", "class 1", "class 4", "other")
    }
    assert counts == {"class 0": None, "class 1": None, "class 4": 2, "other": 8}
    metrics.answer_received(DIGITS, Answer([reply(TRANSFERRED, label="cat")], 0.001))
    assert value(metrics, "pathlens_pathway_sparsity_ratio_count", **labels()) == 1


def test_a_version_that_came_back_keeps_its_classes() -> None:
    metrics = serving(DIGITS, max_class_labels=1)
    for label in ("cat", "dog"):
        metrics.answer_received(DIGITS, Answer([reply(TRANSFERRED, label=label)], 0.001))
        metrics.retire(DIGITS)
        metrics.serve(DIGITS, PLACES)
        metrics.forget(DIGITS)
    assert value(metrics, "pathlens_confidence_drop_ratio_count", **labels()) == 1
    assert value(metrics, "pathlens_confidence_drop_ratio_count", **labels(**{"class": "dog"})) is None


def test_the_series_of_a_version_go_with_it_and_those_of_others_stay() -> None:
    versions = (DIGITS, ModelVersion("digits", "2.0"))
    metrics = serving(*versions, max_class_labels=1)
    typicality = messages.Typicality(confidence_drop_rank=0.5, class_images=500)
    for version in versions:
        metrics.answer_received(version, Answer([reply(TRANSFERRED, typicality=typicality)], 0.001))
    metrics.retire(DIGITS)
    metrics.forget(DIGITS)
    ratios = [family for family in metrics.registry.collect() if family.name.endswith("_ratio")]
    assert len(ratios) == 4
    for family in ratios:
        assert {sample.labels["version"] for sample in family.samples} == {"2.0"}, family.name
    # Its classes do not count against those of whatever is served under the same version later.
    metrics.serve(DIGITS, PLACES)
    metrics.answer_received(DIGITS, Answer([reply(TRANSFERRED, label="dog")], 0.001))
    assert value(metrics, "pathlens_confidence_drop_ratio_count", **labels(**{"class": "dog"})) == 1


@pytest.mark.parametrize("name", ["pathway_sparsity", "class_pathway_iou", "confidence_drop"])
def test_ratios_have_buckets_in_the_unit_interval(name: str) -> None:
    metrics = serving(DIGITS)
    metrics.answer_received(DIGITS, Answer([reply(messages.PATHWAY_SOURCE_TRANSFERRED)], 0.001))
    exposition = text_string_to_metric_families(generate_latest(metrics.registry).decode())
    (family,) = (family for family in exposition if family.name == f"pathlens_{name}_ratio")
    bounds = {float(sample.labels["le"]) for sample in family.samples if "le" in sample.labels}
    assert max(bounds - {float("inf")}) == 1.0
    assert min(bounds) > 0.0


def test_images_that_were_computed_together_count_each_stage_once() -> None:
    metrics = serving(DIGITS)
    metrics.answer_received(DIGITS, Answer([reply(messages.PATHWAY_SOURCE_TRANSFERRED)] * 5, 0.001))
    assert value(metrics, "pathlens_stage_duration_seconds_count", model="digits", version="1.0", stage="predict") == 1


def test_images_that_were_computed_apart_count_each_stage_each() -> None:
    metrics = serving(DIGITS)
    replies = [reply(messages.PATHWAY_SOURCE_TRANSFERRED, milliseconds) for milliseconds in (2, 3)]
    metrics.answer_received(DIGITS, Answer(replies, 0.001))
    assert value(metrics, "pathlens_stage_duration_seconds_count", model="digits", version="1.0", stage="predict") == 2
    assert value(
        metrics, "pathlens_stage_duration_seconds_sum", model="digits", version="1.0", stage="predict"
    ) == pytest.approx(0.005)


def test_the_queue_is_a_stage() -> None:
    metrics = serving(DIGITS)
    metrics.answer_received(DIGITS, Answer([], 0.25))
    assert value(metrics, "pathlens_stage_duration_seconds_sum", model="digits", version="1.0", stage="queue") == 0.25


@pytest.fixture
def metrics_server(request: pytest.FixtureRequest) -> Callable[[int], MetricsServer]:
    def start(port: int) -> MetricsServer:
        server = MetricsServer("127.0.0.1", port, Metrics().registry)
        request.addfinalizer(server.stop)
        return server

    return start


def test_the_endpoint_serves_the_exposition(metrics_server: Callable[[int], MetricsServer]) -> None:
    with urllib.request.urlopen(f"http://127.0.0.1:{metrics_server(0).port}/metrics") as response:
        assert b"pathlens_build_info" in response.read()


def test_a_taken_port_is_an_error_that_names_it(metrics_server: Callable[[int], MetricsServer]) -> None:
    port = metrics_server(0).port
    with pytest.raises(ServerStartError, match=str(port)):
        metrics_server(port)


def test_a_stopped_endpoint_gives_its_port_back() -> None:
    first = MetricsServer("127.0.0.1", 0, Metrics().registry)
    first.stop()
    MetricsServer("127.0.0.1", first.port, Metrics().registry).stop()
