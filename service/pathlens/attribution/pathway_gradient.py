"""The pathway gradient: which pixels the neurons of a pathway read (arXiv 2103.16886, section 3.4)."""

from dataclasses import dataclass

import torch
from torch import Tensor

from pathlens.classifier.captured import CapturedClassifier
from pathlens.pathways.contributions import Contributions, first_order
from pathlens.pathways.neuron_mct import target_logits
from pathlens.pathways.pathway import Pathway


@dataclass(frozen=True, eq=False)
class PathwayRun:
    """One forward and one backward pass of the pathway network.

    Attributes:
        logits: f(x; m), float32 [B, K].
        gradient: ∂f_t(x; m)/∂x, the shape of the images.
        contributions: First-order contributions within the pathway network, zero outside the pathway; None unless
            asked for.
    """

    logits: Tensor
    gradient: Tensor
    contributions: Contributions | None


def pathway_gradient(classifier: CapturedClassifier, images: Tensor, target: Tensor, pathway: Pathway) -> Tensor:
    """Compute ∂f_t(x; m)/∂x with the pathway m held constant.

    Args:
        classifier: The captured classifier f.
        images: Preprocessed x, float32 [B, C, H, W].
        target: The class t of each image, int64 [B].
        pathway: The pathway m of each image.

    Returns:
        float32, the shape of `images`.

    Raises:
        ValueError: If a target is out of range.
    """
    return run_pathway(classifier, images, target, pathway).gradient


def run_pathway(
    classifier: CapturedClassifier, images: Tensor, target: Tensor, pathway: Pathway, with_contributions: bool = False
) -> PathwayRun:
    """Compute the pathway gradient together with what the same two passes show beside it.

    Args:
        classifier: The captured classifier f.
        images: Preprocessed x, float32 [B, C, H, W].
        target: The class t of each image, int64 [B].
        pathway: The pathway m of each image.
        with_contributions: Whether to compute the contributions as well.
    """
    leaf = images.detach().requires_grad_()
    trace = classifier.trace(leaf, pathway)
    inputs = (leaf, *trace.activations) if with_contributions else (leaf,)
    with torch.enable_grad():
        total = target_logits(trace.logits, target).sum()
    gradient, *tap_gradients = torch.autograd.grad(total, inputs, allow_unused=True, materialize_grads=True)
    contributions = None
    if with_contributions:
        contributions = first_order(classifier.taps, trace.activations, tap_gradients, pathway.granularity)
    # The gradient has the layout of the last convolution's weights.
    return PathwayRun(trace.logits.detach(), gradient.contiguous(), contributions)
