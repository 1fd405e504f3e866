"""Batches of an evaluation, read when they are needed."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray

from pathlens.classifier.captured import CapturedClassifier
from pathlens.classifier.images import ImageSource
from pathlens.classifier.preprocessing import Preprocessing
from pathlens.errors import ImagesError
from pathlens.evaluation.annotations import Annotation
from pathlens.evaluation.batch import Batch, Subject
from pathlens.evaluation.localisation import object_mask


@dataclass(frozen=True, eq=False)
class BatchLoader:
    """Images in an order that mixes classes and is the same in every run with the same seed.

    Attributes:
        classifier: What will classify them.
        preprocessing: From pixels to its input.
        source: The images.
        annotations: What is known of images, by the name that the source gives them.
        limit: Most images; None for all.
        batch_size: Images in one batch.
        seed: Of the order.
    """

    classifier: CapturedClassifier
    preprocessing: Preprocessing
    source: ImageSource
    annotations: Mapping[str, Annotation]
    limit: int | None
    batch_size: int
    seed: int

    @property
    def order(self) -> list[int]:
        """Positions in the source, in the order in which they are evaluated; what cannot be read is left out."""
        return self._contents[0]

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the images in their order and of what is known of them, in hexadecimal."""
        return self._contents[1]

    @property
    def batches(self) -> int:
        """Number of batches."""
        return -(-len(self.order) // self.batch_size)

    @cached_property
    def _contents(self) -> tuple[list[int], str]:
        order = torch.randperm(len(self.source), generator=torch.Generator().manual_seed(self.seed))
        digest = hashlib.sha256()
        readable = []
        for position, pixels in self.source.select(order[: self.limit].tolist()):
            subject = self._subject(position, pixels)
            if subject.boxes:
                try:
                    object_mask(subject)
                except ImagesError as error:
                    raise ImagesError(f"{self.source.name(position)}: {error.message}") from error
            digest.update(f"{self.source.name(position)} {subject}\n".encode())
            digest.update(pixels.tobytes())
            readable.append(position)
        if not readable:
            raise ImagesError(f"None of the images can be read: {'; '.join(self.source.skipped[:3])}")
        return readable, digest.hexdigest()

    def _subject(self, position: int, pixels: NDArray[np.uint8]) -> Subject:
        known = self.annotations.get(self.source.name(position), Annotation())
        height, width = pixels.shape[:2]
        return Subject(position, height, width, known.label, known.boxes)

    def load(self, number: int) -> Batch:
        """Read a batch."""
        subjects, images = [], []
        for position, pixels in self.source.select(self.order[number * self.batch_size :][: self.batch_size]):
            subjects.append(self._subject(position, pixels))
            images.append(torch.from_numpy(self.preprocessing.apply(pixels)))
        return Batch(self.classifier, tuple(subjects), torch.stack(images).to(self.classifier.device))
