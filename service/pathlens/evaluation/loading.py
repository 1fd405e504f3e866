"""Batches of an evaluation, read when they are needed."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from pathlens.classifier.captured import CapturedClassifier
from pathlens.classifier.images import ImageSource
from pathlens.classifier.preprocessing import Preprocessing
from pathlens.errors import ImagesError
from pathlens.evaluation.annotations import Annotation
from pathlens.evaluation.batch import Batch, Subject


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
        """Positions in the source, in the order in which they are evaluated."""
        order = torch.randperm(len(self.source), generator=torch.Generator().manual_seed(self.seed))
        positions: list[int] = order[: self.limit].tolist()
        return positions

    @property
    def batches(self) -> int:
        """Number of batches."""
        return -(-len(self.order) // self.batch_size)

    def fingerprint(self) -> str:
        """Return a SHA-256 of the images in their order and of what is known of them, in hexadecimal."""
        digest = hashlib.sha256()
        for position, pixels in self.source.select(self.order):
            name = self.source.name(position)
            digest.update(f"{name} {pixels.shape} {self.annotations.get(name)}\n".encode())
            digest.update(pixels.tobytes())
        return digest.hexdigest()

    def load(self, number: int) -> Batch:
        """Read a batch; images that cannot be read are left out and noted in the source.

        Raises:
            ImagesError: If none of its images can be read.
        """
        subjects, images = [], []
        for position, pixels in self.source.select(self.order[number * self.batch_size :][: self.batch_size]):
            known = self.annotations.get(self.source.name(position), Annotation())
            height, width = pixels.shape[:2]
            subjects.append(Subject(position, height, width, known.label, known.boxes))
            images.append(torch.from_numpy(self.preprocessing.apply(pixels)))
        if not images:
            raise ImagesError(f"No image of a whole batch could be read: {'; '.join(self.source.skipped[-3:])}")
        return Batch(self.classifier, tuple(subjects), torch.stack(images).to(self.classifier.device))
