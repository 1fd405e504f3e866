"""The class-pathway bank: which neurons the images of a class have in common (arXiv 2309.09887, section 3.4)."""

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pathlens.classifier.taps import Tap
from pathlens.description import ClassPathwayStatistics
from pathlens.errors import FailedPreconditionError
from pathlens.explanation import Granularity
from pathlens.pathways.pathway import ZERO, Pathway, from_flat
from pathlens.pathways.replacement import Replacement


@dataclass(frozen=True, eq=False)
class ClassCounts:
    """How often each neuron was kept in the pathways of one class.

    Attributes:
        kept: int32 [N].
        images: Number of pathways counted.
        sparsity_sum: Sum of their sparsities.
    """

    kept: Tensor
    images: int
    sparsity_sum: float

    @property
    def frequency(self) -> Tensor:
        """Fraction of the pathways that keep each neuron, float64 [N]."""
        return self.kept.double() / self.images


def count_pathways(batches: Iterable[tuple[Tensor, Pathway]]) -> dict[int, ClassCounts]:
    """Count, class by class, how many instance pathways keep each neuron.

    Args:
        batches: Predicted classes, int64 [B], with the pathways of the same images. The pathways may come from any
            source: contributions or a generator.
    """
    totals: dict[int, ClassCounts] = {}
    for predicted, pathway in batches:
        flat, sparsity = pathway.flat(), pathway.sparsity
        for label in set(predicted.tolist()):
            rows = predicted == label
            kept = flat[rows].sum(0, dtype=torch.int32).cpu()
            images, sparsity_sum = int(rows.sum()), float(sparsity[rows].sum())
            before = totals.get(label)
            if before is not None:
                kept, images, sparsity_sum = (
                    kept + before.kept,
                    images + before.images,
                    sparsity_sum + before.sparsity_sum,
                )
            totals[label] = ClassCounts(kept, images, sparsity_sum)
    return totals


class ClassPathwayBank:
    """Stored class pathways.

    By frequency, neuron i belongs to class c if at least a fraction τ of the instance pathways of c keep it. A class
    may have a mask of its own instead, learned to be two-sided.

    Args:
        taps: The taps of the classifier.
        granularity: What counts as one neuron.
        threshold: τ, in (0, 1].
        counts: How often each neuron was kept, for every class that has a pathway.
        statistics: What was measured of the class pathways.
        masks: Learned masks by class, bool [N]; they take the place of the masks by frequency.
        replacement: What stands in for removed neurons, with one row for all classes or one for each of all K classes.
        too_few: How many images were predicted as each class that has none for lack of images.
    """

    def __init__(
        self,
        taps: tuple[Tap, ...],
        granularity: Granularity,
        threshold: float,
        counts: Mapping[int, ClassCounts],
        statistics: Mapping[int, ClassPathwayStatistics] | None = None,
        masks: Mapping[int, Tensor] | None = None,
        replacement: Replacement = ZERO,
        too_few: Mapping[int, int] | None = None,
    ) -> None:
        if not 0 < threshold <= 1:
            raise ValueError(f"threshold is {threshold}; expected a number in (0, 1]")
        self.taps = taps
        self.granularity = granularity
        self.threshold = threshold
        self.counts = dict(sorted(counts.items()))
        self.statistics = dict(statistics or {})
        self.masks = dict(masks or {})
        self.replacement = replacement
        self.too_few = dict(sorted((too_few or {}).items()))
        self._rows = {label: row for row, label in enumerate(self.counts)}
        chosen = [self.masks.get(label, self._by_frequency(total)) for label, total in self.counts.items()]
        # Each class is a row of the one and of the other, which share their memory.
        self._flat = torch.stack(chosen) if chosen else None
        self._pathways = None if self._flat is None else from_flat(self._flat, taps, granularity)

    def _by_frequency(self, total: ClassCounts) -> Tensor:
        # Rounding must not turn τ = 0.7 of 10 images into 8: the tolerance is far below one image.
        return total.kept >= max(self.threshold * total.images - 1e-6, 1)

    def __contains__(self, label: object) -> bool:
        """Tell whether a class has a stored pathway."""
        return label in self._rows

    def __len__(self) -> int:
        """Return the number of classes with a stored pathway."""
        return len(self._rows)

    def transfer(self, classes: Sequence[int]) -> Pathway:
        """Return the stored pathway of each class, to serve as the pathway of an image of that class.

        Args:
            classes: One class per image, at least one.

        Raises:
            FailedPreconditionError: If a class has no stored pathway.
        """
        for label in classes:
            self._check(label)
        assert self._pathways is not None, "transfer needs at least one class"  # noqa: S101
        rows = [self._rows[label] for label in classes]
        # A single class needs no copy.
        pathway = self._pathways[rows[0] : rows[0] + 1] if len(rows) == 1 else self._pathways[rows]
        return pathway.under(self.replacement_of(torch.tensor(classes)))

    def flat(self, classes: Sequence[int]) -> Tensor:
        """Return the stored masks of classes side by side, bool [B, N]; see `Pathway.flat`.

        Args:
            classes: At least one, each with a stored pathway.
        """
        assert self._flat is not None, "at least one class has a stored pathway"  # noqa: S101
        return self._flat[[self._rows[label] for label in classes]]

    def by_frequency(self, label: int) -> Pathway:
        """Return the mask of a class at τ, whatever mask is stored.

        Raises:
            FailedPreconditionError: If the class has no stored pathway.
        """
        self._check(label)
        flat = self._by_frequency(self.counts[label])[None]
        pathway = from_flat(flat, self.taps, self.granularity).under(self.replacement_of(torch.tensor([label])))
        return pathway if self._pathways is None else pathway.to(self._pathways.masks[0].device)

    def replacement_of(self, classes: Tensor) -> Replacement:
        """Return what stands in for removed neurons in images of these classes.

        Args:
            classes: int64 [B].
        """
        return self.replacement.select(classes)

    def to(self, device: torch.device | str) -> "ClassPathwayBank":
        """Return the same bank with its masks on a device; this one stays where it is."""
        moved = copy.copy(self)
        if self._flat is not None:
            moved._flat = self._flat.to(device)
            moved._pathways = from_flat(moved._flat, self.taps, self.granularity)
        moved.replacement = self.replacement.to(device)
        return moved

    def _check(self, label: int) -> None:
        if label in self._rows:
            return
        seen = self.too_few.get(label, 0)
        raise FailedPreconditionError(
            f"Class {label} has no stored pathway: only {seen} of the images that the bundle was fitted on were "
            "predicted as it. Fit with more images of it, or ask for source NEURON_MCT.",
            reason="CLASS_PATHWAY_MISSING",
            metadata={"class_index": label, "images": seen},
        )
