"""Class pathways of known sparsity: by frequency, by rank of their contributions, or at random."""

import torch
from torch import Tensor

from benchmarks.bench.subjects import Subject
from pathlens.bundle.manifest import FitPart
from pathlens.bundle.store import Bundle
from pathlens.classifier.captured import CapturedClassifier
from pathlens.description import ClassPathwaySelection, ClassPathwayStatistics, MaskFigures, TransferFigures
from pathlens.explanation import Granularity, PathwaySource
from pathlens.onnx_export.stage_graphs import ServingGraphs
from pathlens.pathways.bank import ClassPathwayBank, count_pathways
from pathlens.pathways.selection import select_top

KINDS = ("by frequency", "ranked 80 %", "ranked 50 %", "random 80 %", "random 50 %")
"""How the masks of classes are chosen. Ranked: the channels of greatest mean contribution over the images of the class,
a fit without its threshold, so that the share that is removed is exactly the one stated."""

_INSTANCE_SPARSITY, _THRESHOLD = 0.8, 0.7
"""The defaults of a fit."""
_SPARSITIES = {"ranked 80 %": 0.8, "ranked 50 %": 0.5, "random 80 %": 0.8, "random 50 %": 0.5}


def make_bundle(
    subject: Subject, kind: str, graphs: ServingGraphs | None = None, classifier: CapturedClassifier | None = None
) -> Bundle:
    """Make the bundle of a subject with a class pathway for every class that one of its images is predicted as.

    Args:
        subject: What is served.
        kind: One of `KINDS`.
        graphs: For ONNX Runtime to compute; None for PyTorch.
        classifier: The subject's in another precision or for another size of images; None for its own.
    """
    captured = classifier or subject.classifier
    return Bundle(
        name=subject.name.replace("_", "-"),
        classifier=captured,
        preprocessing=subject.preprocessing,
        labels=tuple(f"class {label}" for label in range(captured.classes)),
        bank=class_bank(subject, kind, captured),
        source=PathwaySource.NEURON_MCT,
        instance_sparsity=_INSTANCE_SPARSITY,
        minimum_images=1,
        fit=FitPart(
            images=len(subject.images),
            held_out_images=0,
            skipped_images=0,
            seed=0,
            pathlens_version="bench",
            torch_version=torch.__version__,
            settings={"masks": kind},
        ),
        generator=subject.generator,
        graphs=graphs,
    )


def class_bank(subject: Subject, kind: str, classifier: CapturedClassifier | None = None) -> ClassPathwayBank:
    """Make the class pathways of a subject.

    Args:
        subject: Whose images are looked at.
        kind: One of `KINDS`.
        classifier: Has the taps; None for the subject's own.
    """
    taps = (classifier or subject.classifier).taps
    predicted, contributions = subject.predicted, subject.contributions
    counts = count_pathways([(predicted, contributions.select(_INSTANCE_SPARSITY))])
    masks = {} if kind not in _SPARSITIES else {label: _mask(subject, kind, label) for label in counts}
    bank = ClassPathwayBank(taps, Granularity.CHANNEL, _THRESHOLD, counts, None, masks)
    nothing = TransferFigures(0, 0)
    bank.statistics = {
        label: ClassPathwayStatistics(
            image_count=total.images,
            threshold=_THRESHOLD,
            source=PathwaySource.NEURON_MCT,
            selection=ClassPathwaySelection.TWO_SIDED if masks else ClassPathwaySelection.FREQUENCY,
            mean_instance_sparsity=total.sparsity_sum / total.images,
            mean_instance_iou=None,
            within_class_iou=None,
            cross_class_iou=None,
            stored=MaskFigures(float(bank.transfer([label]).sparsity[0]), nothing, nothing),
            by_frequency=MaskFigures(float(bank.by_frequency(label).sparsity[0]), nothing, nothing),
        )
        for label, total in counts.items()
    }
    return bank


def _mask(subject: Subject, kind: str, label: int) -> Tensor:
    scores = subject.contributions.flat_scores()
    if kind.startswith("random"):
        # Above 0, for what contributes nothing is never kept.
        generator = torch.Generator().manual_seed(label)
        score = torch.rand(1, scores.shape[1], generator=generator) + 1
    else:
        score = scores[subject.predicted == label].mean(0, keepdim=True)
    return select_top(score, _SPARSITIES[kind])[0]
