"""Class pathways of an evaluation: one half of a class's images builds them, the other half and others measure them."""

from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from pathlens.classifier.captured import CapturedClassifier
from pathlens.description import TransferFigures
from pathlens.evaluation.observation import Observation
from pathlens.evaluation.transfer import HeldOut, measure_transfer
from pathlens.pathways.bank import ClassPathwayBank, count_pathways
from pathlens.pathways.pathway import Pathway
from pathlens.pathways.random_control import random_pathway

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
    sparsity: float,
    settings: ClassPathwaySettings,
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
        sparsity: Of the pathways.
        settings: How.
    """
    predicted = held_out.predicted
    building = _every_second(predicted)
    totals = count_pathways([(predicted[building], pathway[building])])
    enough = {label: total for label, total in totals.items() if total.images >= settings.minimum_images}
    bank = ClassPathwayBank(pathway.taps, pathway.granularity, settings.threshold, enough).to(classifier.device)
    observations = []
    for label in enough:
        rows = _members_and_others(predicted, building, label, settings)
        parts = torch.split(rows, settings.batch_size)
        batches = [HeldOut(held_out.images[part], held_out.probabilities[part]) for part in parts]
        mask = bank.transfer([label])
        control = random_pathway(mask, settings.seed + label)
        subject = f"{label} {labels[label]}"
        for chosen, is_control in ((mask, False), (control, True)):
            figures = measure_transfer(classifier, chosen, label, batches)
            observations += [
                Observation(measure, value, method, sparsity, is_control, subject=subject)
                for measure, value in _measured(figures)
            ]
        observations.append(Observation("class sparsity", float(mask.sparsity[0]), method, sparsity, subject=subject))
    return observations


def observe_ious(predicted: Tensor, pathway: Pathway, method: str, sparsity: float) -> list[Observation]:
    """Measure how much the pathways of one class have in common: acIOU within it, cross IoU with other classes.

    Args:
        predicted: Classes, int64 [M].
        pathway: Pathways of the same images.
        method: Where they come from.
        sparsity: Of the pathways.

    Returns:
        For every class with two images or more its mean pairwise IoU, and for every class that of its images with
        those of other classes (arXiv 2309.09887, section 4).
    """
    iou = _pairwise_iou(pathway)
    same = predicted[:, None] == predicted[None, :]
    pairs = ~torch.eye(len(predicted), dtype=torch.bool)
    observations = []
    for label in sorted(set(predicted.tolist())):
        rows = predicted == label
        for measure, chosen in (("acIOU", same & pairs), ("cross IoU", ~same)):
            values = iou[rows][chosen[rows]]
            if len(values):
                observations.append(Observation(measure, float(values.mean()), method, sparsity, subject=label))
    return observations


def _pairwise_iou(pathway: Pathway) -> Tensor:
    """Return the IoU of every pathway with every other, float32 [M, M]."""
    intersection = torch.zeros(len(pathway), len(pathway))
    for mask in pathway.masks:
        # As 0 and 1 in float32, a matrix product counts exactly up to 2²⁴ neurons at once.
        for part in torch.split(mask.flatten(1), 1 << 16, dim=1):
            values = part.float()
            intersection += values @ values.T
    kept = intersection.diagonal()
    union = kept[:, None] + kept[None, :] - intersection
    return torch.where(union > 0, intersection / union.clamp(min=1), 1.0)


def _every_second(predicted: Tensor) -> Tensor:
    """Choose the first, third … image of each class: bool [M]."""
    before = (predicted[:, None] == predicted[None, :]).tril(-1).sum(1)
    return before % 2 == 0


def _members_and_others(predicted: Tensor, building: Tensor, label: int, settings: ClassPathwaySettings) -> Tensor:
    members = ((predicted == label) & ~building).nonzero()[:, 0]
    others = (predicted != label).nonzero()[:, 0]
    generator = torch.Generator().manual_seed(settings.seed + label)
    order = torch.randperm(len(others), generator=generator)[: settings.others]
    return torch.cat([members, others[order.to(others.device)]])


def _measured(figures: TransferFigures) -> list[tuple[str, float]]:
    values = asdict(figures)
    return [(_MEASURES[name], values[name]) for name in _MEASURES if values[name] is not None]
