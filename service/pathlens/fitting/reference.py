"""What explanations of held-out images look like: the distributions that a service compares its own with."""

from collections.abc import Iterable, Sequence

from torch import Tensor

from pathlens.errors import PathlensError
from pathlens.explainer import Explainer
from pathlens.explanation import Explanation, ExplanationOptions, ExplanationRequest, Output, PathwaySource
from pathlens.pathways.reference import ReferenceDistribution


def measure_reference(
    explainer: Explainer, batches: Iterable[Tensor], sources: Sequence[PathwaySource]
) -> dict[PathwaySource, ReferenceDistribution]:
    """Explain the predicted class of held-out images and gather the distributions of what is tracked.

    The explainer is the one that will serve, so that the figures mean the same on both sides.

    Args:
        explainer: Of the fitted bundle.
        batches: Images that built nothing: whatever was trained on an image fits it better than others. Preprocessed,
            float32 [B, C, H, W].
        sources: The sources to measure.

    Returns:
        The distribution of each source that could explain enough of them.
    """
    explanations: dict[PathwaySource, list[Explanation]] = {source: [] for source in sources}
    for batch in batches:
        images = batch.cpu().numpy()
        for source, found in explanations.items():
            options = ExplanationOptions(source=source, outputs=frozenset({Output.FAITHFULNESS}))
            answers = explainer.answer([ExplanationRequest(image, options) for image in images])
            # A class without a stored pathway is not explained while serving either.
            found += [answer.explanations[0] for answer in answers if not isinstance(answer, PathlensError)]
    distributions = {source: ReferenceDistribution.of(source, found) for source, found in explanations.items()}
    return {source: distribution for source, distribution in distributions.items() if distribution is not None}
