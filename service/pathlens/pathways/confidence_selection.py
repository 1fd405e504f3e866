"""Selection by confidence: the sparsest pathway that keeps a stated share of what the classifier is sure of."""

import torch
from torch import Tensor

from pathlens.classifier.captured import CapturedClassifier
from pathlens.pathways.contributions import Contributions
from pathlens.pathways.neuron_mct import check_target
from pathlens.pathways.pathway import Pathway, from_flat
from pathlens.pathways.selection import rank


def select_by_confidence(
    classifier: CapturedClassifier, images: Tensor, target: Tensor, contributions: Contributions, share: float
) -> Pathway:
    """Keep as few of the most contributing neurons as leave the target a stated share of its probability.

    The number of neurons is found by bisection, for all images of the batch at once: about log2(N) forward passes. The
    probability need not grow with every neuron, so a still smaller number may do as well; the pathway returned always
    keeps the share. An image whose contributing neurons together do not keep it gets the whole network.

    Args:
        classifier: The captured classifier f.
        images: Preprocessed x, float32 [B, C, H, W].
        target: The class t of each image, int64 [B].
        contributions: Of the same images and targets.
        share: Least softmax(f(x; m))_t / softmax(f(x))_t, in (0, 1].

    Raises:
        ValueError: If `share` or a target is out of range.
    """
    if not 0 < share <= 1:
        raise ValueError(f"share is {share}; expected a number in (0, 1]")
    check_target(target, len(images), classifier.classes)
    scores = contributions.flat_scores()
    places = rank(scores)
    contributing = (scores > 0).sum(1)

    def keep(counts: Tensor) -> Pathway:
        return from_flat(places < counts[:, None], contributions.taps, contributions.granularity)

    with torch.no_grad():
        needed = share * _probability(classifier(images), target)

        def suffices(counts: Tensor) -> Tensor:
            return _probability(classifier(images, keep(counts)), target) >= needed

        found = suffices(contributing)
        most = torch.where(found, contributing, scores.shape[1])
        # So many neurons are known not to suffice; none are still to be tried. Without a search, both ends meet.
        fewest = torch.where(found, -1, most - 1)
        while bool((most - fewest > 1).any()):
            middle = (most + fewest).div(2, rounding_mode="floor")
            enough = suffices(middle)
            # A row whose search has ended is left alone.
            open_row = most - fewest > 1
            most = torch.where(open_row & enough, middle, most)
            fewest = torch.where(open_row & ~enough, middle, fewest)
    return keep(most)


def _probability(logits: Tensor, target: Tensor) -> Tensor:
    return logits.softmax(1).gather(1, target[:, None])[:, 0]
