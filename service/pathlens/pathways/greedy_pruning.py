"""Greedy pruning: remove the least contributing neurons, score the others again, and so on (arXiv 2103.16886).

A round removes the same share of the neurons that are left, so that the scores are as fresh at 99 % sparsity as at
50 %; rounds of equal size would remove the last 5 % at once. Neurons that contribute nothing to the whole network go
before all rounds; the authors' published code keeps those instead, neurons that are dead for the image among them.
"""

import torch
from torch import Tensor

from pathlens.classifier.captured import CapturedClassifier
from pathlens.explanation import Granularity
from pathlens.pathways.contributions import Contributions
from pathlens.pathways.neuron_mct import contributions_of_trace
from pathlens.pathways.pathway import Pathway, from_flat
from pathlens.pathways.selection import rank

LAST_SHARE = 0.01
"""Share of the contributing neurons that is left after the last round."""


def greedy_pruning(
    classifier: CapturedClassifier,
    images: Tensor,
    target: Tensor,
    granularity: Granularity | str = Granularity.UNIT,
    rounds: int = 20,
) -> Contributions:
    """Score every neuron by when it is removed: one forward and one backward pass of the pruned network per round.

    Round r scores by |a ⊙ ∂f_t/∂a| within the network that is left, and keeps ceil(0.01^(r / rounds) M) of the M
    neurons that contribute to the whole network, ties in favour of the lowest index. One round orders the neurons as
    NeuronMCT does.

    Args:
        classifier: The captured classifier f.
        images: Preprocessed, float32 [B, C, H, W].
        target: The class t to explain in each image, int64 [B].
        granularity: What counts as one neuron.
        rounds: How often to score, at least 1.

    Returns:
        N minus the place of each neuron, 1 to N: highest for the neuron of greatest contribution in the last round,
        lower the earlier a neuron is removed and, within a round, the less it contributed then. A neuron whose path is
        gone contributes nothing and leads the next removal. What contributes nothing to the whole network scores 0.

    Raises:
        ValueError: If a target or `rounds` is out of range or a contribution is not finite.
    """
    if rounds < 1:
        raise ValueError(f"rounds is {rounds}; expected at least 1")
    granularity = Granularity(granularity)

    def score(pathway: Pathway | None = None) -> Contributions:
        return contributions_of_trace(classifier, classifier.trace(images, pathway), target, granularity)

    whole = score()
    contributions = whole.flat_scores()
    left = contributions > 0
    contributing = left.sum(1, keepdim=True).double()
    scores = torch.zeros_like(contributions)
    for done in range(1, rounds + 1):
        if done > 1:
            contributions = score(from_flat(left, classifier.taps, granularity)).flat_scores()
        places = rank(contributions.where(left, -1.0))
        # Whole numbers, which float32 holds exactly up to 2^24 neurons.
        scores = torch.where(left, (places.shape[1] - places).float(), scores)
        left &= places < (LAST_SHARE ** (done / rounds) * contributing).ceil()
    parts = torch.split(scores, [signed[0].numel() for signed in whole.signed], dim=1)
    signed = tuple(part.reshape(like.shape) for part, like in zip(parts, whole.signed, strict=True))
    return Contributions(classifier.taps, signed, granularity)
