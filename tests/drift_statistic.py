"""The drift statistic as Prometheus computes it: from the buckets of the histogram of ranks."""

from collections.abc import Iterable
from math import sqrt

import numpy as np

from pathlens.explanation import Explanation

BOUNDS = tuple(number / 10 for number in range(1, 11))
"""Upper bounds of the buckets of `pathlens_pathway_rank_ratio`."""
EFFECT, LEAST_OBSERVATIONS = 0.15, 100


def distance(ranks: Iterable[float]) -> float:
    """Return the Kolmogorov-Smirnov distance of ranks from the uniform distribution, at the bounds of the buckets."""
    values = np.fromiter(ranks, float)
    return max(abs(float((values <= bound).mean()) - bound) for bound in BOUNDS)


def critical(count: int) -> float:
    """Return the distance that uniform ranks exceed in one of a hundred samples of this size, for large ones."""
    return 1.63 / sqrt(count)


def is_drift(ranks: Iterable[float]) -> bool:
    """Tell whether the alert would fire."""
    values = list(ranks)
    if len(values) < LEAST_OBSERVATIONS:
        return False
    return distance(values) >= EFFECT and distance(values) > critical(len(values))


def ranks_of(explanations: Iterable[Explanation]) -> dict[str, list[float]]:
    """Gather the ranks of explanations by statistic."""
    ranks: dict[str, list[float]] = {}
    for explanation in explanations:
        for name in ("sparsity", "class_pathway_iou", "confidence_drop"):
            if (rank := getattr(explanation.typicality, f"{name}_rank", None)) is not None:
                ranks.setdefault(name, []).append(rank)
    return ranks
