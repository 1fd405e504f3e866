"""The pathway methods that an evaluation compares, under the names that its figures carry."""

from collections.abc import Callable, Mapping

from torch import Tensor

from pathlens.classifier.captured import CapturedClassifier
from pathlens.explanation import Granularity
from pathlens.pathways.contributions import Contributions
from pathlens.pathways.distillation_guided_routing import distillation_guided_routing
from pathlens.pathways.greedy_pruning import greedy_pruning
from pathlens.pathways.neuron_intgrad import neuron_intgrad
from pathlens.pathways.neuron_mct import neuron_mct
from pathlens.pathways.random_contributions import random_contributions

PathwayMethod = Callable[[CapturedClassifier, Tensor, Tensor, Granularity], Contributions]
"""Scores the neurons of images for their targets."""

PATHWAY_METHODS = ("neuron_mct", "neuron_intgrad", "greedy_pruning", "distillation_guided_routing", "random")
"""Names of all methods."""


def pathway_methods(steps: int, seed: int) -> Mapping[str, PathwayMethod]:
    """Return the methods by name.

    Args:
        steps: Of NeuronIntGrad's integral.
        seed: Of the random scores.
    """
    return {
        "neuron_mct": neuron_mct,
        "neuron_intgrad": lambda classifier, images, target, granularity: neuron_intgrad(
            classifier, images, target, steps, granularity
        ),
        "greedy_pruning": greedy_pruning,
        "distillation_guided_routing": distillation_guided_routing,
        "random": lambda classifier, images, _, granularity: random_contributions(
            classifier, images, granularity, seed
        ),
    }
