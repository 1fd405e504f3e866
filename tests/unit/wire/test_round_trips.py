"""What is written to a message and read from its bytes is what was written."""

from dataclasses import fields, replace

import numpy as np
import pytest
from hypothesis import given, settings

from pathlens import description
from pathlens import explanation as vocabulary
from pathlens.description import ClassPathway, ClassPathwaySelection, ModelDescription
from pathlens.errors import InvalidRequestError
from pathlens.explanation import (
    DEFAULT_OUTPUTS,
    STAGES,
    Ablation,
    Explanation,
    ExplanationOptions,
    ExplanationRequest,
    ExplanationResult,
    Granularity,
    ModelReference,
    PathwaySource,
    Prediction,
)
from pathlens.wire import models as model_messages
from pathlens.wire import requests as request_messages
from pathlens.wire.responses import (
    explain_response,
    predict_response,
    result_from_message,
    timings_from_message,
    timings_to_message,
)
from pathlens.wire.v1 import explanation_service_pb2 as pb

from . import domain_objects as domain
from .domain_objects import comparable

quick = settings(max_examples=60)


@given(request=domain.requests)
@quick
def test_requests_for_explanations(request: ExplanationRequest) -> None:
    assert request.options is not None
    message = pb.ExplainRequest(
        image=request_messages.image_to_message(request.image),
        options=request_messages.options_to_message(request.options),
    )
    read = request_messages.request_from_explain(pb.ExplainRequest.FromString(message.SerializeToString()))
    assert comparable(read) == comparable(request)


@given(image=domain.images, count=domain.counts)
@quick
def test_requests_for_predictions(image: bytes, count: int) -> None:
    message = pb.PredictRequest(image=request_messages.image_to_message(image), prediction_count=count)
    read = request_messages.request_from_predict(pb.PredictRequest.FromString(message.SerializeToString()))
    assert comparable(read.image) == comparable(image)
    assert read.options is None
    assert read.prediction_count == (count or 5)


@given(result=domain.results)
@quick
def test_results_with_explanations(result: ExplanationResult) -> None:
    data = explain_response(result).SerializeToString()
    assert comparable(result_from_message(pb.ExplainResponse.FromString(data))) == comparable(result)


@given(result=domain.results)
@quick
def test_results_without_explanations(result: ExplanationResult) -> None:
    data = predict_response(result).SerializeToString()
    read = result_from_message(pb.PredictResponse.FromString(data))
    assert comparable(read) == comparable(replace(result, explanations=()))


@given(stored=domain.class_pathways)
@quick
def test_class_pathways(stored: ClassPathway) -> None:
    data = model_messages.class_pathway_response(stored).SerializeToString()
    read = model_messages.class_pathway_from_message(pb.GetClassPathwayResponse.FromString(data))
    assert comparable(read) == comparable(stored)


@given(description=domain.models)
@quick
def test_model_descriptions(description: ModelDescription) -> None:
    data = model_messages.model_to_message(description).SerializeToString()
    assert model_messages.model_from_message(pb.Model.FromString(data)) == description


@given(reference=domain.references)
@quick
def test_model_references(reference: ModelReference) -> None:
    message = request_messages.model_to_message(reference)
    assert (message.name, message.version) == (reference.name, reference.version)


def test_unspecified_options_mean_the_defaults() -> None:
    assert request_messages.options_from_message(pb.ExplanationOptions()) == ExplanationOptions()


def test_the_default_outputs_are_pathway_map_and_faithfulness() -> None:
    # As the .proto file promises.
    assert {output.name for output in DEFAULT_OUTPUTS} == {"PATHWAY", "MAP", "FAITHFULNESS"}
    defaults = ExplanationOptions()
    assert (defaults.source.name, defaults.reduction.name, defaults.predictions) == (
        "TRANSFERRED",
        "SIGNED_MAXIMUM",
        5,
    )
    assert (defaults.sparsity, defaults.granularity, defaults.top_neurons) == (None, None, 0)


def test_no_outputs_mean_the_default_outputs() -> None:
    message = request_messages.options_to_message(ExplanationOptions(outputs=frozenset()))
    assert request_messages.options_from_message(message).outputs == DEFAULT_OUTPUTS


def test_a_sparsity_of_zero_is_not_an_absent_one() -> None:
    message = request_messages.options_to_message(ExplanationOptions(sparsity=0.0))
    assert request_messages.options_from_message(message).sparsity == 0.0


@pytest.mark.parametrize("image", [None, pb.Image()])
def test_a_request_without_image_is_refused(image: pb.Image | None) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        request_messages.request_from_explain(pb.ExplainRequest(image=image))
    assert (caught.value.reason, caught.value.field) == ("IMAGE_MISSING", "image")
    with pytest.raises(InvalidRequestError, match="no image"):
        request_messages.request_from_predict(pb.PredictRequest(image=image))


def test_an_empty_encoded_image_is_an_image_all_the_same() -> None:
    # That it cannot be decoded is said by the decoder, with a reason of its own.
    assert request_messages.image_from_message(pb.Image(encoded=b"")) == b""


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_that_was_not_passed_is_absent(stage: str) -> None:
    message = timings_to_message({stage: 0.0})
    assert [name for name in STAGES if message.HasField(name)] == [stage]
    assert timings_from_message(message) == {stage: 0.0}


def test_every_stage_has_a_field_of_the_message() -> None:
    assert [field.name for field in pb.StageTimings.DESCRIPTOR.fields] == list(STAGES)


def test_a_map_read_from_a_message_may_be_written_to() -> None:
    explanation = Explanation(
        Prediction(0, "", 1.0, 1.0),
        PathwaySource.TRANSFERRED,
        Granularity.UNIT,
        Ablation.ZERO,
        0.5,
        None,
        map=np.ones((2, 2), np.float32),
    )
    read = result_from_message(explain_response(ExplanationResult((), (explanation,))))
    values = read.explanations[0].map
    assert values is not None
    values[0, 0] = 2


@pytest.mark.parametrize(
    ("domain_object", "message"),
    [
        ("ServedModel", pb.ServedModel),
        ("Prediction", pb.Prediction),
        ("NeuronContribution", pb.NeuronContribution),
        ("Faithfulness", pb.Faithfulness),
        ("Linearity", pb.Linearity),
        ("Explanation", pb.Explanation),
        ("TransferFigures", pb.TransferFigures),
        ("MaskFigures", pb.MaskFigures),
        ("TapFrequency", pb.TapFrequency),
        ("Targets", pb.Targets),
        ("ModelDescription", pb.Model),
    ],
)
def test_domain_objects_and_messages_have_the_same_fields(domain_object: str, message: type) -> None:
    home = vocabulary if hasattr(vocabulary, domain_object) else description
    names = {field.name for field in fields(getattr(home, domain_object))}
    assert names == {field.name for field in message.DESCRIPTOR.fields}  # type: ignore[attr-defined]


def test_the_figures_of_the_stored_mask_lie_where_they_always_lay() -> None:
    names = {field.name for field in fields(description.ClassPathwayStatistics)}
    numbers = {field.name: field.number for field in pb.ClassPathwayStatistics.DESCRIPTOR.fields}
    assert names - {"stored"} == set(numbers) - {"figures", "random_control"}
    assert (numbers["figures"], numbers["random_control"]) == (6, 7)


@given(stored=domain.class_pathways)
@quick
def test_a_class_pathway_of_an_older_service_is_one_by_frequency(stored: ClassPathway) -> None:
    message = model_messages.class_pathway_response(stored)
    for name in ("selection", "within_class_iou", "cross_class_iou", "by_frequency"):
        message.class_pathway.statistics.ClearField(name)
    statistics = model_messages.class_pathway_from_message(message).statistics
    assert statistics.selection is ClassPathwaySelection.FREQUENCY
    assert (statistics.within_class_iou, statistics.cross_class_iou) == (None, None)
    assert statistics.stored == statistics.by_frequency == stored.statistics.stored


@given(description=domain.models)
@quick
def test_a_model_of_an_older_service_puts_zero_for_removed_neurons(description: ModelDescription) -> None:
    message = model_messages.model_to_message(description)
    message.ClearField("ablation")
    message.ClearField("classes_without_pathway")
    expected = replace(description, ablation=Ablation.ZERO, classes_without_pathway=())
    assert model_messages.model_from_message(message) == expected


def test_frequencies_read_from_a_message_may_be_written_to() -> None:
    values = pb.Tensor(data_type=pb.DATA_TYPE_FLOAT32, shape=[1], data=bytes(4))
    message = pb.GetClassPathwayResponse(
        class_pathway=pb.ClassPathway(
            granularity=pb.GRANULARITY_CHANNEL,
            ablation=pb.ABLATION_ZERO,
            statistics=pb.ClassPathwayStatistics(source=pb.PATHWAY_SOURCE_GENERATED),
            frequencies=[pb.TapFrequency(tap="relu#1", frequency=values)],
        )
    )
    (read,) = model_messages.class_pathway_from_message(message).frequencies
    read.frequency[0] = 0.5
