"""What explanations cost, in forward passes of the classifier: medians of interleaved runs in one process."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import median

import torch
from torch import Tensor

from pathlens.attribution.pathway_gradient import pathway_gradient
from pathlens.classifier.captured import CapturedClassifier
from pathlens.evaluation.map_methods import MapMethod
from pathlens.evaluation.observation import Observation
from pathlens.evaluation.pathway_methods import PathwayMethod
from pathlens.explanation import Granularity
from pathlens.pathways.neuron_intgrad import LARGEST_BATCH
from pathlens.pathways.neuron_mct import target_logits

_WITH_MAP = ("neuron_mct",)
"""Pathway methods that are also timed with the map, which adds the same to all of them."""

_ROUNDS = 9
_SECONDS = 4.0
"""Time for the runs of one method: slow ones are run less often, but at least once."""


@dataclass(frozen=True, eq=False)
class CostSettings:
    """What is timed.

    Attributes:
        pathways: Pathway methods by name.
        maps: Map methods that need no pathway, by name.
        granularity: What counts as one neuron.
        sparsity: Of the pathways, in [0, 1).
        steps: Of NeuronIntGrad's integral.
    """

    pathways: Mapping[str, PathwayMethod]
    maps: Mapping[str, MapMethod]
    granularity: Granularity
    sparsity: float
    steps: int


def observe_cost(classifier: CapturedClassifier, images: Tensor, settings: CostSettings) -> list[Observation]:
    """Time every method on a batch, each run beside a plain forward pass of the same batch.

    Measures: "cost" in forward passes, with detail "pathway", "pathway + map" or "map"; "floor" of NeuronIntGrad,
    what the bare passes of its tails add up to; and "seconds per forward".

    Args:
        classifier: The captured classifier.
        images: Preprocessed, float32 [B, C, H, W].
        settings: What is timed.
    """
    with torch.no_grad():
        target = classifier(images).argmax(1)

    def forward() -> None:
        with torch.no_grad():
            classifier(images)

    observations = []
    for name, find in settings.pathways.items():

        def pathway(find: PathwayMethod = find) -> None:
            find(classifier, images, target, settings.granularity).select(settings.sparsity)

        def pathway_and_map(find: PathwayMethod = find) -> None:
            selected = find(classifier, images, target, settings.granularity).select(settings.sparsity)
            pathway_gradient(classifier, images, target, selected)

        works = {"pathway": pathway} | ({"pathway + map": pathway_and_map} if name in _WITH_MAP else {})
        observations += [
            Observation("cost", _in_forwards(work, forward), name, settings.sparsity, detail=detail)
            for detail, work in works.items()
        ]
        if name == "neuron_intgrad":
            floor = _tails_in_forwards(classifier, images, target, settings.steps, forward)
            observations.append(Observation("floor", floor, name, settings.sparsity, detail="pathway"))
    stored = settings.pathways["neuron_mct"](classifier, images, target, settings.granularity).select(settings.sparsity)

    def transferred() -> None:
        forward()
        pathway_gradient(classifier, images, target, stored)

    cost = _in_forwards(transferred, forward)
    observations.append(Observation("cost", cost, "transferred", settings.sparsity, detail="pathway + map"))
    for name, draw in settings.maps.items():

        def draw_map(draw: MapMethod = draw) -> None:
            draw(classifier, images, target)

        observations.append(Observation("cost", _in_forwards(draw_map, forward), name, detail="map"))
    return [*observations, Observation("seconds per forward", median(_seconds(forward) for _ in range(_ROUNDS)))]


def _in_forwards(work: Callable[[], None], forward: Callable[[], None]) -> float:
    forward()
    spent = [_seconds(work)]
    forwards = [_seconds(forward)]
    while len(spent) <= _ROUNDS and sum(spent) + spent[-1] < _SECONDS:
        forwards.append(_seconds(forward))
        spent.append(_seconds(work))
        forwards.append(_seconds(forward))
    # The first run warms up, and counts only where it is so long that no second one is made.
    return median(spent[1:] or spent) / median(forwards[1:] or forwards)


def _seconds(work: Callable[[], None]) -> float:
    started = time.perf_counter()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - started


def _tails_in_forwards(
    classifier: CapturedClassifier, images: Tensor, target: Tensor, steps: int, forward: Callable[[], None]
) -> float:
    """Time bare forward and backward passes from every tap, as many rows at once as NeuronIntGrad computes."""
    recording = classifier.record(images)
    rows = torch.arange(LARGEST_BATCH, device=images.device) % len(images)
    total, forwards = 0.0, list[float]()
    for index, activation in enumerate(recording.activations):
        start = activation[rows].requires_grad_()

        def tail(index: int = index, start: Tensor = start) -> None:
            logits = target_logits(recording.run_tail(index, start, rows), target[rows])
            torch.autograd.grad(logits.sum(), start, allow_unused=True)

        total += _seconds(tail)
        forwards.append(_seconds(forward))
    return total / median(forwards) * steps * len(images) / LARGEST_BATCH
