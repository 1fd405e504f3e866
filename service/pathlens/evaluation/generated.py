"""Generated pathways (GEN-CNP, arXiv 2309.09887): at their own sparsity, and ranked for any other."""

import torch
from torch import Tensor

from pathlens.classifier.captured import CapturedClassifier
from pathlens.errors import EvaluationError
from pathlens.generator.generator import PathwayGenerator
from pathlens.pathways.contributions import Contributions
from pathlens.pathways.pathway import ZERO, Pathway
from pathlens.pathways.replacement import Replacement


def generated_contributions(
    generator: PathwayGenerator, classifier: CapturedClassifier, images: Tensor
) -> Contributions:
    """Rank the neurons by the importance that the generator gives them, so that any number of them can be kept.

    Args:
        generator: On the device of the classifier.
        classifier: The captured classifier.
        images: Preprocessed, float32 [B, C, H, W].

    Raises:
        EvaluationError: If a score is not finite.
    """
    activations = classifier.observe(images).activations
    with torch.no_grad():
        scores = generator(activations).scores
    if not all(bool(score.isfinite().all()) for score in scores):
        raise EvaluationError("A score of the generator is not finite; fit the bundle anew, or leave out generated.")
    # The importance is the logistic function of the score. In float32 it rounds to 0 or 1 for large scores, which would
    # then be ranked by position; this is positive too, has the same order and keeps large scores apart.
    ranked = tuple(torch.where(score > 0, 1 + score, 1 / (1 - score)).float() for score in scores)
    return Contributions(generator.taps, ranked, generator.granularity)


def generated_pathway(
    generator: PathwayGenerator, classifier: CapturedClassifier, images: Tensor, replacement: Replacement = ZERO
) -> Pathway:
    """Generate the pathways of images, each of which finds its own sparsity.

    Args:
        generator: On the device of the classifier.
        classifier: The captured classifier.
        images: Preprocessed, float32 [B, C, H, W].
        replacement: What stands in for removed neurons, with one row or one for each class, which the predicted class
            then picks.
    """
    whole = classifier.observe(images)
    logits, activations = whole.logits, whole.activations
    return generator.pathways(activations, replacement.select(logits.argmax(1)))
