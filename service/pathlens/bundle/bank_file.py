"""The class-pathway bank as a file of tensors and a part of the manifest.

The file holds for each class `class_{class}`, how many of its instance pathways keep each neuron, [N] in the smallest
type for it; `mask_{class}` for each learned mask, bit-packed uint8 with the first neuron in the least significant bit;
and for each tap `replacement_{tap}`, what stands in for removed neurons there, float32, unless that is zero.
"""

from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pathlens.bundle.manifest import BankPart, ClassPathwayPart, MaskFiguresPart
from pathlens.bundle.stamped import fitting_the_classifier, read_stamped, stamped_bytes
from pathlens.classifier.captured import CapturedClassifier
from pathlens.classifier.taps import Tap
from pathlens.description import ClassPathwaySelection, ClassPathwayStatistics, MaskFigures, TransferFigures
from pathlens.explanation import Ablation, PathwaySource
from pathlens.pathways.bank import ClassCounts, ClassPathwayBank
from pathlens.pathways.replacement import Replacement


def bank_part(bank: ClassPathwayBank, source: PathwaySource, instance_sparsity: float, minimum_images: int) -> BankPart:
    """Write what the manifest says of a bank.

    Args:
        bank: The bank.
        source: Where its instance pathways came from.
        instance_sparsity: Their sparsity.
        minimum_images: Classes with fewer images have no pathway.

    Raises:
        ValueError: If a class is said to have a learned mask and has none, or the reverse.
    """
    classes = []
    for label, counts in bank.counts.items():
        statistics = bank.statistics[label]
        if (statistics.selection is ClassPathwaySelection.TWO_SIDED) != (label in bank.masks):
            raise ValueError(f"class {label} is selected {statistics.selection.value}; its mask says otherwise")
        classes.append(
            ClassPathwayPart(
                class_index=label,
                image_count=counts.images,
                sparsity_sum=counts.sparsity_sum,
                selection=statistics.selection,
                mean_instance_iou=statistics.mean_instance_iou,
                within_class_iou=statistics.within_class_iou,
                cross_class_iou=statistics.cross_class_iou,
                stored=MaskFiguresPart.model_validate(asdict(statistics.stored)),
                by_frequency=MaskFiguresPart.model_validate(asdict(statistics.by_frequency)),
            )
        )
    return BankPart(
        granularity=bank.granularity,
        ablation=bank.replacement.ablation,
        threshold=bank.threshold,
        source=source,
        instance_sparsity=instance_sparsity,
        minimum_images=minimum_images,
        classes=tuple(classes),
        too_few=bank.too_few,
    )


def bank_bytes(bank: ClassPathwayBank, classifier: CapturedClassifier) -> bytes:
    """Return the tensors of a bank as the content of their file."""
    tensors: dict[str, Tensor] = {}
    for label, counts in bank.counts.items():
        # The smallest type that holds the number of images: banks of units are large.
        smallest = next(
            kind for kind in (torch.uint8, torch.int16, torch.int32) if counts.images <= torch.iinfo(kind).max
        )
        tensors[f"class_{label}"] = counts.kept.to(smallest)
    for label, mask in bank.masks.items():
        tensors[f"mask_{label}"] = torch.from_numpy(np.packbits(mask.cpu().numpy(), bitorder="little"))
    for index, values in enumerate(bank.replacement.values):
        tensors[f"replacement_{index}"] = values.float()
    return stamped_bytes(tensors, classifier.fingerprint)


def read_bank(path: Path, part: BankPart, classifier: CapturedClassifier) -> ClassPathwayBank:
    """Read a bank.

    Args:
        path: Its file.
        part: What the manifest says of it.
        classifier: The classifier that it must belong to.

    Raises:
        BundleError: If it is damaged or belongs to another classifier.
    """
    tensors = read_stamped(path, classifier.fingerprint)
    with fitting_the_classifier(path):
        return _bank(tensors, part, classifier)


def _bank(tensors: dict[str, Tensor], part: BankPart, classifier: CapturedClassifier) -> ClassPathwayBank:
    learned = {entry.class_index for entry in part.classes if entry.selection is ClassPathwaySelection.TWO_SIDED}
    stored = {entry.class_index for entry in part.classes}
    taps = classifier.taps if part.ablation is not Ablation.ZERO else ()
    expected = {
        *(f"class_{label}" for label in stored),
        *(f"mask_{label}" for label in learned),
        *(f"replacement_{index}" for index in range(len(taps))),
    }
    if set(tensors) != expected:
        raise ValueError(f"it holds {sorted(tensors)}; expected {sorted(expected)}")
    if max(stored | set(part.too_few), default=0) >= classifier.classes or stored & set(part.too_few):
        raise ValueError(f"the {classifier.classes} classes cannot be those with and without a pathway")
    counts = {
        entry.class_index: ClassCounts(
            tensors[f"class_{entry.class_index}"].to(torch.int32), entry.image_count, entry.sparsity_sum
        )
        for entry in part.classes
    }
    values = [_replacement(tensors[f"replacement_{index}"], tap, classifier) for index, tap in enumerate(taps)]
    if len({len(value) for value in values}) > 1:
        raise ValueError("its replacements have different numbers of rows")
    return ClassPathwayBank(
        classifier.taps,
        part.granularity,
        part.threshold,
        counts,
        {entry.class_index: _statistics(entry, part) for entry in part.classes},
        {label: _unpacked(tensors[f"mask_{label}"], len(counts[label].kept)) for label in learned},
        Replacement(part.ablation, tuple(values)),
        part.too_few,
    )


def _unpacked(packed: Tensor, neurons: int) -> Tensor:
    if packed.dtype != torch.uint8 or packed.shape != (-(-neurons // 8),):
        raise ValueError(f"a mask is {packed.dtype} {list(packed.shape)} for {neurons} neurons")
    return torch.from_numpy(np.unpackbits(packed.numpy(), count=neurons, bitorder="little").astype(bool))


def _replacement(values: Tensor, tap: Tap, classifier: CapturedClassifier) -> Tensor:
    fits = values.ndim == 1 + len(tap.shape) and all(
        size in (1, whole) for size, whole in zip(values.shape[1:], tap.shape, strict=True)
    )
    if values.dtype != torch.float32 or not fits or len(values) not in (1, classifier.classes):
        raise ValueError(
            f"the replacement at {tap.name} is {values.dtype} {list(values.shape)}; expected float32 with 1 or "
            f"{classifier.classes} rows that broadcast over {list(tap.shape)}"
        )
    if not bool(values.isfinite().all()):
        raise ValueError(f"the replacement at {tap.name} is not finite")
    return values


def _statistics(entry: ClassPathwayPart, part: BankPart) -> ClassPathwayStatistics:
    return ClassPathwayStatistics(
        image_count=entry.image_count,
        threshold=part.threshold,
        source=part.source,
        selection=entry.selection,
        mean_instance_sparsity=entry.sparsity_sum / entry.image_count,
        mean_instance_iou=entry.mean_instance_iou,
        within_class_iou=entry.within_class_iou,
        cross_class_iou=entry.cross_class_iou,
        stored=_figures(entry.stored),
        by_frequency=_figures(entry.by_frequency),
    )


def _figures(part: MaskFiguresPart) -> MaskFigures:
    return MaskFigures(
        part.sparsity,
        TransferFigures(**part.figures.model_dump()),
        TransferFigures(**part.random_control.model_dump()),
    )
