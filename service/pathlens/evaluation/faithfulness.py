"""Faithfulness: what the pathway of an image does to this image, and to an image of another class."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import permutations

import torch
from torch import Tensor

from pathlens.classifier.taps import Tap
from pathlens.errors import EvaluationError
from pathlens.evaluation.batch import Batch
from pathlens.evaluation.observation import Observation
from pathlens.explanation import Granularity
from pathlens.pathways.pathway import Pathway
from pathlens.pathways.random_control import random_pathway


@dataclass(frozen=True, eq=False)
class InstancePathways:
    """The pathways of a batch by one method at one sparsity.

    Attributes:
        method: Name of the method.
        sparsity: What it was asked for; None for stored pathways and for those that find their own.
        pathway: Of every image of the batch.
    """

    method: str
    sparsity: float | None
    pathway: Pathway


def observe_faithfulness(batch: Batch, instances: InstancePathways, dead: Tensor, seed: int) -> list[Observation]:
    """Measure pathways and, beside them, random ones that keep as many neurons at each tap.

    Measures: agreement, confidence increase (mIC), confidence drop (mDC), realised sparsity, dead share (of the kept
    neurons) and, with the pathway applied to an image of another predicted class, instance forcing, instance leak and
    instance leak reference.

    Args:
        batch: The images.
        instances: Their pathways.
        dead: Which neurons put out nothing but zero, bool [B, N].
        seed: Of the control.
    """
    control = random_pathway(instances.pathway, seed)
    observations = []
    for pathway, is_control in ((instances.pathway, False), (control, True)):
        measured = {
            **_on_itself(batch, pathway),
            **_on_another_class(batch, pathway),
            "realised sparsity": pathway.sparsity,
            "dead share": (pathway.flat() & dead).sum(1) / pathway.kept.clamp(min=1),
        }
        for measure, values in measured.items():
            for subject, value in zip(batch.positions, values.double().tolist(), strict=True):
                # An image without a partner of another class has no value there.
                if not math.isnan(value):
                    observations.append(
                        Observation(
                            measure,
                            value,
                            instances.method,
                            instances.sparsity,
                            is_control,
                            subject=subject,
                            ablation=pathway.ablation.value,
                        )
                    )
    return observations


def observe_overlap(batch: Batch, instances: list[InstancePathways]) -> list[Observation]:
    """Measure the intersection over union of every two methods' pathways of the same image at the same sparsity."""
    observations = []
    for one, other in permutations(instances, 2):
        if one.sparsity == other.sparsity:
            for subject, value in zip(batch.positions, one.pathway.iou(other.pathway).tolist(), strict=True):
                observations.append(
                    Observation(
                        "overlap",
                        value,
                        one.method,
                        one.sparsity,
                        detail=other.method,
                        subject=subject,
                        ablation=one.pathway.ablation.value,
                    )
                )
    return observations


def observe_spread(instances: InstancePathways) -> list[Observation]:
    """Measure how the sparsities that images find for themselves differ.

    Measures: sparsity spread (the standard deviation), lowest and highest sparsity.

    Args:
        instances: The pathways of all images.
    """
    sparsity = instances.pathway.sparsity
    values = {
        "sparsity spread": sparsity.std(correction=0),
        "lowest sparsity": sparsity.min(),
        "highest sparsity": sparsity.max(),
    }
    ablation = instances.pathway.ablation.value
    return [
        Observation(measure, float(value), instances.method, instances.sparsity, ablation=ablation)
        for measure, value in values.items()
    ]


def dead_neurons(batch: Batch, granularity: Granularity) -> Tensor:
    """Tell which neurons put out nothing but zero for an image, bool [B, N].

    Args:
        batch: The images.
        granularity: What counts as one neuron; a channel is dead if its whole map is.
    """
    with torch.no_grad():
        activations = batch.classifier.record(batch.images).activations
    silent = [
        _silent(activation, tap, granularity)
        for tap, activation in zip(batch.classifier.taps, activations, strict=True)
    ]
    return torch.cat(silent, 1)


def _silent(activation: Tensor, tap: Tap, granularity: Granularity) -> Tensor:
    zero = activation == 0
    if granularity is Granularity.CHANNEL:
        zero = zero.movedim(1 + tap.channel_dimension, 1).flatten(2).all(2) if zero.ndim > 2 else zero
    return zero.flatten(1)


def _on_itself(batch: Batch, pathway: Pathway) -> Mapping[str, Tensor]:
    alone = _probabilities(batch, batch.images, pathway)
    p, q = _of_target(batch.probabilities, batch.target), _of_target(alone, batch.target)
    return {
        "agreement": alone.argmax(1) == batch.target,
        "confidence increase": q > p,
        "confidence drop": (p - q).clamp(min=0) / p,
    }


def _on_another_class(batch: Batch, pathway: Pathway) -> Mapping[str, Tensor]:
    partner = _partners(batch.target)
    lonely = partner < 0
    rows = partner.clamp(min=0)
    alone = _probabilities(batch, batch.images[rows], pathway)
    values = {
        "instance forcing": (alone.argmax(1) == batch.target).double(),
        "instance leak": _of_target(alone, batch.target).double(),
        "instance leak reference": _of_target(batch.probabilities[rows], batch.target).double(),
    }
    return {measure: value.masked_fill(lonely, float("nan")) for measure, value in values.items()}


def _partners(target: Tensor) -> Tensor:
    """Return for each image the next one of the batch that is predicted as another class; -1 without one."""
    count = len(target)
    following = (torch.arange(count)[:, None] + torch.arange(1, count + 1)) % count
    differs = (target[following.to(target.device)] != target[:, None]).cpu()
    first = differs.int().argmax(1, keepdim=True)
    return torch.where(differs.any(1), following.gather(1, first)[:, 0], -1).to(target.device)


def _probabilities(batch: Batch, images: Tensor, pathway: Pathway) -> Tensor:
    with torch.no_grad():
        probabilities = batch.classifier(images, pathway).softmax(1)
    if not bool(probabilities.isfinite().all()):
        raise EvaluationError(f"A pathway network's output is not finite for an image of {batch.positions}.")
    return probabilities


def _of_target(probabilities: Tensor, target: Tensor) -> Tensor:
    return probabilities.gather(1, target[:, None])[:, 0]
