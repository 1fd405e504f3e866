"""NeuronIntGrad: the gradient of the target integrated while one tap grows from zero (arXiv 2103.16886, equation 6).

The sum of a tap's signed contributions is f_t(x) - f_t(x with that tap at zero): nothing is lost and nothing is counted
twice. The authors' published code accumulates the scale (0, 0.1, 0.3, 0.6 …) and so integrates something else.
"""

from collections.abc import Callable
from enum import Enum

import numpy as np
import torch
from torch import Tensor

from pathlens.classifier.captured import CapturedClassifier
from pathlens.classifier.recording import Recording
from pathlens.explanation import Granularity
from pathlens.pathways.contributions import Contributions, first_order
from pathlens.pathways.neuron_mct import check_target, target_logits

LARGEST_BATCH = 64


class QuadratureRule(Enum):
    """Where the integrand is taken between 0 and 1."""

    MIDPOINT = "midpoint"
    """At the middle of equal intervals; robust for piecewise linear networks."""
    GAUSS_LEGENDRE = "gauss_legendre"
    """At the Gauss-Legendre points: exact for polynomials of degree 2 · steps - 1, best for smooth activations."""

    def points(self, steps: int) -> tuple[list[float], list[float]]:
        """Return `steps` points in (0, 1) and their weights, which sum to 1."""
        if self is QuadratureRule.MIDPOINT:
            return [(step + 0.5) / steps for step in range(steps)], [1 / steps] * steps
        roots, weights = np.polynomial.legendre.leggauss(steps)
        return ((roots + 1) / 2).tolist(), (weights / 2).tolist()


def neuron_intgrad(
    classifier: CapturedClassifier,
    images: Tensor,
    target: Tensor,
    steps: int = 50,
    granularity: Granularity | str = Granularity.UNIT,
    rule: QuadratureRule | str = QuadratureRule.MIDPOINT,
    largest_batch: int = LARGEST_BATCH,
    before_pass: Callable[[], None] = lambda: None,
) -> Contributions:
    """Compute a ⊙ ∫₀¹ ∂f_t(α·a)/∂a dα for every tap, scaling that tap alone.

    Cost: one forward pass, one more of at most two images, and for each tap `steps` forward and backward passes of the
    network behind it; what lies before the tap is computed once.

    Args:
        classifier: The captured classifier f.
        images: Preprocessed, float32 [B, C, H, W].
        target: The class t to explain in each image, int64 [B].
        steps: Points of the integral, at least 1.
        granularity: What counts as one neuron.
        rule: Where the points lie.
        largest_batch: Rows (image × step) computed at once; bounds the memory.
        before_pass: Called before every pass of a tail; what it raises ends the work.

    Raises:
        ValueError: If a target, `steps` or `largest_batch` is out of range.
    """
    if steps < 1:
        raise ValueError(f"steps is {steps}; expected at least 1")
    if largest_batch < 1:
        raise ValueError(f"largest_batch is {largest_batch}; expected at least 1")
    check_target(target, len(images), classifier.classes)
    recording = classifier.record(images)
    points, weights = QuadratureRule(rule).points(steps)
    gradients = [
        _integrate(recording, index, target, points, weights, largest_batch, before_pass)
        for index in range(len(classifier.taps))
    ]
    return first_order(classifier.taps, recording.activations, gradients, Granularity(granularity))


def _integrate(
    recording: Recording,
    index: int,
    target: Tensor,
    points: list[float],
    weights: list[float],
    largest_batch: int,
    before_pass: Callable[[], None],
) -> Tensor:
    activation = recording.activations[index]
    device = activation.device
    scale = torch.tensor(points, device=device, dtype=activation.dtype).repeat_interleave(len(activation))
    weight = torch.tensor(weights, device=device, dtype=activation.dtype).repeat_interleave(len(activation))
    image = torch.arange(len(activation), device=device).repeat(len(points))
    total = torch.zeros_like(activation)
    one_each = (-1,) + (1,) * (activation.ndim - 1)
    for rows in torch.arange(len(image), device=device).split(largest_batch):  # type: ignore[no-untyped-call]
        before_pass()
        scaled = (activation[image[rows]] * scale[rows].view(one_each)).requires_grad_()
        with torch.enable_grad():
            logits = target_logits(recording.run_tail(index, scaled, image[rows]), target[image[rows]])
            (gradient,) = torch.autograd.grad(logits.sum(), scaled, allow_unused=True, materialize_grads=True)
        total.index_add_(0, image[rows], gradient * weight[rows].view(one_each))
    return total
