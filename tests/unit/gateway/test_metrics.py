import urllib.request
from collections.abc import Callable
from typing import Any

import pytest
from google.protobuf import duration_pb2
from google.rpc import code_pb2
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from pathlens.errors import ServerStartError
from pathlens.gateway.metrics import METHODS, Metrics
from pathlens.gateway.metrics_server import MetricsServer
from pathlens.version import __version__
from pathlens.wire.internal.v1 import worker_pb2
from pathlens.wire.v1 import explanation_service_pb2 as messages


def value(metrics: Metrics, name: str, **labels: str) -> float | None:
    return metrics.registry.get_sample_value(name, labels)


def reply(source: Any, milliseconds: int = 2) -> worker_pb2.WorkerReply:
    explanation = messages.Explanation(
        source=source,
        sparsity=0.9,
        class_pathway_iou=0.5,
        faithfulness=messages.Faithfulness(confidence_drop=0.25),
    )
    timings = messages.StageTimings(predict=duration_pb2.Duration(nanos=milliseconds * 1_000_000))
    return worker_pb2.WorkerReply(explain=messages.ExplainResponse(explanations=[explanation], timings=timings))


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
        "pathlens_build_info",
        "pathlens_upstream_inflight",
        "pathlens_upstream_abandoned",
        "process_resident_memory_bytes",
    }


def test_the_build_info_tells_the_version() -> None:
    assert value(Metrics(), "pathlens_build_info", version=__version__) == 1


def test_every_method_and_code_begins_at_zero() -> None:
    metrics = Metrics()
    assert len(METHODS) == 7
    for method in METHODS:
        for code in code_pb2.Code.DESCRIPTOR.values_by_name:
            assert value(metrics, "pathlens_requests_total", method=method, code=code) == 0


def test_a_request_in_progress_is_counted_until_it_ends() -> None:
    metrics = Metrics()
    metrics.request_started("Explain")
    assert value(metrics, "pathlens_inflight", method="Explain") == 1
    metrics.request_finished("Explain", "OK", 0.02)
    assert value(metrics, "pathlens_inflight", method="Explain") == 0
    assert value(metrics, "pathlens_requests_total", method="Explain", code="OK") == 1
    assert value(metrics, "pathlens_request_duration_seconds_sum", method="Explain") == pytest.approx(0.02)


def test_the_figures_of_a_pathway_are_observed_by_its_source() -> None:
    metrics = Metrics()
    metrics.answer_received("digits", [reply(messages.PATHWAY_SOURCE_NEURON_MCT)], 0.001)
    for name, figure in [
        ("pathlens_pathway_sparsity_ratio", 0.9),
        ("pathlens_class_pathway_iou_ratio", 0.5),
        ("pathlens_confidence_drop_ratio", 0.25),
    ]:
        assert value(metrics, f"{name}_sum", model="digits", source="neuron_mct") == pytest.approx(figure)


def test_figures_that_were_not_computed_are_not_observed() -> None:
    metrics = Metrics()
    bare = messages.Explanation(source=messages.PATHWAY_SOURCE_TRANSFERRED)
    metrics.answer_received(
        "digits", [worker_pb2.WorkerReply(explain=messages.ExplainResponse(explanations=[bare]))], 0.001
    )
    for name in ("pathlens_class_pathway_iou_ratio", "pathlens_confidence_drop_ratio"):
        assert value(metrics, f"{name}_count", model="digits", source="transferred") is None


@pytest.mark.parametrize("name", ["pathway_sparsity", "class_pathway_iou", "confidence_drop"])
def test_ratios_have_buckets_in_the_unit_interval(name: str) -> None:
    metrics = Metrics()
    metrics.answer_received("digits", [reply(messages.PATHWAY_SOURCE_TRANSFERRED)], 0.001)
    exposition = text_string_to_metric_families(generate_latest(metrics.registry).decode())
    (family,) = (family for family in exposition if family.name == f"pathlens_{name}_ratio")
    bounds = {float(sample.labels["le"]) for sample in family.samples if "le" in sample.labels}
    assert max(bounds - {float("inf")}) == 1.0
    assert min(bounds) > 0.0


def test_images_that_were_computed_together_count_each_stage_once() -> None:
    metrics = Metrics()
    metrics.answer_received("digits", [reply(messages.PATHWAY_SOURCE_TRANSFERRED)] * 5, 0.001)
    assert value(metrics, "pathlens_stage_duration_seconds_count", model="digits", stage="predict") == 1


def test_images_that_were_computed_apart_count_each_stage_each() -> None:
    metrics = Metrics()
    replies = [reply(messages.PATHWAY_SOURCE_TRANSFERRED, milliseconds) for milliseconds in (2, 3)]
    metrics.answer_received("digits", replies, 0.001)
    assert value(metrics, "pathlens_stage_duration_seconds_count", model="digits", stage="predict") == 2
    assert value(metrics, "pathlens_stage_duration_seconds_sum", model="digits", stage="predict") == pytest.approx(
        0.005
    )


def test_the_queue_is_a_stage() -> None:
    metrics = Metrics()
    metrics.answer_received("digits", [], 0.25)
    assert value(metrics, "pathlens_stage_duration_seconds_sum", model="digits", stage="queue") == 0.25


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
