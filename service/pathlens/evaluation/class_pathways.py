"""Class pathways of an evaluation: one half of a class's images builds them, the other half and others measure them."""

from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from pathlens.classifier.captured import CapturedClassifier
from pathlens.description import TransferFigures
from pathlens.evaluation.observation import Observation
from pathlens.evaluation.transfer import HeldOut, measure_transfer
from pathlens.pathways.bank import ClassPathwayBank, count_pathways
from pathlens.pathways.overlap import measure_overlap
from pathlens.pathways.pathway import ZERO, Pathway
from pathlens.pathways.random_control import random_pathway
from pathlens.pathways.replacement import Replacement

_MEASURES = {
    "agreement": "class agreement",
    "mean_increase": "class confidence increase",
    "mean_drop": "class confidence drop",
    "forcing": "forcing",
    "leak": "leak",
    "leak_reference": "leak reference",
}


@dataclass(frozen=True)
class ClassPathwaySettings:
    """How class pathways are built and measured.

    Attributes:
        threshold: τ, the share of a class's pathways that must keep a neuron, in (0, 1].
        minimum_images: A class needs as many building images to have a pathway.
        others: Most images of other classes that measure one class.
        batch_size: Images in one pass.
        seed: Of the control and of the choice among the others.
    """

    threshold: float
    minimum_images: int
    others: int
    batch_size: int
    seed: int


def observe_class_pathways(
    classifier: CapturedClassifier,
    held_out: HeldOut,
    pathway: Pathway,
    labels: tuple[str, ...],
    method: str,
    sparsity: float | None,
    settings: ClassPathwaySettings,
    replacement: Replacement = ZERO,
) -> list[Observation]:
    """Measure how class pathways transfer, each beside a random one of the same size per tap.

    Of each predicted class every second image builds and the others measure. Measures: class sparsity, class agreement,
    class confidence increase and drop, forcing, leak and leak reference, one value per class.

    Args:
        classifier: The captured classifier.
        held_out: All images.
        pathway: Their pathways, in the same order.
        labels: One per class.
        method: Where the pathways come from.
        sparsity: Of the pathways; None if each finds its own.
        settings: How.
        replacement: What stands in for removed neurons, with one row or one for each class.
    """
    predicted = held_out.predicted
    building = _every_second(predicted)
    totals = count_pathways([(predicted[building], pathway[building])])
    enough = {label: total for label, total in totals.items() if total.images >= settings.minimum_images}
    bank = ClassPathwayBank(pathway.taps, pathway.granularity, settings.threshold, enough, replacement=replacement).to(
        classifier.device
    )
    return _observe_bank(classifier, held_out, bank, ~building, labels, method, sparsity, settings)


def observe_stored_class_pathways(
    classifier: CapturedClassifier,
    held_out: HeldOut,
    bank: ClassPathwayBank,
    labels: tuple[str, ...],
    method: str,
    settings: ClassPathwaySettings,
) -> list[Observation]:
    """Measure the stored pathways of the classes that occur, as `observe_class_pathways` measures others.

    No image builds them, so all images of a class measure its pathway, under what the bank says stands in for removed
    neurons.

    Args:
        classifier: The captured classifier.
        held_out: All images.
        bank: The stored class pathways, on the device of the classifier.
        labels: One per class.
        method: Which masks they are.
        settings: How.
    """
    everything = torch.ones_like(held_out.predicted, dtype=torch.bool)
    return _observe_bank(classifier, held_out, bank, everything, labels, method, None, settings)


def observe_ious(predicted: Tensor, pathway: Pathway, method: str, sparsity: float | None) -> list[Observation]:
    """Measure how much the pathways of one class have in common: acIOU within it, cross IoU with other classes.

    Args:
        predicted: Classes, int64 [M].
        pathway: Pathways of the same images.
        method: Where they come from.
        sparsity: Of the pathways; None if each finds its own.

    Returns:
        For every class with two images or more its mean pairwise IoU, and for every class that of its images with
        those of other classes (arXiv 2309.09887, section 4).
    """
    observations = []
    for label, overlap in measure_overlap(predicted, pathway).items():
        for measure, value in (("acIOU", overlap.within), ("cross IoU", overlap.cross)):
            if value is not None:
                observations.append(
                    Observation(measure, value, method, sparsity, subject=label, ablation=pathway.ablation.value)
                )
    return observations


def _observe_bank(
    classifier: CapturedClassifier,
    held_out: HeldOut,
    bank: ClassPathwayBank,
    measuring: Tensor,
    labels: tuple[str, ...],
    method: str,
    sparsity: float | None,
    settings: ClassPathwaySettings,
) -> list[Observation]:
    predicted = held_out.predicted
    observations = []
    for label in sorted(set(predicted.tolist())):
        if label not in bank:
            continue
        rows = _members_and_others(predicted, measuring, label, settings)
        parts = torch.split(rows, settings.batch_size)
        batches = [HeldOut(held_out.images[part], held_out.probabilities[part]) for part in parts]
        mask = bank.transfer([label])
        control = random_pathway(mask, settings.seed + label)
        found = [
            (measure, value, is_control)
            for chosen, is_control in ((mask, False), (control, True))
            for measure, value in _measured(measure_transfer(classifier, chosen, label, batches))
        ]
        observations += [
            Observation(
                measure,
                value,
                method,
                sparsity,
                is_control,
                subject=f"{label} {labels[label]}",
                ablation=mask.ablation.value,
            )
            for measure, value, is_control in [*found, ("class sparsity", float(mask.sparsity[0]), False)]
        ]
    return observations


def _every_second(predicted: Tensor) -> Tensor:
    """Choose the first, third … image of each class: bool [M]."""
    before = (predicted[:, None] == predicted[None, :]).tril(-1).sum(1)
    return before % 2 == 0


def _members_and_others(predicted: Tensor, measuring: Tensor, label: int, settings: ClassPathwaySettings) -> Tensor:
    members = ((predicted == label) & measuring).nonzero()[:, 0]
    others = (predicted != label).nonzero()[:, 0]
    generator = torch.Generator().manual_seed(settings.seed + label)
    order = torch.randperm(len(others), generator=generator)[: settings.others]
    return torch.cat([members, others[order.to(others.device)]])


def _measured(figures: TransferFigures) -> list[tuple[str, float]]:
    values = asdict(figures)
    return [(_MEASURES[name], values[name]) for name in _MEASURES if values[name] is not None]
