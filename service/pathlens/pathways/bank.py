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
from pathlens.pathways.pathway import Pathway, from_flat


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
    """Stored class pathways: neuron i belongs to class c if at least a fraction τ of the pathways of c keep it.

    Args:
        taps: The taps of the classifier.
        granularity: What counts as one neuron.
        threshold: τ, in (0, 1].
        counts: How often each neuron was kept, for every class that has a pathway.
        statistics: What was measured of the class pathways.
    """

    def __init__(
        self,
        taps: tuple[Tap, ...],
        granularity: Granularity,
        threshold: float,
        counts: Mapping[int, ClassCounts],
        statistics: Mapping[int, ClassPathwayStatistics] | None = None,
    ) -> None:
        if not 0 < threshold <= 1:
            raise ValueError(f"threshold is {threshold}; expected a number in (0, 1]")
        self.taps = taps
        self.granularity = granularity
        self.threshold = threshold
        self.counts = dict(sorted(counts.items()))
        self.statistics = dict(statistics or {})
        self._rows = {label: row for row, label in enumerate(self.counts)}
        # Rounding must not turn τ = 0.7 of 10 images into 8: the tolerance is far below one image.
        masks = [total.kept >= max(threshold * total.images - 1e-6, 1) for total in self.counts.values()]
        self._pathways = from_flat(torch.stack(masks), taps, granularity) if masks else None

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
            if label not in self._rows or self._pathways is None:
                raise FailedPreconditionError(
                    f"Class {label} has no stored pathway: too few images were predicted as it when the bundle was "
                    "fitted. Fit with more images of it, or ask for source NEURON_MCT.",
                    reason="CLASS_PATHWAY_MISSING",
                    metadata={"class_index": label},
                )
        assert self._pathways is not None, "transfer needs at least one class"  # noqa: S101
        return self._pathways[[self._rows[label] for label in classes]]

    def to(self, device: torch.device | str) -> "ClassPathwayBank":
        """Return the same bank with its masks on a device; this one stays where it is."""
        moved = copy.copy(self)
        moved._pathways = self._pathways.to(device) if self._pathways is not None else None
        return moved
