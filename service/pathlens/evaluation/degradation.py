"""Input degradation: how the target fares as pixels are removed, least or most relevant first.

LeRF and MoRF as in arXiv 2103.16886, section 4, after Samek et al., arXiv 1509.06321. A map that finds what matters
keeps the target's probability high under LeRF and brings it down early under MoRF, so the area between the two curves
is large. A removed pixel becomes zero in all colour channels: the mean image in the units of the preprocessed input.
"""

from collections.abc import Sequence
from enum import Enum

import numpy as np
import torch
from scipy.integrate import trapezoid
from torch import Tensor

from pathlens.attribution.reduction import reduce_channels
from pathlens.classifier.captured import CapturedClassifier
from pathlens.explanation import Reduction
from pathlens.pathways.neuron_mct import check_target

FRACTIONS = tuple(step / 20 for step in range(21))
"""Shares of the pixels that are removed, unless told otherwise: 0, 0.05 … 1."""


class Order(Enum):
    """Which pixels go first."""

    LEAST_RELEVANT_FIRST = "LeRF"
    MOST_RELEVANT_FIRST = "MoRF"


def pixel_relevance(attribution: Tensor) -> Tensor:
    """Reduce a map to the relevance of its pixels by one rule for all maps: the sum of magnitudes over the channels.

    Args:
        attribution: [B, C, H, W] or [B, 1, H, W].

    Returns:
        [B, H, W], at least 0.
    """
    return reduce_channels(attribution, Reduction.MAGNITUDE_SUM)


def degradation_curves(
    classifier: CapturedClassifier,
    images: Tensor,
    target: Tensor,
    relevance: Tensor,
    order: Order,
    fractions: Sequence[float] = FRACTIONS,
    seed: int = 0,
) -> Tensor:
    """Measure the target's probability while ever more pixels are removed: one forward pass per fraction.

    Pixels of equal relevance, such as all those at which Grad-CAM is 0, are removed in a random sequence that is the
    same in both orders and for every image: a map without differences has an area of exactly 0 between its curves.

    Args:
        classifier: The captured classifier.
        images: Preprocessed, float32 [B, C, H, W].
        target: The class of each image, int64 [B].
        relevance: Of every pixel, [B, H, W].
        order: Which pixels go first.
        fractions: Shares of the pixels that are removed, each in [0, 1].
        seed: Of the sequence among equals.

    Returns:
        float32 [B, number of fractions], in [0, 1].

    Raises:
        ValueError: If a target or a fraction is out of range or the relevance has another size than the images.
    """
    check_target(target, len(images), classifier.classes)
    if relevance.shape != (expected := (len(images), *images.shape[2:])):
        raise ValueError(f"relevance has shape {list(relevance.shape)}; expected {list(expected)}")
    if not all(0 <= fraction <= 1 for fraction in fractions):
        raise ValueError(f"fractions are {list(fractions)}; each must be in [0, 1]")
    place = _removal_place(relevance.flatten(1), order, seed).view(len(images), 1, *images.shape[2:])
    pixels = relevance[0].numel()
    with torch.no_grad():
        probabilities = [
            classifier(images * (place >= round(fraction * pixels))).softmax(1).gather(1, target[:, None])
            for fraction in fractions
        ]
    return torch.cat(probabilities, 1).float()


def area(curves: Tensor, fractions: Sequence[float] = FRACTIONS) -> Tensor:
    """Integrate curves over the fraction by the trapezoidal rule.

    Args:
        curves: [B, number of fractions].
        fractions: In ascending order.

    Returns:
        float64 [B], in [0, 1] for fractions from 0 to 1.
    """
    return torch.from_numpy(trapezoid(curves.double().cpu().numpy(), np.array(fractions), axis=1))


def area_between(
    least_relevant_first: Tensor, most_relevant_first: Tensor, fractions: Sequence[float] = FRACTIONS
) -> Tensor:
    """Return the area by which LeRF lies above MoRF, float64 [B] in [-1, 1]; higher is better.

    Args:
        least_relevant_first: Curves [B, number of fractions].
        most_relevant_first: Likewise.
        fractions: In ascending order.
    """
    return area(least_relevant_first, fractions) - area(most_relevant_first, fractions)


def _removal_place(relevance: Tensor, order: Order, seed: int) -> Tensor:
    """Return how many pixels are removed before each one, int64 [B, H·W]."""
    shuffle = torch.randperm(relevance.shape[1], generator=torch.Generator().manual_seed(seed)).to(relevance.device)
    descending = order is Order.MOST_RELEVANT_FIRST
    # A stable sort of the shuffled pixels leaves equals in their shuffled sequence.
    sequence = shuffle[relevance[:, shuffle].argsort(dim=1, descending=descending, stable=True)]
    places = torch.arange(relevance.shape[1], device=relevance.device).expand_as(sequence)
    return torch.empty_like(sequence).scatter_(1, sequence, places)
