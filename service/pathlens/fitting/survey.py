"""The survey: what a classifier makes of the images of a fit, before anything is trained."""

from collections.abc import Collection, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from pathlens.classifier.captured import CapturedClassifier
from pathlens.classifier.taps import Tap
from pathlens.errors import FitError
from pathlens.explanation import Ablation
from pathlens.generator.channel_means import channel_means
from pathlens.pathways.replacement import Replacement


@dataclass(frozen=True, eq=False)
class Survey:
    """What was seen of the images.

    Attributes:
        taps: Of the classifier.
        classes: Number of classes, K.
        predicted: Class of each image, int64 [M] in the order of the source; -1 where none was predicted.
        means: Mean output of every tap, one float32 tensor with the tap's shape each.
        magnitudes: Mean magnitude of every channel, one float32 tensor [C] per tap.
    """

    taps: tuple[Tap, ...]
    classes: int
    predicted: Tensor
    means: tuple[Tensor, ...]
    magnitudes: tuple[Tensor, ...]

    @property
    def images(self) -> list[int]:
        """How many were predicted as each class."""
        return torch.bincount(self.predicted[self.predicted >= 0], minlength=self.classes).tolist()

    def positions(self, classes: Collection[int]) -> list[int]:
        """Return where the images are that were predicted as one of some classes."""
        chosen = torch.isin(self.predicted, torch.tensor(sorted(classes)))
        return chosen.nonzero()[:, 0].tolist()

    def replacement(self, ablation: Ablation) -> Replacement:
        """Return what stands in for removed neurons; for `Ablation.OPTIMAL`, where its constants begin."""
        if ablation is Ablation.ZERO:
            return Replacement()
        if ablation is Ablation.MEAN:
            return Replacement(ablation, tuple(mean[None] for mean in self.means))
        constants = (
            tap.spread(channel_means(mean[None], tap)) for tap, mean in zip(self.taps, self.means, strict=True)
        )
        return Replacement(ablation, tuple(constants))


def survey(classifier: CapturedClassifier, batches: Iterable[tuple[list[int], Tensor]], count: int) -> Survey:
    """Run the classifier over images.

    Args:
        classifier: The captured classifier.
        batches: Positions in the source and the images, float32 [B, C, H, W].
        count: Number of images in the source.

    Raises:
        FitError: If an output of the classifier is not finite.
    """
    predicted = torch.full((count,), -1, dtype=torch.int64)
    sums = [torch.zeros(tap.shape, dtype=torch.float64, device=classifier.device) for tap in classifier.taps]
    magnitudes = [torch.zeros(tap.channels, dtype=torch.float64, device=classifier.device) for tap in classifier.taps]
    for positions, batch in batches:
        whole = classifier.observe(batch.to(classifier.device))
        if not bool(whole.logits.isfinite().all()):
            raise FitError("The classifier's output is not finite for an image; check its weights and --mean, --std.")
        predicted[positions] = whole.logits.argmax(1).cpu()
        for tap, total, magnitude, activation in zip(classifier.taps, sums, magnitudes, whole.activations, strict=True):
            total += activation.float().sum(0)
            magnitude += channel_means(activation.abs(), tap).sum(0)
    seen = max(1, int((predicted >= 0).sum()))
    return Survey(
        classifier.taps,
        classifier.classes,
        predicted,
        tuple((total / seen).float() for total in sums),
        tuple((magnitude / seen).float() for magnitude in magnitudes),
    )
