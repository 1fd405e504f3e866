"""Model descriptions and class pathways as messages, and back."""

from dataclasses import asdict

from pathlens.description import (
    ClassPathway,
    ClassPathwaySelection,
    ClassPathwayStatistics,
    MaskFigures,
    ModelDescription,
    TapDescription,
    TapFrequency,
    TransferFigures,
)
from pathlens.explanation import Ablation, Granularity, PathwaySource
from pathlens.wire.arrays import mask_from_message, mask_to_message, tensor_from_message, tensor_to_message
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
        ablation=pb.Ablation.ValueType(to_number(description.ablation)),
        default_sparsity=description.default_sparsity,
        class_pathway_count=description.class_pathway_count,
        classes_without_pathway=description.classes_without_pathway,
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
        # Absent from services of before this field, which knew no other.
        ablation=from_number(Ablation, message.ablation, "ablation", Ablation.ZERO),
        default_sparsity=message.default_sparsity,
        class_pathway_count=message.class_pathway_count,
        classes_without_pathway=tuple(message.classes_without_pathway),
    )


def class_pathway_response(class_pathway: ClassPathway) -> pb.GetClassPathwayResponse:
    """Write the answer to a GetClassPathway call."""
    return pb.GetClassPathwayResponse(
        class_pathway=pb.ClassPathway(
            class_index=class_pathway.class_index,
            label=class_pathway.label,
            granularity=pb.Granularity.ValueType(to_number(class_pathway.granularity)),
            ablation=pb.Ablation.ValueType(to_number(class_pathway.ablation)),
            sparsity=class_pathway.sparsity,
            pathway=[mask_to_message(part) for part in class_pathway.pathway],
            statistics=_statistics_to_message(class_pathway.statistics),
            frequencies=[
                pb.TapFrequency(tap=part.tap, frequency=tensor_to_message(part.frequency))
                for part in class_pathway.frequencies
            ],
        ),
        model=served_model_to_message(class_pathway.model),
    )


def class_pathway_from_message(message: pb.GetClassPathwayResponse) -> ClassPathway:
    """Read the answer to a GetClassPathway call."""
    stored = message.class_pathway
    return ClassPathway(
        class_index=stored.class_index,
        label=stored.label,
        granularity=from_number(Granularity, stored.granularity, "granularity"),
        ablation=from_number(Ablation, stored.ablation, "ablation"),
        sparsity=stored.sparsity,
        pathway=tuple(mask_from_message(part) for part in stored.pathway),
        statistics=_statistics_from_message(stored),
        frequencies=tuple(
            TapFrequency(part.tap, tensor_from_message(part.frequency).astype("f4")) for part in stored.frequencies
        ),
        model=served_model_from_message(message.model),
    )


def _statistics_to_message(statistics: ClassPathwayStatistics) -> pb.ClassPathwayStatistics:
    return pb.ClassPathwayStatistics(
        image_count=statistics.image_count,
        threshold=statistics.threshold,
        source=pb.PathwaySource.ValueType(to_number(statistics.source)),
        selection=pb.ClassPathwaySelection.ValueType(to_number(statistics.selection)),
        mean_instance_sparsity=statistics.mean_instance_sparsity,
        mean_instance_iou=statistics.mean_instance_iou,
        within_class_iou=statistics.within_class_iou,
        cross_class_iou=statistics.cross_class_iou,
        # The sparsity of the stored mask is that of the class pathway.
        figures=pb.TransferFigures(**asdict(statistics.stored.figures)),
        random_control=pb.TransferFigures(**asdict(statistics.stored.random_control)),
        by_frequency=pb.MaskFigures(
            sparsity=statistics.by_frequency.sparsity,
            figures=pb.TransferFigures(**asdict(statistics.by_frequency.figures)),
            random_control=pb.TransferFigures(**asdict(statistics.by_frequency.random_control)),
        ),
    )


def _statistics_from_message(class_pathway: pb.ClassPathway) -> ClassPathwayStatistics:
    message = class_pathway.statistics
    stored = MaskFigures(
        class_pathway.sparsity, _figures_from_message(message.figures), _figures_from_message(message.random_control)
    )
    by_frequency = stored
    if message.HasField("by_frequency"):
        by_frequency = MaskFigures(
            message.by_frequency.sparsity,
            _figures_from_message(message.by_frequency.figures),
            _figures_from_message(message.by_frequency.random_control),
        )
    # Services of before these fields knew no other masks than those by frequency.
    selection = from_number(
        ClassPathwaySelection, message.selection, "statistics.selection", ClassPathwaySelection.FREQUENCY
    )
    return ClassPathwayStatistics(
        image_count=message.image_count,
        threshold=message.threshold,
        source=from_number(PathwaySource, message.source, "statistics.source"),
        selection=selection,
        mean_instance_sparsity=message.mean_instance_sparsity,
        mean_instance_iou=message.mean_instance_iou if message.HasField("mean_instance_iou") else None,
        within_class_iou=message.within_class_iou if message.HasField("within_class_iou") else None,
        cross_class_iou=message.cross_class_iou if message.HasField("cross_class_iou") else None,
        stored=stored,
        by_frequency=by_frequency,
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
