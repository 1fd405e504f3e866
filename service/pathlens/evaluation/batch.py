"""Images under evaluation, with what the whole classifier makes of them."""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from pathlens.classifier.captured import CapturedClassifier

Box = tuple[float, float, float, float]
"""Left, top, right and bottom edge in pixels of the image."""


@dataclass(frozen=True)
class Subject:
    """An image as it was before preprocessing.

    Attributes:
        position: In the source of the images.
        height: Of the image, in pixels.
        width: Of the image, in pixels.
        label: Its true class; None if unknown.
        boxes: Where the object is; empty if unknown.
    """

    position: int
    height: int
    width: int
    label: int | None = None
    boxes: tuple[Box, ...] = ()


@dataclass(frozen=True, eq=False)
class Batch:
    """Images that are evaluated together.

    Attributes:
        classifier: What classifies them.
        subjects: One per image.
        images: Preprocessed, float32 [B, C, H, W].
    """

    classifier: CapturedClassifier
    subjects: tuple[Subject, ...]
    images: Tensor

    @property
    def positions(self) -> list[int]:
        """Positions of the images in their source."""
        return [subject.position for subject in self.subjects]

    @cached_property
    def probabilities(self) -> Tensor:
        """Of the whole classifier, float32 [B, K]."""
        with torch.no_grad():
            return self.classifier(self.images).softmax(1)

    @property
    def target(self) -> Tensor:
        """The predicted classes, which are what is explained: int64 [B]."""
        return self.probabilities.argmax(1)
