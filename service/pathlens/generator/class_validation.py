"""What the masks of classes are worth on images that do not train them."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pathlens.classifier.captured import CapturedClassifier
from pathlens.explanation import Granularity
from pathlens.generator.parallel import ProcessGroup
from pathlens.pathways.pathway import Pathway
from pathlens.pathways.replacement import Replacement

BATCH = 64

TRIALS, LEAST_OTHERS = 2048, 2
"""Passes through pathways of other classes at a look, and such classes for each image; other ones every time."""

POOLED = 200
"""Images of all classes that each class's own are mixed with: a hundred images tell too little to stand alone."""


@dataclass(frozen=True)
class ValidatedMasks:
    """What a look finds.

    Attributes:
        kept: Share of the images of each class that keep it, [K] on the CPU.
        forced: Share of other images that get it, [K] on the CPU.
        kept_error: Standard error of the former over all images.
        forced_error: Standard error of the latter over all images.
    """

    kept: Tensor
    forced: Tensor
    kept_error: float
    forced_error: float


class ClassValidation:
    """Puts each image through the pathway of its own class and of some others.

    Args:
        classifier: The captured classifier.
        classes: Those with a pathway, int64 [K].
        granularity: What counts as one neuron.
        images: [V, C, H, W]; in each process its share of them. Images of other classes are left out.
        group: The processes that train together.
    """

    def __init__(
        self,
        classifier: CapturedClassifier,
        classes: Tensor,
        granularity: Granularity,
        images: Tensor,
        group: ProcessGroup,
    ) -> None:
        self._classifier = classifier
        self._classes = classes
        self._granularity = granularity
        self._group = group
        with torch.no_grad():
            predicted = torch.cat([classifier(batch).argmax(1) for batch in torch.split(images, BATCH)])
        row_of_class = torch.full((classifier.classes,), -1, device=classes.device)
        row_of_class[classes] = torch.arange(len(classes), device=classes.device)
        own = row_of_class[predicted]
        self._images, self._own = images[own >= 0], own[own >= 0]
        # Few images are tried with more classes each: what forces them is the harder to see.
        wanted = max(LEAST_OTHERS, TRIALS // max(1, len(self._own) * group.size))
        self._others = min(wanted, len(classes) - 1)

    @torch.no_grad()
    def look(self, number: int, masks: Sequence[Tensor], replacement: Replacement) -> ValidatedMasks | None:
        """Measure agreement and forcing.

        Args:
            number: Of the look; decides which other classes are tried.
            masks: Of all classes, one bool tensor [K, ...] per tap.
            replacement: What stands in for removed neurons, with one row or one for each of the classes.

        Returns:
            What was found; None if there is no image of these classes.
        """
        count = len(self._classes)
        # Members in the first row, others in the second: how many there are, and how many get the class.
        shown, hit = torch.zeros(2, count), torch.zeros(2, count)
        places = torch.arange(len(self._own), device=self._own.device)
        for batch in torch.split(places, BATCH):
            for other in range(1 + self._others):
                shift = 1 + (batch + number * self._others + other) % (count - 1) if other else 0
                rows = (self._own[batch] + shift) % count
                pathway = Pathway(
                    self._classifier.taps,
                    tuple(mask[rows] for mask in masks),
                    self._granularity,
                    replacement.select(rows),
                )
                got = self._classifier(self._images[batch], pathway).argmax(1) == self._classes[rows]
                shown[min(other, 1)].index_add_(0, rows.cpu(), torch.ones(len(rows)))
                hit[min(other, 1)].index_add_(0, rows.cpu(), got.float().cpu())
        self._group.add(shown)
        self._group.add(hit)
        if not bool(shown.any()):
            return None
        everywhere = hit.sum(1, keepdim=True) / shown.sum(1, keepdim=True)
        kept, forced = (hit + POOLED * everywhere) / (shown + POOLED)
        # One image more of either kind, because a hundred that agree do not prove that all do.
        count_all = shown.sum(1)
        share = (hit.sum(1) + 1) / (count_all + 2)
        kept_error, forced_error = (share * (1 - share) / count_all).sqrt().tolist()
        return ValidatedMasks(kept, forced, kept_error, forced_error)
