"""The pathway methods that an evaluation compares, under the names that its figures carry."""

from collections.abc import Callable, Mapping

from torch import Tensor

from pathlens.classifier.captured import CapturedClassifier
from pathlens.evaluation.generated import generated_contributions
from pathlens.explanation import Granularity
from pathlens.generator.generator import PathwayGenerator
from pathlens.pathways.contributions import Contributions
from pathlens.pathways.distillation_guided_routing import distillation_guided_routing
from pathlens.pathways.greedy_pruning import greedy_pruning
from pathlens.pathways.neuron_intgrad import neuron_intgrad
from pathlens.pathways.neuron_mct import neuron_mct
from pathlens.pathways.random_contributions import random_contributions

PathwayMethod = Callable[[CapturedClassifier, Tensor, Tensor, Granularity], Contributions]
"""Scores the neurons of images for their targets."""

GENERATED = "generated"
"""The method that needs a generator, beside the classifier."""

PATHWAY_METHODS = ("neuron_mct", "neuron_intgrad", "greedy_pruning", "distillation_guided_routing", GENERATED, "random")
"""Names of all methods."""

CLASSIFIER_METHODS = tuple(name for name in PATHWAY_METHODS if name != GENERATED)
"""Names of the methods that need nothing but the classifier."""


def pathway_methods(steps: int, seed: int, generator: PathwayGenerator | None = None) -> Mapping[str, PathwayMethod]:
    """Return the methods by name.

    Args:
        steps: Of NeuronIntGrad's integral.
        seed: Of the random scores.
        generator: On the device of the classifier; without one there is no method `GENERATED`.
    """
    methods: dict[str, PathwayMethod] = {
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
    if generator is not None:
        # The generator decides itself which class it explains and what a neuron is.
        methods[GENERATED] = lambda classifier, images, _, __: generated_contributions(generator, classifier, images)
    return methods
