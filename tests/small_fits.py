"""Small fits: random images for the network "decisive", and trainings of a few steps."""

import dataclasses
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from pathlens.bundle.store import Bundle
from pathlens.classifier.captured import CapturedClassifier
from pathlens.classifier.images import ImageSource
from pathlens.classifier.preprocessing import Preprocessing
from pathlens.description import ClassPathwaySelection
from pathlens.explanation import PathwaySource
from pathlens.fitting.fit import fit
from pathlens.fitting.progress import FitProgress, Silence, Stage
from pathlens.fitting.settings import FitSettings
from pathlens.fitting.subject import FitSubject
from small_networks import CLASSES, captured

PREPROCESSING = Preprocessing(8, 8, mean=(0.5,) * 3, std=(0.1,) * 3)
LABELS = tuple(f"class {label}" for label in range(CLASSES))
COUNT = 60
BY_FREQUENCY = FitSettings(
    "tiny",
    source=PathwaySource.NEURON_MCT,
    selection=ClassPathwaySelection.FREQUENCY,
    minimum_images=3,
    others=8,
)
TRAINED = FitSettings(
    "tiny", price=20, generator_steps=30, class_steps=30, training_batch=16, minimum_images=3, others=8
)
WAYS = {"by frequency": BY_FREQUENCY, "trained": TRAINED}


def npz(path: Path, count: int = COUNT, seed: int = 0) -> ImageSource:
    pixels = np.random.default_rng(seed).integers(0, 256, (count, 8, 8, 3), dtype=np.uint8)
    np.savez(path, images=pixels)
    return ImageSource(path)


def folder(path: Path, bad: list[int], count: int = COUNT) -> ImageSource:
    path.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (count, 8, 8, 3), dtype=np.uint8)
    for position in range(count):
        file = path / f"{position:03}.png"
        if position in bad:
            file.write_bytes(b"not an image")
        else:
            Image.fromarray(pixels[position]).save(file)
    return ImageSource(path)


def inputs(source: ImageSource, positions: list[int]) -> Tensor:
    return torch.stack([torch.from_numpy(PREPROCESSING.apply(pixels)) for _, pixels in source.select(positions)])


def subject_of(
    source: ImageSource, classifier: CapturedClassifier | None = None, held_out_images: ImageSource | None = None
) -> FitSubject:
    classifier = classifier or captured("decisive")
    labels = LABELS[: classifier.classes]
    return FitSubject(classifier, PREPROCESSING, labels, source, held_out_images=held_out_images)


def fitted(
    source: ImageSource,
    unfinished: Path,
    settings: FitSettings = BY_FREQUENCY,
    progress: FitProgress | None = None,
    restart: bool = False,
    held_out_images: ImageSource | None = None,
    **changes: object,
) -> Bundle:
    settings = dataclasses.replace(settings, **changes)  # type: ignore[arg-type]
    subject = subject_of(source, held_out_images=held_out_images)
    bundle = fit(subject, settings, unfinished, progress or Silence(), restart=restart)
    assert bundle is not None
    return bundle


class Recorder:
    """Notes what is shown of a fit, and may interrupt it."""

    def __init__(self, stage: str = "", after: int = 0) -> None:
        self.seen: dict[str, tuple[int, int]] = {}
        self.figures: dict[str, Mapping[str, float]] = {}
        self._interrupted, self._after = stage, after

    @contextmanager
    def stage(self, name: str, total: int, done: int = 0) -> Iterator[Stage]:
        self.seen[name] = (done, total)
        self._name, self._advanced = name, 0
        yield self

    def advance(self, count: int, figures: Mapping[str, float] | None = None) -> None:
        done, total = self.seen[self._name]
        self.seen[self._name] = (done + count, total)
        self.figures[self._name] = figures or {}
        self._advanced += count
        if self._name == self._interrupted and self._advanced >= self._after:
            raise KeyboardInterrupt
