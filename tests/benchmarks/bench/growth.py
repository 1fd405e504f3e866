"""The fifth part: how costs grow with the batch, the image, the number of classes, and the slices that are kept."""

import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.bench.class_masks import class_bank, make_bundle
from benchmarks.bench.in_process import Explainers, Row, Tell, slices_of
from benchmarks.bench.routes import (
    BY_CONTRIBUTION,
    MASKED,
    PREDICT,
    SLICED,
    BarePasses,
    Route,
    answers,
    requests,
)
from benchmarks.bench.settings import BATCH, Settings
from benchmarks.bench.subjects import Subject
from benchmarks.bench.timing import Work, interleave
from pathlens.classifier.capture import capture
from pathlens.classifier.captured import CapturedClassifier
from pathlens.explainer import Explainer
from pathlens.slicing.cache import SliceCache

IMAGES = (1, 2, 4, 8, 16, 32)
CLASSES = (1, 2, 4, 8)
SIDES = (0.5, 0.75, 1.0, 1.25)
"""Of images, in sides of those that the classifier was made for."""
SLICES = 32
_PLENTY = 2**40
_ROUNDS = 9


def measure(subject: Subject, settings: Settings, tell: Tell) -> Iterator[list[Row] | str]:
    """Measure how costs grow.

    Args:
        subject: What is explained.
        settings: How.
        tell: Is told what is measured next.

    Yields:
        The rows of one size after the other.
    """
    explainers = Explainers(subject, settings.device, "torch")
    tell("growth with the batch")
    for count in IMAGES:
        chosen = (subject.rows_of_different_classes(len(subject.images)) * count)[:count]
        images, labels = subject.images[chosen], subject.predicted[chosen[:1]].expand(count).tolist()
        works: dict[str, Work] = {
            route.name: partial(answers, explainers.of(route), requests(route, list(images.numpy()), labels))
            for route in (PREDICT, SLICED, MASKED, BY_CONTRIBUTION)
        }
        yield _timed("images in a batch", count, works, subject.classifier, images, settings)
    tell("growth with the classes")
    rows = subject.rows_of_different_classes(BATCH)
    for count in CLASSES:
        images, target = subject.images[rows], subject.predicted[rows][torch.arange(BATCH) % count]
        works = {route.name: _bare(explainers.of(route), route, images, target) for route in (SLICED, MASKED)}
        yield _timed(f"classes in a batch of {BATCH}", count, works, subject.classifier, images, settings)
    side = subject.classifier.input_shape[1]
    for relative in SIDES:
        tell("growth with the image")
        images = F.interpolate(subject.images[rows], size=(round(side * relative),) * 2, mode="bilinear")
        classifier = capture(subject.original, images[:2])
        yield _timed(
            "side of the image",
            round(side * relative),
            _of_size(subject, classifier, images),
            classifier,
            images,
            settings,
        )
    tell("growth with the slices")
    yield _slices(subject, settings)


def _bare(explainer: Explainer, route: Route, images: Tensor, target: Tensor) -> Work:
    if route.is_transferred:
        slices_of(explainer, target)
    return partial(BarePasses(explainer).run, route, images, target)


def _of_size(subject: Subject, classifier: CapturedClassifier, images: Tensor) -> dict[str, Work]:
    target = subject.predicted[:1].expand(len(images)).clone()
    works: dict[str, Work] = {}
    for route in (PREDICT, SLICED, MASKED, BY_CONTRIBUTION):
        bundle = replace(make_bundle(subject, route.masks, None, classifier), generator=None)
        explainer = bundle.explainer() if route.is_sliced else bundle.explainer(slice_bytes=0)
        works[route.name] = _bare(explainer, route, images, target)
    return works


def _timed(
    of: str, size: int, works: dict[str, Work], classifier: CapturedClassifier, images: Tensor, settings: Settings
) -> list[Row]:
    def forward() -> None:
        with torch.no_grad():
            classifier(images)

    timings = interleave(
        works,
        forward,
        settings.device,
        min(settings.rounds, _ROUNDS),
        settings.group_seconds / 8,
        settings.seed,
    )
    return [
        {
            "of": of,
            "size": size,
            "name": name,
            **timing.row(),
            "milliseconds_per_image": float(f"{timing.milliseconds / len(images):.4g}"),
        }
        for name, timing in timings.items()
    ]


def _slices(subject: Subject, settings: Settings) -> list[Row]:
    """Cut one class after the other: what the first use of each takes, the next one, and what all of them hold."""
    bank = class_bank(subject, SLICED.masks)
    cache = SliceCache(subject.classifier, bank, _PLENTY)
    rows, held = list[Row](), 0
    for number, label in enumerate(list(bank.counts)[: 4 if settings.quick else SLICES], 1):
        started = time.perf_counter()
        piece = cache.get(label)
        cut = time.perf_counter()
        cache.get(label)
        found = time.perf_counter()
        held += piece.bytes if piece is not None else 0
        rows.append(
            {
                "of": "slices kept",
                "size": number,
                "name": SLICED.name,
                "first_use_milliseconds": round(1e3 * (cut - started), 3),
                "hit_milliseconds": round(1e3 * (found - cut), 5),
                "kept_bytes": held,
                "work": None if piece is None else round(piece.work, 4),
            }
        )
    return rows
