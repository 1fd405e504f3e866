"""What an evaluation asks of the maps of a batch: degradation, localisation, linearity, sensitivity to the weights."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from pathlens.attribution.linearity import linearity_error
from pathlens.attribution.pathway_gradient import pathway_gradient
from pathlens.attribution.reduction import reduce_channels
from pathlens.classifier.captured import CapturedClassifier
from pathlens.classifier.preprocessing import Preprocessing
from pathlens.evaluation.batch import Batch
from pathlens.evaluation.degradation import (
    FRACTIONS,
    Order,
    area,
    area_between,
    degradation_curves,
    pixel_relevance,
)
from pathlens.evaluation.faithfulness import InstancePathways
from pathlens.evaluation.localisation import is_hard, localise, without_map
from pathlens.evaluation.observation import Observation
from pathlens.evaluation.randomisation import similarity
from pathlens.explanation import Reduction
from pathlens.pathways.pathway import Pathway

WHOLE_NETWORK = "whole network"
"""Name, beside the pathway methods, of the pathway that keeps every neuron."""


def observe_degradation(batch: Batch, maps: Mapping[str, Tensor], seed: int) -> list[Observation]:
    """Measure MoRF and LeRF curves with detail = share of pixels removed, their areas and the area between them.

    Args:
        batch: The images.
        maps: By method, [B, C, H, W].
        seed: Of the sequence among pixels of equal relevance.
    """
    observations = []
    for method, attribution in maps.items():
        relevance = pixel_relevance(attribution)
        curves_of = {}
        for order in Order:
            curves = degradation_curves(batch.classifier, batch.images, batch.target, relevance, order, seed=seed)
            for position, curve in zip(batch.positions, curves.tolist(), strict=True):
                for fraction, value in zip(FRACTIONS, curve, strict=True):
                    observations.append(
                        Observation(order.value, value, method, detail=f"{fraction:.2f}", subject=position)
                    )
            curves_of[order] = curves
            observations += _each(batch, f"{order.value} area", area(curves), method)
        between = area_between(curves_of[Order.LEAST_RELEVANT_FIRST], curves_of[Order.MOST_RELEVANT_FIRST])
        observations += _each(batch, "area between", between, method)
    return observations


def observe_localisation(batch: Batch, maps: Mapping[str, Tensor], preprocessing: Preprocessing) -> list[Observation]:
    """Play the pointing game and measure the energy inside the boxes, on the images that have boxes.

    Beside the maps stand the image's centre ("centre") and an even spread ("box area"). Detail is "all", and "hard" as
    well for an image whose centre misses the boxes or whose boxes are small.

    Args:
        batch: The images.
        maps: By method, [B, C, H, W].
        preprocessing: Tells where the classifier's input lies in the image.
    """
    observations = []
    relevance = {method: pixel_relevance(attribution).cpu().numpy() for method, attribution in maps.items()}
    for row, subject in enumerate(batch.subjects):
        if not subject.boxes:
            continue
        found = {method: localise(values[row], subject, preprocessing) for method, values in relevance.items()}
        trivial = without_map(subject)
        pointing = {"centre": trivial.pointing, **{method: each.pointing for method, each in found.items()}}
        energy = {"box area": trivial.energy, **{method: each.energy for method, each in found.items()}}
        for detail in ("all", "hard") if is_hard(subject) else ("all",):
            for measure, values in (("pointing game", pointing), ("energy in box", energy)):
                observations += [
                    Observation(measure, value, method, detail=detail, subject=subject.position)
                    for method, value in values.items()
                ]
    return observations


def observe_linearity(
    batch: Batch, instances: Sequence[InstancePathways], radii: Sequence[float], points: int, seed: int
) -> list[Observation]:
    """Measure how linear the pathway networks are around the images, beside the whole network; detail = radius.

    Args:
        batch: The images.
        instances: The pathways, by one method or more.
        radii: Of the balls, in units of the preprocessed input.
        points: Random points of each ball.
        seed: Of the points.
    """
    observations = []
    whole = InstancePathways(WHOLE_NETWORK, None, whole_network(instances[0].pathway))
    for each in (whole, *instances):
        gradient = pathway_gradient(batch.classifier, batch.images, batch.target, each.pathway)
        # The whole network removes no neuron.
        ablation = "" if each is whole else each.pathway.ablation.value
        for radius in radii:
            errors = linearity_error(
                batch.classifier, batch.images, batch.target, each.pathway, gradient, radius, points, seed
            )
            detail = f"{radius:g}"
            observations += _each(batch, "linearity error", errors, each.method, each.sparsity, detail, ablation)
    return observations


def observe_randomisation(
    batch: Batch, original: Mapping[str, Tensor], randomised: Mapping[str, Tensor], layer: str
) -> list[Observation]:
    """Compare maps with those of a classifier whose top layers are randomised.

    Measures: spearman, absolute spearman and ssim, with detail = layer.

    Args:
        batch: The images.
        original: By method, one channel with signs, [B, H, W].
        randomised: Likewise.
        layer: Number and name of the layer randomised last.
    """
    observations = []
    for method, values in original.items():
        alike = similarity(values, randomised[method])
        for measure, each in (
            ("spearman", alike.spearman),
            ("absolute spearman", alike.absolute_spearman),
            ("ssim", alike.ssim),
        ):
            observations += _each(batch, measure, each, method, detail=layer)
    return observations


def with_signs(attribution: Tensor) -> Tensor:
    """Reduce a map to the value of greatest magnitude of each pixel, [B, H, W]."""
    return reduce_channels(attribution, Reduction.SIGNED_MAXIMUM)


def whole_network(like: Pathway) -> Pathway:
    """Return the pathway that keeps every neuron."""
    return Pathway(like.taps, tuple(torch.ones_like(mask) for mask in like.masks), like.granularity, like.replacement)


def draw(
    classifier: CapturedClassifier, images: Tensor, target: Tensor, pathways: Mapping[str, Pathway]
) -> dict[str, Tensor]:
    """Return the pathway-gradient maps of several methods' pathways."""
    return {method: pathway_gradient(classifier, images, target, pathway) for method, pathway in pathways.items()}


def _each(
    batch: Batch,
    measure: str,
    values: Tensor,
    method: str,
    sparsity: float | None = None,
    detail: str = "",
    ablation: str = "",
) -> list[Observation]:
    return [
        Observation(measure, value, method, sparsity, detail=detail, subject=position, ablation=ablation)
        for position, value in zip(batch.positions, values.double().tolist(), strict=True)
    ]
