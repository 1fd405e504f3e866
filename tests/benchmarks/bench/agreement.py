"""Whether what is timed is right: every route against masks applied to the original captured classifier."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from benchmarks.bench.routes import BarePasses, Outcome, Route, answers, requests
from pathlens.attribution.pathway_gradient import run_pathway
from pathlens.attribution.reduction import reduce_channels
from pathlens.classifier.captured import CapturedClassifier
from pathlens.explainer import Explainer
from pathlens.explanation import ExplanationOptions, ExplanationRequest, ExplanationResult, Output, PathwaySource
from pathlens.onnx_export.measures import Measure
from pathlens.pathways.bank import ClassPathwayBank
from pathlens.pathways.neuron_mct import neuron_mct
from pathlens.pathways.pathway import Pathway, from_flat

OTHER_NEURONS = 2e-3
"""Share of the neurons of a pathway that may differ where rounding decides: scores near 0, contributions near equal."""


def disagreements(
    route: Route, explainer: Explainer, classifier: CapturedClassifier, images: Tensor, target: Tensor
) -> list[str]:
    """Compare both levels of a route with the masked reference.

    Logits are compared image by image. Of maps the median image counts, because an activation function at its kink may
    take the other branch where rounding decides.

    Args:
        route: Which one.
        explainer: Answers.
        classifier: The original captured classifier on the same device, in float32.
        images: Preprocessed, float32 [B, C, H, W].
        target: The class of each image, int64 [B].

    Returns:
        What is wrong, in words; nothing if all is right.
    """
    # The reference is what float32 comes to, and the convolutions of GPUs otherwise round to TF32.
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        bare = BarePasses(explainer).run(route, images, target)
        results = answers(explainer, _with_pathways(requests(route, list(images.cpu().numpy()), target.tolist())))
        wrong = _judge(route, bare, explainer, classifier, images, target, "bare")
        return wrong + _judge_answers(route, results, classifier, images, target)


def _with_pathways(asked: Sequence[ExplanationRequest]) -> list[ExplanationRequest]:
    return [
        ExplanationRequest(
            request.image,
            None
            if request.options is None
            else ExplanationOptions(
                request.options.targets, request.options.source, outputs=request.options.outputs | {Output.PATHWAY}
            ),
        )
        for request in asked
    ]


def _judge(
    route: Route,
    found: Outcome,
    explainer: Explainer,
    classifier: CapturedClassifier,
    images: Tensor,
    target: Tensor,
    level: str,
) -> list[str]:
    with torch.no_grad():
        wrong = _distance(f"{level} {route.name}", Measure.LOGITS, found.logits, classifier(images))
    if found.pathway is None:
        return wrong
    if route.source is PathwaySource.TRANSFERRED:
        run = explainer.backend.transferred_run(images, target)
        stored = run_pathway(classifier, images, target, found.pathway)
        wrong += _distance(f"{level} {route.name}: pathway", Measure.LOGITS, run.logits, stored.logits)
    else:
        expected = reference_pathway(route, explainer, classifier, images, target)
        wrong += _neurons(f"{level} {route.name}", found.pathway.flat(), expected.flat())
    if found.gradient is not None:
        gradient = run_pathway(classifier, images, target, found.pathway).gradient
        wrong += _distance(f"{level} {route.name}: map", Measure.MAP, found.gradient, gradient)
    return wrong


def reference_pathway(
    route: Route, explainer: Explainer, classifier: CapturedClassifier, images: Tensor, target: Tensor
) -> Pathway:
    """Compute the pathways of a route with the original classifier alone."""
    bank: ClassPathwayBank = explainer.bank
    if route.source is PathwaySource.TRANSFERRED:
        return bank.transfer(target.tolist())
    if route.source is PathwaySource.GENERATED:
        assert explainer.generator is not None
        return explainer.generator.pathways(classifier.observe(images).activations)
    return neuron_mct(classifier, images, target, bank.granularity).select(explainer.default_sparsity)


def _judge_answers(
    route: Route, results: Sequence[ExplanationResult], classifier: CapturedClassifier, images: Tensor, target: Tensor
) -> list[str]:
    name = f"whole {route.name}"
    with torch.no_grad():
        best = classifier(images).max(1)
    logits = torch.tensor([[result.predictions[0].logit] for result in results])
    wrong = _distance(name, Measure.LOGITS, logits, best.values[:, None].cpu())
    if [result.predictions[0].class_index for result in results] != best.indices.tolist():
        wrong.append(f"{name}: other predicted classes")
    if route.source is None:
        return wrong
    explanations = [result.explanations[0] for result in results]
    masks = np.stack([np.concatenate([tap.mask.ravel() for tap in one.pathway]) for one in explanations])
    pathway = from_flat(torch.from_numpy(masks).to(images.device), classifier.taps, explanations[0].granularity)
    if route.has_map:
        gradient = run_pathway(classifier, images, target, pathway).gradient
        reduction = ExplanationOptions().reduction
        maps = torch.stack([reduce_channels(one, reduction) for one in gradient.cpu()])
        found = torch.stack([torch.from_numpy(np.asarray(one.map)) for one in explanations])
        wrong += _distance(f"{name}: map", Measure.MAP, found, maps)
    return wrong


def _distance(name: str, measure: Measure, found: Tensor, expected: Tensor) -> list[str]:
    distances = measure.distances(found, expected)
    distance = float(distances.median() if measure is Measure.MAP else distances.max())
    if distance <= measure.tolerance:
        return []
    return [f"{name}: {measure.value} differ by {distance:.2g}, more than {measure.tolerance:g}"]


def _neurons(name: str, found: Tensor, expected: Tensor) -> list[str]:
    share = float((found != expected).double().mean())
    return [] if share <= OTHER_NEURONS else [f"{name}: {share:.2%} of the neurons are others"]
