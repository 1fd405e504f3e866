"""Results as messages, and back."""

from collections.abc import Mapping

from google.protobuf.duration_pb2 import Duration

from pathlens.explanation import (
    STAGES,
    Ablation,
    Explanation,
    ExplanationResult,
    Faithfulness,
    Granularity,
    Linearity,
    NeuronContribution,
    PathwaySource,
    Prediction,
    ServedModel,
    Typicality,
)
from pathlens.wire.arrays import mask_from_message, mask_to_message, tensor_from_message, tensor_to_message
from pathlens.wire.enums import from_number, to_number
from pathlens.wire.v1 import explanation_service_pb2 as pb


def predict_response(result: ExplanationResult) -> pb.PredictResponse:
    """Write the answer to a Predict call."""
    return pb.PredictResponse(
        predictions=[_prediction_to_message(prediction) for prediction in result.predictions],
        model=served_model_to_message(result.model),
        timings=timings_to_message(result.stage_seconds),
    )


def explain_response(result: ExplanationResult) -> pb.ExplainResponse:
    """Write the answer to an Explain call."""
    return pb.ExplainResponse(
        predictions=[_prediction_to_message(prediction) for prediction in result.predictions],
        explanations=[_explanation_to_message(explanation) for explanation in result.explanations],
        model=served_model_to_message(result.model),
        timings=timings_to_message(result.stage_seconds),
    )


def result_from_message(message: pb.PredictResponse | pb.ExplainResponse) -> ExplanationResult:
    """Read the answer to a Predict or Explain call."""
    explanations = message.explanations if isinstance(message, pb.ExplainResponse) else ()
    return ExplanationResult(
        predictions=tuple(_prediction_from_message(prediction) for prediction in message.predictions),
        explanations=tuple(_explanation_from_message(explanation) for explanation in explanations),
        stage_seconds=timings_from_message(message.timings),
        model=served_model_from_message(message.model),
    )


def served_model_to_message(model: ServedModel) -> pb.ServedModel:
    """Write which model answered."""
    return pb.ServedModel(name=model.name, version=model.version, bundle_sha256=model.bundle_sha256)


def served_model_from_message(message: pb.ServedModel) -> ServedModel:
    """Read which model answered."""
    return ServedModel(message.name, message.version, message.bundle_sha256)


def duration(seconds: float) -> Duration:
    """Write a duration, at least 0, to the nanosecond."""
    whole, nanoseconds = divmod(round(seconds * 1e9), 10**9)
    return Duration(seconds=whole, nanos=nanoseconds)


def timings_to_message(seconds: Mapping[str, float]) -> pb.StageTimings:
    """Write how long each stage took."""
    return pb.StageTimings(**{stage: duration(seconds[stage]) for stage in STAGES if stage in seconds})


def timings_from_message(message: pb.StageTimings) -> dict[str, float]:
    """Read how long each stage took, in seconds, for the stages that were passed."""
    return {stage: getattr(message, stage).ToNanoseconds() / 1e9 for stage in STAGES if message.HasField(stage)}


def _prediction_to_message(prediction: Prediction) -> pb.Prediction:
    return pb.Prediction(
        class_index=prediction.class_index,
        label=prediction.label,
        probability=prediction.probability,
        logit=prediction.logit,
    )


def _prediction_from_message(message: pb.Prediction) -> Prediction:
    return Prediction(message.class_index, message.label, message.probability, message.logit)


def _explanation_to_message(explanation: Explanation) -> pb.Explanation:
    faithfulness, linearity = explanation.faithfulness, explanation.linearity
    return pb.Explanation(
        target=_prediction_to_message(explanation.target),
        source=pb.PathwaySource.ValueType(to_number(explanation.source)),
        granularity=pb.Granularity.ValueType(to_number(explanation.granularity)),
        ablation=pb.Ablation.ValueType(to_number(explanation.ablation)),
        sparsity=explanation.sparsity,
        class_pathway_iou=explanation.class_pathway_iou,
        pathway=[mask_to_message(part) for part in explanation.pathway],
        faithfulness=None
        if faithfulness is None
        else pb.Faithfulness(
            confidence=faithfulness.confidence,
            pathway_confidence=faithfulness.pathway_confidence,
            confidence_drop=faithfulness.confidence_drop,
            agreement=faithfulness.agreement,
        ),
        map=None if explanation.map is None else tensor_to_message(explanation.map),
        heatmap_png=explanation.heatmap_png,
        overlay_png=explanation.overlay_png,
        top_neurons=[
            pb.NeuronContribution(tap=neuron.tap, index=neuron.index, contribution=neuron.contribution)
            for neuron in explanation.top_neurons
        ],
        linearity=None
        if linearity is None
        else pb.Linearity(radius=linearity.radius, points=linearity.points, relative_error=linearity.relative_error),
        typicality=None if explanation.typicality is None else _typicality_to_message(explanation.typicality),
    )


def _explanation_from_message(message: pb.Explanation) -> Explanation:
    check, linearity = message.faithfulness, message.linearity
    return Explanation(
        target=_prediction_from_message(message.target),
        source=from_number(PathwaySource, message.source, "source"),
        granularity=from_number(Granularity, message.granularity, "granularity"),
        ablation=from_number(Ablation, message.ablation, "ablation"),
        sparsity=message.sparsity,
        class_pathway_iou=message.class_pathway_iou if message.HasField("class_pathway_iou") else None,
        pathway=tuple(mask_from_message(part) for part in message.pathway),
        faithfulness=Faithfulness(check.confidence, check.pathway_confidence, check.confidence_drop, check.agreement)
        if message.HasField("faithfulness")
        else None,
        map=tensor_from_message(message.map).astype("f4") if message.HasField("map") else None,
        heatmap_png=message.heatmap_png,
        overlay_png=message.overlay_png,
        top_neurons=tuple(
            NeuronContribution(neuron.tap, tuple(neuron.index), neuron.contribution) for neuron in message.top_neurons
        ),
        linearity=Linearity(linearity.radius, linearity.points, linearity.relative_error)
        if message.HasField("linearity")
        else None,
        typicality=_typicality_from_message(message.typicality) if message.HasField("typicality") else None,
    )


def _typicality_to_message(typicality: Typicality) -> pb.Typicality:
    return pb.Typicality(
        sparsity_rank=typicality.sparsity_rank,
        class_pathway_iou_rank=typicality.class_pathway_iou_rank,
        confidence_drop_rank=typicality.confidence_drop_rank,
        class_images=typicality.class_images,
    )


def _typicality_from_message(message: pb.Typicality) -> Typicality:
    return Typicality(
        sparsity_rank=message.sparsity_rank if message.HasField("sparsity_rank") else None,
        class_pathway_iou_rank=message.class_pathway_iou_rank if message.HasField("class_pathway_iou_rank") else None,
        confidence_drop_rank=message.confidence_drop_rank if message.HasField("confidence_drop_rank") else None,
        class_images=message.class_images,
    )
