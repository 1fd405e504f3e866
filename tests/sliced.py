"""Pathways to cut, and the comparison of a slice with the masked network that it stands for."""

import torch
from torch import Tensor

from pathlens.attribution.pathway_gradient import run_pathway
from pathlens.classifier.captured import CapturedClassifier
from pathlens.explanation import Ablation, Granularity
from pathlens.pathways.pathway import ZERO, Pathway, mask_shape
from pathlens.pathways.replacement import Replacement
from pathlens.slicing.cutting import cut
from pathlens.slicing.slice import Slice

TOLERANCE = 1e-4

REPLACEMENTS = ("zero", "mean", "mean map", "optimal")


def drawn(
    classifier: CapturedClassifier, granularity: Granularity, keep: float, replacement: str = "zero", seed: int = 0
) -> Pathway:
    """A pathway of one image that keeps each neuron with a probability, and puts noise in the place of the others."""
    generator = torch.Generator().manual_seed(seed)
    shapes = [(1, *mask_shape(tap, granularity)) for tap in classifier.taps]
    masks = tuple(torch.rand(shape, generator=generator) < keep for shape in shapes)
    return Pathway(classifier.taps, masks, granularity, _replacement(classifier, replacement, generator))


def _replacement(classifier: CapturedClassifier, name: str, generator: torch.Generator) -> Replacement:
    if name == "zero":
        return ZERO
    values = []
    for tap in classifier.taps:
        sizes = [size if dimension == tap.channel_dimension else 1 for dimension, size in enumerate(tap.shape)]
        values.append(torch.randn(1, *(tap.shape if name == "mean map" else sizes), generator=generator))
    return Replacement(Ablation.OPTIMAL if name == "optimal" else Ablation.MEAN, tuple(values))


def largest_differences(
    part: Slice, classifier: CapturedClassifier, pathway: Pathway, images: Tensor, target: Tensor
) -> tuple[float, float]:
    """Compare a slice with the masked network.

    Returns:
        The largest difference of a logit, relative to it where it exceeds 1, and of a map, relative to its norm.
    """
    masked, sliced = run_pathway(classifier, images, target, pathway), part.run(images, target)
    logits = (sliced.logits - masked.logits).abs() / masked.logits.abs().clamp(min=1)
    norms = masked.gradient.flatten(1).norm(dim=1)
    maps = (sliced.gradient - masked.gradient).flatten(1).norm(dim=1) / torch.where(norms > 0, norms, 1)
    return float(logits.max()), float(maps.max())


def assert_equals_mask(classifier: CapturedClassifier, pathway: Pathway, images: Tensor) -> Slice:
    """Cut a pathway, in double precision so that no rounding decides at a kink, and compare."""
    exact = classifier.in_float64
    part = cut(exact, pathway)
    target = torch.arange(len(images)) % classifier.classes
    logits, maps = largest_differences(part, exact, pathway, images.double(), target)
    assert logits <= TOLERANCE
    assert maps <= TOLERANCE
    return part


def kernels(part: Slice) -> list[tuple[int, ...]]:
    """The shapes of the kernels of the convolutions and of the linear layers of a slice, in order."""
    weights = part.network.weights
    return [
        tuple(weights[call.arguments[1]["weight"]].shape)
        for call in part.network.program.calls
        if call.function.startswith(("aten.conv", "aten.linear"))
    ]


def operators(part: Slice) -> list[str]:
    """The names of the operators of a slice, in order."""
    return [call.function.split(".")[1] for call in part.network.program.calls]
