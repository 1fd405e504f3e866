"""The first part: what predictions and explanations cost in one process, in plain forward passes of the classifier."""

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.bench.agreement import disagreements
from benchmarks.bench.captum_explanations import captum_explanations
from benchmarks.bench.class_masks import make_bundle
from benchmarks.bench.routes import ROUTES, BarePasses, Route, answers, requests
from benchmarks.bench.settings import BATCH, Settings
from benchmarks.bench.subjects import Subject
from benchmarks.bench.timing import Work, interleave
from pathlens.classifier.captured import CapturedClassifier
from pathlens.explainer import Explainer
from pathlens.onnx_export.graphs import serving_graphs
from pathlens.onnx_export.stage_graphs import ServingGraphs
from pathlens.onnx_export.subject import ExplainedClassifier

Row = dict[str, Any]
Tell = Callable[[str], None]
"""Is told what is measured next."""

BARE, WHOLE, OTHERS = "bare passes", "whole answer", "other explanations"
ONE_CLASS, CLASSES, ONE_IMAGE = f"{BATCH} of one class", f"{BATCH} of different classes", "1"


class Explainers:
    """The explainers of one subject, made when they are asked for and kept.

    Args:
        subject: What they explain.
        device: Where they compute.
        backend: "torch" or "onnxruntime".
        classifier: The subject's in another precision; None for its own.
    """

    def __init__(
        self, subject: Subject, device: torch.device, backend: str, classifier: CapturedClassifier | None = None
    ) -> None:
        self._subject, self._device, self._classifier = subject, device, classifier
        self._graphs = _graphs(subject) if backend == "onnxruntime" else None
        self._made: dict[tuple[str, bool], Explainer] = {}

    def of(self, route: Route) -> Explainer:
        """Return the explainer for a route."""
        key = route.masks, route.is_sliced
        if key not in self._made:
            bundle = make_bundle(self._subject, route.masks, self._graphs, self._classifier)
            # Whoever asks for no slices gets the masks applied to the whole classifier.
            self._made[key] = (
                bundle.explainer(self._device) if route.is_sliced else bundle.explainer(self._device, slice_bytes=0)
            )
        return self._made[key]


def measure(subject: Subject, settings: Settings, tell: Tell) -> Iterator[list[Row] | str]:
    """Measure every route on both levels, with every backend and for several batches.

    Args:
        subject: What is explained.
        settings: How.
        tell: Is told what is measured next.

    Yields:
        The rows of one group after the other; and, as text, what is wrong with the results of a route.
    """
    classifier = subject.classifier.to(settings.device)
    for backend in ("torch",) if settings.device.type != "cpu" else ("torch", "onnxruntime"):
        explainers = Explainers(subject, settings.device, backend)
        for batch, (images, target) in batches(subject, settings.device).items():
            routes = [route for route in ROUTES if batch != CLASSES or route.is_transferred]
            tell(f"{backend}, {batch}: is it right?")
            for route in routes:
                if route.is_transferred:
                    slices_of(explainers.of(route), target)
                yield from disagreements(route, explainers.of(route), classifier, images, target)
            tell(f"{backend}, {batch}")
            works = route_works(routes, explainers, images, target)
            if backend == "torch" and batch != CLASSES:
                others = captum_explanations(subject.original.to(settings.device), images, target)
                works |= {(OTHERS, name): work for name, work in others.items()}
            rows = time_works(works, classifier, images, settings, {"backend": backend, "batch": batch})
            slices = {route.name: slices_of(explainers.of(route), target) for route in routes if route.is_transferred}
            yield [row | {"slices": slices.get(row["name"])} for row in rows]


def batches(subject: Subject, device: torch.device) -> Mapping[str, tuple[Tensor, Tensor]]:
    """Return the images and targets of each kind of batch.

    The images are the same ones, of different classes; where a batch is of one class, all are asked for that one.
    """
    rows = subject.rows_of_different_classes(BATCH)
    images, target = subject.images[rows].to(device), subject.predicted[rows].to(device)
    return {
        ONE_CLASS: (images, target[:1].expand(BATCH).clone()),
        CLASSES: (images, target),
        ONE_IMAGE: (images[:1], target[:1]),
    }


def slices_of(explainer: Explainer, target: Tensor) -> dict[str, Any]:
    """Cut the slices of the classes that are asked for, as far as they are worth it, and describe them.

    Args:
        explainer: Keeps them.
        target: Classes with a stored pathway, int64 [B].

    Returns:
        How many classes there are, how many of them have a slice, the mean work of these in parts of the classifier's,
        and the mean sparsity of all.
    """
    labels = sorted(set(target.tolist()))
    found = [piece for label in labels if (piece := explainer.backend.slices.get(label)) is not None]
    return {
        "classes": len(labels),
        "sliced": len(found),
        "work": round(sum(piece.work for piece in found) / len(found), 4) if found else None,
        "sparsity": round(float(explainer.bank.transfer(labels).sparsity.mean()), 4),
    }


def route_works(
    routes: list[Route], explainers: Explainers, images: Tensor, target: Tensor
) -> dict[tuple[str, str], Work]:
    """Return what runs each route on each level."""
    works: dict[tuple[str, str], Work] = {}
    arrays = list(images.cpu().numpy())
    for route in routes:
        explainer = explainers.of(route)
        works[BARE, route.name] = partial(BarePasses(explainer).run, route, images, target)
        works[WHOLE, route.name] = partial(answers, explainer, requests(route, arrays, target.tolist()))
    return works


def time_works(
    works: Mapping[tuple[str, str], Work],
    classifier: CapturedClassifier,
    images: Tensor,
    settings: Settings,
    circumstances: Mapping[str, str],
) -> list[Row]:
    """Time works beside plain forward passes of the original captured classifier.

    Args:
        works: By level and name.
        classifier: The original one.
        images: What it classifies.
        settings: How long.
        circumstances: Repeated in every row.
    """

    def forward() -> None:
        with torch.no_grad():
            classifier(images)

    named = {"\n".join(key): work for key, work in works.items()}
    timings = interleave(named, forward, settings.device, settings.rounds, settings.group_seconds, settings.seed)
    targets = {route.name: route.target for route in ROUTES}
    rows = []
    for level, name in works:
        timing = timings[f"{level}\n{name}"]
        wanted = targets.get(name) if len(images) == BATCH else None
        meets = None if wanted is None else timing.ratio <= wanted
        judged = {"target": wanted, "meets": meets, "slices": None}
        rows.append({"level": level, "name": name, **circumstances, **timing.row(), **judged})
    return rows


def _graphs(subject: Subject) -> ServingGraphs:
    bank = make_bundle(subject, "by frequency").bank
    graphs = serving_graphs(ExplainedClassifier(subject.classifier, bank, subject.generator))
    return graphs.stamped(subject.classifier.fingerprint)
