"""Local linearity of the pathway network, which arXiv 2103.16886 (section 3.3) proves for pathways of contributors."""

import torch
from torch import Tensor

from pathlens.classifier.captured import CapturedClassifier
from pathlens.pathways.neuron_mct import check_target
from pathlens.pathways.pathway import Pathway

POINTS = 16
"""Random points of the ball, unless told otherwise."""


def linearity_error(
    classifier: CapturedClassifier,
    images: Tensor,
    target: Tensor,
    pathway: Pathway,
    gradient: Tensor,
    radius: float,
    points: int = POINTS,
    seed: int = 0,
) -> Tensor:
    """Measure how far f_t(x; m) is from f_t(x₀; m) + g · (x - x₀) around each image x₀.

    The error is relative to how much the output changes at all: the root of Σ(f - linear)² / Σ(f - f(x₀))² over points
    drawn uniformly from the L2 ball of the stated radius. 0 is linear; 1 is no better than predicting no change. The
    passes are made in float64: the change is so small that float32's rounding would pass for curvature.

    Args:
        classifier: The captured classifier f.
        images: Preprocessed x₀, float32 [B, C, H, W].
        target: The class t of each image, int64 [B].
        pathway: The pathway m of each image, held constant.
        gradient: g = ∂f_t(x₀; m)/∂x, the shape of `images`.
        radius: Of the ball, above 0, in units of the preprocessed input.
        points: How many, at least 1; each costs a forward pass of the batch.
        seed: Of the points. An image's points are the same whatever else is in the batch.

    Returns:
        float32 [B], at least 0. Where the output does not change at all it is exactly linear: 0.

    Raises:
        ValueError: If the radius, the number of points or a target is out of range.
    """
    if not (radius > 0 and radius < float("inf")):
        raise ValueError(f"radius is {radius}; expected a finite number above 0")
    if points < 1:
        raise ValueError(f"points is {points}; expected at least 1")
    check_target(target, len(images), classifier.classes)
    dimensions = images[0].numel()
    # One draw for all images: what an image gets must not depend on its place in the batch.
    generator = torch.Generator().manual_seed(seed)
    directions = torch.randn(points, dimensions, generator=generator, dtype=torch.float64)
    lengths = radius * torch.rand(points, 1, generator=generator, dtype=torch.float64) ** (1 / dimensions)
    moves = (directions / directions.norm(dim=1, keepdim=True) * lengths).to(images.device)
    exact, start_images = classifier.in_float64, images.double()
    residual = torch.zeros(len(images), dtype=torch.float64, device=images.device)
    change = torch.zeros_like(residual)
    with torch.no_grad():
        start = _logit(exact, start_images, target, pathway)
        for move in moves:
            difference = _logit(exact, start_images + move.view(images.shape[1:]), target, pathway) - start
            linear = gradient.double().flatten(1) @ move
            residual += (difference - linear) ** 2
            change += difference**2
    return torch.where(change > 0, (residual / change.clamp(min=1e-300)).sqrt(), residual.sqrt()).float()


def _logit(classifier: CapturedClassifier, images: Tensor, target: Tensor, pathway: Pathway) -> Tensor:
    return classifier(images, pathway).gather(1, target[:, None])[:, 0]
