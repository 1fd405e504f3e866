"""What explanations looked like during the fit, and where a new one stands among them."""

from collections.abc import Iterable, Mapping
from enum import Enum

import numpy as np
from numpy.typing import NDArray

from pathlens.explanation import Explanation, PathwaySource, Typicality

MINIMUM_IMAGES = 30
"""Of fewer held-out images a class has no distribution of its own, and of fewer in all there is no reference."""

_DECIMALS = 4
"""Smaller differences are those between devices, or between batches of different sizes: they count as none."""


class Statistic(Enum):
    """What of an explanation is compared with the fit."""

    SPARSITY = "sparsity"
    """Fraction of neurons that the pathway removes."""
    CLASS_PATHWAY_IOU = "class_pathway_iou"
    """Intersection over union with the stored pathway of the class."""
    CONFIDENCE_DROP = "confidence_drop"
    """(p - q) / p; negative where the pathway network is surer than the classifier."""


TRACKED: Mapping[PathwaySource, tuple[Statistic, ...]] = {
    # A stored pathway has the same sparsity, and the same overlap with itself, for every image of its class.
    PathwaySource.TRANSFERRED: (Statistic.CONFIDENCE_DROP,),
    PathwaySource.GENERATED: tuple(Statistic),
    # Its sparsity is that which was asked for.
    PathwaySource.NEURON_MCT: (Statistic.CLASS_PATHWAY_IOU, Statistic.CONFIDENCE_DROP),
}
"""What varies from image to image, of the sources that a fit measures."""


def measure(explanation: Explanation) -> dict[Statistic, float]:
    """Tell the tracked statistics of an explanation, without those that it lacks.

    The fit and the service measure with this function, so that both mean the same.
    """
    check = explanation.faithfulness
    figures = {
        Statistic.SPARSITY: explanation.sparsity,
        Statistic.CLASS_PATHWAY_IOU: explanation.class_pathway_iou,
        Statistic.CONFIDENCE_DROP: None
        if check is None or check.confidence <= 0
        else (check.confidence - check.pathway_confidence) / check.confidence,
    }
    return {
        statistic: value
        for statistic in TRACKED.get(explanation.source, ())
        if (value := figures[statistic]) is not None
    }


class ReferenceDistribution:
    """The distribution of the statistics of one source, by predicted class.

    Args:
        source: The source.
        classes: Predicted class of each held-out image, int32 [M].
        values: Of each statistic of `TRACKED`, float32 [M]; NaN for an image that lacks it.

    Raises:
        ValueError: If there are fewer than `MINIMUM_IMAGES`, or statistics or shapes are others.
    """

    def __init__(
        self, source: PathwaySource, classes: NDArray[np.int32], values: Mapping[Statistic, NDArray[np.float32]]
    ) -> None:
        if source not in TRACKED or set(values) != set(TRACKED[source]):
            raise ValueError(f"{source.name} is given {sorted(statistic.value for statistic in values)} to track")
        if any(array.shape != classes.shape for array in values.values()) or classes.ndim != 1:
            raise ValueError(f"the values of {source.name} are not one for each image")
        if len(classes) < MINIMUM_IMAGES:
            raise ValueError(f"{source.name} has {len(classes)} images; expected at least {MINIMUM_IMAGES}")
        self.source = source
        self.classes = classes
        self.values = {statistic: _comparable(values[statistic]) for statistic in TRACKED[source]}
        labels, counts = np.unique(classes, return_counts=True)
        self._images = {
            int(label): int(count) for label, count in zip(labels, counts, strict=True) if count >= MINIMUM_IMAGES
        }
        self._pooled = {statistic: _sorted(array) for statistic, array in self.values.items()}
        self._of_class = {
            label: {statistic: _sorted(array[classes == label]) for statistic, array in self.values.items()}
            for label in self._images
        }

    @classmethod
    def of(cls, source: PathwaySource, explanations: Iterable[Explanation]) -> "ReferenceDistribution | None":
        """Gather a distribution.

        Args:
            source: The source.
            explanations: Of this source and of the predicted class, one of each held-out image.

        Returns:
            The distribution; None of fewer than `MINIMUM_IMAGES`.
        """
        classes, measured = [], []
        for explanation in explanations:
            classes.append(explanation.target.class_index)
            measured.append(measure(explanation))
        if len(classes) < MINIMUM_IMAGES:
            return None
        values = {
            statistic: np.array([figures.get(statistic, np.nan) for figures in measured], dtype=np.float32)
            for statistic in TRACKED[source]
        }
        return cls(source, np.array(classes, dtype=np.int32), values)

    def typicality(self, explanation: Explanation, draws: Mapping[Statistic, float]) -> Typicality | None:
        """Rank an explanation of the predicted class among the held-out images of this class.

        The rank of x among m values is (k + u (e + 1)) / (m + 1), where k of them are less than x, e equal it and u is
        uniform on (0, 1). If x comes from the distribution that they come from, its rank is uniform on (0, 1) whatever
        this distribution is, ties included: x is as likely as any of the m + 1 values to be the smallest, the second
        and so on, and u spreads it over what it shares with its equals.

        Args:
            explanation: Of this source.
            draws: For each statistic its u.

        Returns:
            The ranks; None without any.
        """
        label = explanation.target.class_index
        known = self._of_class.get(label, self._pooled)
        ranks = {
            statistic: _rank(known[statistic], value, draws[statistic])
            for statistic, value in measure(explanation).items()
            if len(known[statistic])
        }
        if not ranks:
            return None
        return Typicality(
            ranks.get(Statistic.SPARSITY),
            ranks.get(Statistic.CLASS_PATHWAY_IOU),
            ranks.get(Statistic.CONFIDENCE_DROP),
            self._images.get(label, 0),
        )


def _rank(known: NDArray[np.float32], value: float, draw: float) -> float:
    comparable = _comparable(np.array([value]))[0]
    below, upto = np.searchsorted(known, comparable, "left"), np.searchsorted(known, comparable, "right")
    return float((below + draw * (upto - below + 1)) / (len(known) + 1))


def _comparable(values: NDArray[np.floating]) -> NDArray[np.float32]:
    # Zero has one sign, so that equal values are the same bytes on disk.
    return (np.round(values.astype(np.float64), _DECIMALS) + 0.0).astype(np.float32)


def _sorted(values: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.sort(values[~np.isnan(values)])
