"""The ways to an answer that are measured, as bare passes and as whole answers of the explainer."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from pathlens.classifier.acceleration import accelerate
from pathlens.errors import PathlensError
from pathlens.explainer import Explainer
from pathlens.explanation import (
    ExplanationOptions,
    ExplanationRequest,
    ExplanationResult,
    ImageInput,
    Output,
    PathwaySource,
    Targets,
)
from pathlens.pathways.neuron_mct import contributions_of_trace
from pathlens.pathways.pathway import Pathway


@dataclass(frozen=True)
class Route:
    """A way to an answer.

    Attributes:
        name: In tables.
        source: Of the pathway; None for a prediction alone.
        outputs: Of the explanation.
        masks: Which class masks the bundle has.
        is_sliced: Whether slices of the classifier may be used; otherwise masks are applied to the whole of it.
        target: What it may cost for a batch of eight, in forward passes; None where nothing was promised.
    """

    name: str
    source: PathwaySource | None
    outputs: frozenset[Output] = frozenset()
    masks: str = "ranked 80 %"
    is_sliced: bool = True
    target: float | None = None

    @property
    def has_map(self) -> bool:
        """Whether a map is drawn."""
        return Output.MAP in self.outputs

    @property
    def is_transferred(self) -> bool:
        """Whether the pathway is that of the class, so that it matters how many classes a batch has."""
        return self.source is PathwaySource.TRANSFERRED


_MAP, _PATHWAY = frozenset({Output.MAP}), frozenset({Output.PATHWAY})
_TRANSFERRED, _GENERATED, _NEURON_MCT = (
    PathwaySource.TRANSFERRED,
    PathwaySource.GENERATED,
    PathwaySource.NEURON_MCT,
)
PREDICT = Route("Predict", None, target=1.0)
SLICED = Route("transferred pathway + map, 80 % sparse", _TRANSFERRED, _MAP, target=1.5)
MASKED = Route("transferred pathway + map, 80 % sparse, masked", _TRANSFERRED, _MAP, is_sliced=False, target=3.2)
BY_CONTRIBUTION = Route("NeuronMCT pathway + map", _NEURON_MCT, _MAP, target=4.3)
GENERATED_MAP = Route("generated pathway + map", _GENERATED, _MAP, target=3.3)
ROUTES = (
    PREDICT,
    SLICED,
    Route("transferred pathway + map, 50 % sparse", _TRANSFERRED, _MAP, "ranked 50 %", target=2.0),
    Route("transferred pathway + map, by frequency", _TRANSFERRED, _MAP, "by frequency"),
    Route("transferred pathway + map, random 80 % sparse", _TRANSFERRED, _MAP, "random 80 %"),
    Route("transferred pathway + map, random 50 % sparse", _TRANSFERRED, _MAP, "random 50 %"),
    MASKED,
    Route("generated pathway", _GENERATED, _PATHWAY, target=1.15),
    GENERATED_MAP,
    BY_CONTRIBUTION,
)
"""Every one includes the prediction of the whole classifier."""


@dataclass(frozen=True, eq=False)
class Outcome:
    """What a route comes to.

    Attributes:
        logits: Of the whole classifier, [B, K].
        pathway: Of each image; None for a prediction alone.
        gradient: The map before its channels are reduced, [B, C, H, W]; None without a map.
    """

    logits: Tensor
    pathway: Pathway | None = None
    gradient: Tensor | None = None


class BarePasses:
    """Runs the passes of routes and nothing else.

    Args:
        explainer: Whose backend computes.
    """

    def __init__(self, explainer: Explainer) -> None:
        self._explainer = explainer
        self._accelerated = accelerate(explainer.classifier)

    def run(self, route: Route, images: Tensor, target: Tensor) -> Outcome:
        """Run a route.

        Args:
            route: Which one.
            images: Preprocessed, float32 [B, C, H, W].
            target: The class to explain in each image, int64 [B].
        """
        backend, bank = self._explainer.backend, self._explainer.bank
        if route.source is None:
            return Outcome(backend.logits(images))
        if route.source is PathwaySource.TRANSFERRED:
            logits = backend.logits(images)
            run = backend.transferred_run(images, target)
            return Outcome(logits, bank.transfer(target.tolist()), run.gradient)
        if route.source is PathwaySource.GENERATED:
            generation = backend.generate(images)
            logits, pathway = generation.logits, generation.pathway()
        else:
            trace = self._accelerated.trace(images)
            logits = trace.logits.detach()
            contributions = contributions_of_trace(self._accelerated, trace, target, bank.granularity)
            pathway = contributions.select(self._explainer.default_sparsity)
        gradient = backend.pathway_run(images, target, pathway).gradient if route.has_map else None
        return Outcome(logits, pathway, gradient)


def requests(route: Route, images: Sequence[ImageInput], target: Sequence[int]) -> list[ExplanationRequest]:
    """Make the requests of a route for the explainer, each with its class."""
    if route.source is None:
        return [ExplanationRequest(image, None) for image in images]
    options = ExplanationOptions(source=route.source, outputs=route.outputs)
    return [
        ExplanationRequest(image, replace(options, targets=Targets(class_indices=(label,))))
        for image, label in zip(images, target, strict=True)
    ]


def answers(explainer: Explainer, asked: Sequence[ExplanationRequest]) -> list[ExplanationResult]:
    """Let the explainer answer; raises the first error."""
    results = []
    for answer in explainer.answer(asked):
        if isinstance(answer, PathlensError):
            raise answer
        results.append(answer)
    return results
