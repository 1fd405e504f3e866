"""The survey: what a classifier makes of the images of a fit, before anything is trained."""

from collections.abc import Iterable
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
        images: How many were predicted as each class, int64 [K].
        means: Mean output of every tap, one float32 tensor with the tap's shape each.
        magnitudes: Mean magnitude of every channel, one float32 tensor [C] per tap.
    """

    taps: tuple[Tap, ...]
    images: Tensor
    means: tuple[Tensor, ...]
    magnitudes: tuple[Tensor, ...]

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


def survey(classifier: CapturedClassifier, batches: Iterable[Tensor]) -> Survey:
    """Run the classifier over images.

    Args:
        classifier: The captured classifier.
        batches: Preprocessed, float32 [B, C, H, W], at least one.

    Raises:
        FitError: If an output of the classifier is not finite.
    """
    images = torch.zeros(classifier.classes, dtype=torch.int64)
    sums = [torch.zeros(tap.shape, dtype=torch.float64, device=classifier.device) for tap in classifier.taps]
    magnitudes = [torch.zeros(tap.channels, dtype=torch.float64, device=classifier.device) for tap in classifier.taps]
    for batch in batches:
        whole = classifier.observe(batch.to(classifier.device))
        logits, activations = whole.logits, whole.activations
        if not bool(logits.isfinite().all()):
            raise FitError("The classifier's output is not finite for an image; check its weights and --mean, --std.")
        images += torch.bincount(logits.argmax(1).cpu(), minlength=classifier.classes)
        for tap, total, magnitude, activation in zip(classifier.taps, sums, magnitudes, activations, strict=True):
            total += activation.float().sum(0)
            magnitude += channel_means(activation.abs(), tap).sum(0)
    count = max(1, int(images.sum()))
    return Survey(
        classifier.taps,
        images,
        tuple((total / count).float() for total in sums),
        tuple((magnitude / count).float() for magnitude in magnitudes),
    )
