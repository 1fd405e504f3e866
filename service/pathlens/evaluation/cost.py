"""What explanations cost, in forward passes of the classifier: medians of interleaved runs in one process."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

import torch
from torch import Tensor

from pathlens.attribution.pathway_gradient import pathway_gradient
from pathlens.classifier.captured import CapturedClassifier
from pathlens.evaluation.generated import generated_pathway
from pathlens.evaluation.map_methods import MapMethod
from pathlens.evaluation.observation import Observation
from pathlens.evaluation.pathway_methods import GENERATED, PathwayMethod
from pathlens.explanation import Granularity
from pathlens.generator.generator import PathwayGenerator
from pathlens.pathways.neuron_intgrad import LARGEST_BATCH
from pathlens.pathways.neuron_mct import target_logits
from pathlens.pathways.pathway import ZERO, Pathway
from pathlens.pathways.replacement import Replacement

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
        replacement: What stands in for neurons that pathways remove, with one row or one for each class.
        stored: Likewise, of stored class pathways.
        generator: What generates pathways, on the device of the classifier; None without one.
    """

    pathways: Mapping[str, PathwayMethod]
    maps: Mapping[str, MapMethod]
    granularity: Granularity
    sparsity: float
    steps: int
    replacement: Replacement = ZERO
    stored: Replacement = ZERO
    generator: PathwayGenerator | None = None


def observe_cost(classifier: CapturedClassifier, images: Tensor, settings: CostSettings) -> list[Observation]:
    """Time every method on a batch, each run beside a plain forward pass of the same batch.

    Measures: "cost" in forward passes, with detail "pathway", "pathway + map" or "map"; "floor" of NeuronIntGrad,
    what the bare passes of its tails add up to; and "seconds per forward". A generated pathway has its own sparsity,
    and its cost includes the prediction whose activations the generator reads.

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

    def times(
        name: str, sparsity: float | None, find: Callable[[], Pathway], details: Sequence[str], ablation: str
    ) -> list[Observation]:
        def find_and_draw() -> None:
            pathway_gradient(classifier, images, target, find())

        works = {"pathway": find, "pathway + map": find_and_draw}
        return [
            Observation("cost", _in_forwards(works[detail], forward), name, sparsity, detail=detail, ablation=ablation)
            for detail in details
        ]

    alike, own = settings.replacement.select(target), settings.stored.select(target)
    ablation = alike.ablation.value
    observations = []
    for name, score in settings.pathways.items():

        def select(score: PathwayMethod = score) -> Pathway:
            return score(classifier, images, target, settings.granularity).select(settings.sparsity).under(alike)

        details = ("pathway", "pathway + map") if name in _WITH_MAP else ("pathway",)
        observations += times(name, settings.sparsity, select, details, ablation)
        if name == "neuron_intgrad":
            floor = _tails_in_forwards(classifier, images, target, settings.steps, forward)
            observations.append(
                Observation("floor", floor, name, settings.sparsity, detail="pathway", ablation=ablation)
            )
    if (generator := settings.generator) is not None:

        def generate() -> Pathway:
            return generated_pathway(generator, classifier, images, settings.replacement)

        observations += times(GENERATED, None, generate, ("pathway", "pathway + map"), ablation)
    scores = settings.pathways["neuron_mct"](classifier, images, target, settings.granularity)
    stored = scores.select(settings.sparsity).under(own)

    def look_up() -> Pathway:
        forward()
        return stored

    observations += times("transferred", settings.sparsity, look_up, ("pathway + map",), own.ablation.value)
    for name, draw in settings.maps.items():

        def draw_map(draw: MapMethod = draw) -> None:
            draw(classifier, images, target)

        observations.append(Observation("cost", _in_forwards(draw_map, forward), name, detail="map"))
    return [*observations, Observation("seconds per forward", median(_seconds(forward) for _ in range(_ROUNDS)))]


def _in_forwards(work: Callable[[], object], forward: Callable[[], None]) -> float:
    forward()
    spent = [_seconds(work)]
    forwards = [_seconds(forward)]
    while len(spent) <= _ROUNDS and sum(spent) + spent[-1] < _SECONDS:
        forwards.append(_seconds(forward))
        spent.append(_seconds(work))
        forwards.append(_seconds(forward))
    # The first run warms up, and counts only where it is so long that no second one is made.
    return median(spent[1:] or spent) / median(forwards[1:] or forwards)


def _seconds(work: Callable[[], object]) -> float:
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
