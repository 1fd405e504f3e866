"""Model descriptions and class pathways as messages, and back."""

from dataclasses import asdict

from pathlens.description import ClassPathway, ClassPathwayStatistics, ModelDescription, TapDescription, TransferFigures
from pathlens.explanation import Ablation, Granularity, PathwaySource
from pathlens.wire.arrays import mask_from_message, mask_to_message
from pathlens.wire.enums import from_number, to_number
from pathlens.wire.responses import served_model_from_message, served_model_to_message
from pathlens.wire.v1 import explanation_service_pb2 as pb


def model_to_message(description: ModelDescription) -> pb.Model:
    """Write the description of a model."""
    return pb.Model(
        model=served_model_to_message(description.model),
        classifier_sha256=description.classifier_sha256,
        labels=description.labels,
        input_shape=description.input_shape,
        taps=[pb.Tap(name=tap.name, activation=tap.activation, shape=tap.shape) for tap in description.taps],
        sources=[pb.PathwaySource.ValueType(to_number(source)) for source in description.sources],
        granularity=pb.Granularity.ValueType(to_number(description.granularity)),
        default_sparsity=description.default_sparsity,
        class_pathway_count=description.class_pathway_count,
    )


def model_from_message(message: pb.Model) -> ModelDescription:
    """Read the description of a model."""
    channels, height, width = message.input_shape
    return ModelDescription(
        model=served_model_from_message(message.model),
        classifier_sha256=message.classifier_sha256,
        labels=tuple(message.labels),
        input_shape=(channels, height, width),
        taps=tuple(TapDescription(tap.name, tap.activation, tuple(tap.shape)) for tap in message.taps),
        sources=tuple(from_number(PathwaySource, number, "sources") for number in message.sources),
        granularity=from_number(Granularity, message.granularity, "granularity"),
        default_sparsity=message.default_sparsity,
        class_pathway_count=message.class_pathway_count,
    )


def class_pathway_response(class_pathway: ClassPathway) -> pb.GetClassPathwayResponse:
    """Write the answer to a GetClassPathway call."""
    statistics = class_pathway.statistics
    return pb.GetClassPathwayResponse(
        class_pathway=pb.ClassPathway(
            class_index=class_pathway.class_index,
            label=class_pathway.label,
            granularity=pb.Granularity.ValueType(to_number(class_pathway.granularity)),
            ablation=pb.Ablation.ValueType(to_number(class_pathway.ablation)),
            sparsity=class_pathway.sparsity,
            pathway=[mask_to_message(part) for part in class_pathway.pathway],
            statistics=pb.ClassPathwayStatistics(
                image_count=statistics.image_count,
                threshold=statistics.threshold,
                source=pb.PathwaySource.ValueType(to_number(statistics.source)),
                mean_instance_sparsity=statistics.mean_instance_sparsity,
                mean_instance_iou=statistics.mean_instance_iou,
                figures=pb.TransferFigures(**asdict(statistics.figures)),
                random_control=pb.TransferFigures(**asdict(statistics.random_control)),
            ),
        ),
        model=served_model_to_message(class_pathway.model),
    )


def class_pathway_from_message(message: pb.GetClassPathwayResponse) -> ClassPathway:
    """Read the answer to a GetClassPathway call."""
    stored = message.class_pathway
    statistics = stored.statistics
    iou = statistics.mean_instance_iou if statistics.HasField("mean_instance_iou") else None
    return ClassPathway(
        class_index=stored.class_index,
        label=stored.label,
        granularity=from_number(Granularity, stored.granularity, "granularity"),
        ablation=from_number(Ablation, stored.ablation, "ablation"),
        sparsity=stored.sparsity,
        pathway=tuple(mask_from_message(part) for part in stored.pathway),
        statistics=ClassPathwayStatistics(
            image_count=statistics.image_count,
            threshold=statistics.threshold,
            source=from_number(PathwaySource, statistics.source, "statistics.source"),
            mean_instance_sparsity=statistics.mean_instance_sparsity,
            mean_instance_iou=iou,
            figures=_figures_from_message(statistics.figures),
            random_control=_figures_from_message(statistics.random_control),
        ),
        model=served_model_from_message(message.model),
    )


def _figures_from_message(message: pb.TransferFigures) -> TransferFigures:
    return TransferFigures(
        member_images=message.member_images,
        other_images=message.other_images,
        agreement=message.agreement if message.HasField("agreement") else None,
        mean_increase=message.mean_increase if message.HasField("mean_increase") else None,
        mean_drop=message.mean_drop if message.HasField("mean_drop") else None,
        forcing=message.forcing if message.HasField("forcing") else None,
        leak=message.leak if message.HasField("leak") else None,
        leak_reference=message.leak_reference if message.HasField("leak_reference") else None,
    )
