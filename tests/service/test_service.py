"""The whole service as its users meet it: calls, health, reflection, metrics, REST, and the commands."""

import http.client
import json
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from prometheus_client.parser import text_string_to_metric_families

from pathlens.client import Client
from pathlens.errors import DeadlineExceededError, InvalidRequestError, ResourceExhaustedError
from pathlens.explanation import (
    DEFAULT_OUTPUTS,
    STAGES,
    ExplanationOptions,
    ExplanationResult,
    Output,
    PathwaySource,
    Targets,
)
from pathlens.gateway import predictions
from pathlens.wire.internal.v1 import torchserve_pb2, worker_pb2
from pathlens.wire.requests import image_to_message, options_to_message
from pathlens.wire.status import error_from_status
from pathlens.wire.v1 import explanation_service_pb2 as pb
from service.conftest import Served

pytestmark = pytest.mark.timeout(600)


def digit(digits: Path, label: int = 3) -> Path:
    return sorted((digits / "held-out" / str(label)).glob("*.png"))[0]


def test_an_explanation_holds_what_was_asked_for(served: Served, digits: Path) -> None:
    options = ExplanationOptions(targets=Targets(top_k=2), outputs=frozenset(Output), top_neurons=3)
    with served.client() as client:
        result = client.explain(digit(digits), options)
    assert [explanation.target for explanation in result.explanations] == list(result.predictions[:2])
    for explanation in result.explanations:
        assert len(explanation.pathway) == 3
        assert explanation.map is not None
        assert explanation.map.shape == (8, 8)
        assert explanation.overlay_png.startswith(b"\x89PNG")
        assert len(explanation.top_neurons) == 3
    assert list(result.stage_seconds) == list(STAGES)


def test_a_prediction_skips_what_only_explanations_need(served: Served, digits: Path) -> None:
    with served.client() as client:
        result = client.predict(digit(digits), predictions=3)
    assert len(result.predictions) == 3
    assert not result.explanations


def test_default_outputs_are_those_of_the_contract(served: Served, digits: Path) -> None:
    request = pb.ExplainRequest(
        model=pb.ModelReference(name="digits"), image=pb.Image(encoded=digit(digits).read_bytes())
    )
    with grpc.insecure_channel(served.service.address) as channel:
        call = channel.unary_unary(
            "/pathlens.v1.ExplanationService/Explain",
            request_serializer=pb.ExplainRequest.SerializeToString,
            response_deserializer=pb.ExplainResponse.FromString,
        )
        explanation = call(request).explanations[0]
    assert {Output.PATHWAY, Output.MAP, Output.FAITHFULNESS} == DEFAULT_OUTPUTS
    assert explanation.pathway
    assert explanation.HasField("map")
    assert explanation.HasField("faithfulness")
    assert not explanation.overlay_png


def test_the_stored_pathway_is_what_explanations_transfer(served: Served, digits: Path) -> None:
    with served.client() as client:
        explanation = client.explain(digit(digits), ExplanationOptions(targets=Targets(labels=("3",)))).explanations[0]
        stored = client.get_class_pathway("3")
    assert stored.class_index == 3
    assert stored.sparsity == explanation.sparsity
    for one, other in zip(stored.pathway, explanation.pathway, strict=True):
        assert np.array_equal(one.mask, other.mask)


def test_a_stored_pathway_comes_with_both_sides_of_its_transfer(served: Served) -> None:
    with served.client() as client:
        statistics = client.get_class_pathway(3).statistics
    assert statistics.image_count >= 5
    stored = statistics.stored
    assert stored.figures.agreement is not None
    assert stored.figures.forcing is not None
    assert stored.random_control.member_images == stored.figures.member_images > 0


def test_every_served_model_is_listed(served: Served) -> None:
    with served.client() as client:
        assert {model.model.name for model in client.list_models()} == set(served.bundles)


def test_models_say_which_bundle_answers(served: Served, digits: Path) -> None:
    with served.client() as client:
        assert client.predict(digit(digits)).model == client.get_model().model


def test_no_model_name_is_ambiguous_among_several(served: Served, digits: Path) -> None:
    if len(served.bundles) < 2:
        pytest.skip("one model is served, because there are no fixtures")
    with served.client(model="") as client, pytest.raises(InvalidRequestError) as failure:
        client.predict(digit(digits))
    assert failure.value.reason == "MODEL_AMBIGUOUS"


def test_a_deadline_that_cannot_be_met_is_reported_as_such(served: Served, digits: Path) -> None:
    with served.client(timeout=0.001) as client, pytest.raises(DeadlineExceededError):
        client.explain(digit(digits))


def test_health_is_serving(served: Served) -> None:
    with grpc.insecure_channel(served.service.address) as channel:
        check = channel.unary_unary(
            "/grpc.health.v1.Health/Check",
            request_serializer=health_pb2.HealthCheckRequest.SerializeToString,
            response_deserializer=health_pb2.HealthCheckResponse.FromString,
        )
        for name in ("", "pathlens.v1.ExplanationService"):
            answer = check(health_pb2.HealthCheckRequest(service=name))
            assert answer.status == health_pb2.HealthCheckResponse.SERVING


def test_reflection_knows_the_service(served: Served) -> None:
    with grpc.insecure_channel(served.service.address) as channel:
        assert "pathlens.v1.ExplanationService" in ProtoReflectionDescriptorDatabase(channel).get_services()


def scrape(served: Served) -> dict[str, float]:
    with urllib.request.urlopen(f"http://{served.service.metrics_address}/metrics") as response:
        text = response.read().decode()
    samples = (sample for family in text_string_to_metric_families(text) for sample in family.samples)
    return {f"{sample.name}{sorted(sample.labels.items())}": sample.value for sample in samples}


def test_metrics_count_requests_stages_and_pathways(served: Served, digits: Path) -> None:
    before = scrape(served)
    with served.client() as client:
        explained = client.explain(digit(digits), ExplanationOptions(source=PathwaySource.NEURON_MCT))
    after = scrape(served)
    version = "('model', 'digits'), ('version', '1.0')"
    label = explained.explanations[0].target.label
    source = f"[('class', '{label}'), ('model', 'digits'), ('source', 'neuron_mct'), ('version', '1.0')]"
    grown = {
        f"pathlens_requests_total[('code', 'OK'), ('method', 'Explain'), {version}]",
        "pathlens_request_duration_seconds_count"
        "[('method', 'Explain'), ('model', 'digits'), ('source', 'neuron_mct'), ('version', '1.0')]",
        *(
            f"pathlens_stage_duration_seconds_count[('model', 'digits'), ('stage', '{stage}'), ('version', '1.0')]"
            for stage in STAGES
        ),
        f"pathlens_pathway_sparsity_ratio_count{source}",
        f"pathlens_class_pathway_iou_ratio_count{source}",
        f"pathlens_confidence_drop_ratio_count{source}",
    }
    for name in grown:
        assert after[name] == before.get(name, 0) + 1, name
    assert after["pathlens_inflight[('method', 'Explain')]"] == 0
    assert [value for name, value in after.items() if name.startswith("pathlens_build_info")] == [1]


def test_the_rank_of_an_explanation_is_answered_and_counted(served: Served, digits: Path) -> None:
    before = scrape(served)
    with served.client() as client:
        (explanation,) = client.explain(digit(digits)).explanations
    assert explanation.typicality is not None
    assert explanation.typicality.confidence_drop_rank is not None
    grown = {name for name, value in scrape(served).items() if value != before.get(name) and "rank_ratio_count" in name}
    (name,) = grown
    assert "('source', 'transferred'), ('statistic', 'confidence_drop'), ('version', '1.0')" in name


def rest(served: Served, body: bytes) -> tuple[int, object]:
    # As `curl -T image.png http://…/predictions/digits` does.
    connection = http.client.HTTPConnection(served.service.torchserve.http_inference_address.removeprefix("http://"))
    try:
        connection.request("PUT", "/predictions/digits", body, {"Content-Type": "image/png"})
        response = connection.getresponse()
        return response.status, json.loads(response.read())
    finally:
        connection.close()


def test_plain_rest_returns_json_predictions(served: Served, digits: Path) -> None:
    status, predictions_ = rest(served, digit(digits).read_bytes())
    with served.client() as client:
        best = client.predict(digit(digits)).predictions[0]
    assert status == 200
    assert isinstance(predictions_, list)
    assert predictions_[0]["label"] == best.label
    assert predictions_[0]["probability"] == pytest.approx(best.probability, abs=1e-6)


def test_plain_rest_refuses_what_is_no_image(served: Served) -> None:
    status, answer = rest(served, b"hello")
    assert status == 400
    assert isinstance(answer, dict)
    assert answer["error"]["reason"] == "IMAGE_UNDECODABLE"


def test_an_answer_too_large_for_torchserve_is_refused_and_the_worker_lives(served: Served, digits: Path) -> None:
    options = options_to_message(ExplanationOptions(outputs=frozenset(Output), targets=Targets(top_k=10)))
    image = image_to_message(np.zeros((400, 400), np.uint8))
    request = worker_pb2.WorkerRequest(
        calls=[worker_pb2.WorkerCall(explain=pb.ExplainRequest(image=image, options=options))],
        max_response_bytes=70_000,
    )
    with grpc.insecure_channel(served.service.torchserve.inference_address) as channel:
        call = channel.unary_unary(
            predictions.PREDICTIONS,
            request_serializer=torchserve_pb2.PredictionsRequest.SerializeToString,
            response_deserializer=torchserve_pb2.PredictionResponse.FromString,
        )
        answer = predictions.worker_response(call(predictions.predictions_request("digits", "", request)))
    error = error_from_status(answer.replies[0].status)
    assert isinstance(error, ResourceExhaustedError)
    assert error.reason == "RESPONSE_TOO_LARGE"
    with served.client() as client:
        assert client.predict(digit(digits)).predictions


def assert_alike(answer: ExplanationResult, expected: ExplanationResult) -> None:
    # Images computed together may differ in the last bit from images computed alone.
    for one, other in zip(answer.predictions, expected.predictions, strict=True):
        assert one.class_index == other.class_index
        assert one.logit == pytest.approx(other.logit, abs=1e-4)


def test_a_long_stream_gives_every_image_its_own_answer(served: Served, digits: Path) -> None:
    images = [digit(digits, label) for label in range(10)] * 10
    with served.client() as client:
        alone = [client.predict(image) for image in images[:10]]
        for position, answer in client.stream_explain(images):
            assert isinstance(answer, ExplanationResult)
            assert_alike(answer, alone[position % 10])


def test_clients_of_several_threads_get_their_own_answers(served: Served, digits: Path) -> None:
    with served.client() as client, ThreadPoolExecutor(8) as pool:
        alone = {label: client.predict(digit(digits, label)) for label in range(10)}
        labels = list(range(10)) * 5
        answers = pool.map(lambda label: client.explain(digit(digits, label)), labels)
        for label, answer in zip(labels, answers, strict=True):
            assert_alike(answer, alone[label])


def test_a_client_can_be_made_without_naming_the_only_model(served: Served) -> None:
    with Client(served.service.address) as client:
        assert client.list_models()


def test_an_option_that_no_message_can_hold_is_named(served: Served, digits: Path) -> None:
    with served.client() as client:
        for call in (client.explain, lambda image, options: list(client.stream_explain([image], options))):
            with pytest.raises(InvalidRequestError):
                call(digit(digits), ExplanationOptions(top_neurons=-1))
        with pytest.raises(InvalidRequestError):
            client.predict(digit(digits), predictions=-1)


def test_a_proxy_of_the_environment_does_not_come_between_the_client_and_this_machine(
    served: Served, digits: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("grpc_proxy", "http://127.0.0.1:9")
    monkeypatch.delenv("no_proxy", raising=False)
    with served.client(timeout=20) as client:
        assert client.predict(digit(digits)).predictions
