"""Where an explanation stands among those of the images that the fit held out."""

import hashlib
from collections.abc import Mapping

import numpy as np
from torch import Tensor

from pathlens.explainer.item import Item
from pathlens.explanation import Explanation, Granularity, PathwaySource, Typicality
from pathlens.pathways.reference import ReferenceDistribution, Statistic, measure


class FitComparison:
    """Compares explanations with what the fit saw of their source.

    Args:
        reference: The distributions of the fit, by source.
        granularity: Of the pathways that the fit measured.
        sparsity: Of its pathways by contribution.
    """

    def __init__(
        self, reference: Mapping[PathwaySource, ReferenceDistribution], granularity: Granularity, sparsity: float
    ) -> None:
        self._reference = reference
        self._granularity = granularity
        self._sparsity = sparsity

    def typicality(self, item: Item, explanation: Explanation) -> Typicality | None:
        """Rank an explanation.

        Args:
            item: The request that it answers.
            explanation: One of its targets.

        Returns:
            The ranks; None where the fit measured nothing of the kind.
        """
        distribution = self._reference.get(explanation.source)
        if (
            distribution is None
            or explanation.granularity is not self._granularity
            or explanation.target.class_index != item.decision.ranking[0]
            or item.options.sparsity not in (None, self._sparsity)
            # To hash an image takes longer than all else here.
            or not measure(explanation)
        ):
            return None
        return distribution.typicality(explanation, _draws(item.tensor))


def _draws(image: Tensor) -> dict[Statistic, float]:
    # A hash of the classifier's input and not a random number: whoever asks again gets the same answer.
    digest = np.frombuffer(hashlib.sha256(np.ascontiguousarray(image.numpy()).data).digest(), np.uint32)
    return {statistic: (float(number) + 0.5) / 2**32 for statistic, number in zip(Statistic, digest, strict=False)}
