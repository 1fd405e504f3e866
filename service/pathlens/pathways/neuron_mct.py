"""NeuronMCT: the marginal contribution of every neuron, to first order (arXiv 2103.16886, equation 4)."""

import torch
from torch import Tensor

from pathlens.classifier.captured import CapturedClassifier, Trace
from pathlens.explanation import Granularity
from pathlens.pathways.contributions import Contributions, first_order


def neuron_mct(
    classifier: CapturedClassifier, images: Tensor, target: Tensor, granularity: Granularity | str = Granularity.UNIT
) -> Contributions:
    """Compute a ⊙ ∂f_t/∂a at every tap: one forward and one backward pass.

    Args:
        classifier: The captured classifier f.
        images: Preprocessed, float32 [B, C, H, W].
        target: The class t to explain in each image, int64 [B].
        granularity: What counts as one neuron.

    Raises:
        ValueError: If a target is out of range.
    """
    return contributions_of_trace(classifier, classifier.trace(images), target, Granularity(granularity))


def contributions_of_trace(
    classifier: CapturedClassifier, trace: Trace, target: Tensor, granularity: Granularity
) -> Contributions:
    """Compute the first-order contributions from a run that was already made.

    Args:
        classifier: What was run.
        trace: The run.
        target: int64 [B].
        granularity: What counts as one neuron.
    """
    return first_order(classifier.taps, trace.activations, tap_gradients(trace, target), granularity)


def tap_gradients(trace: Trace, target: Tensor, keep_graph: bool = False) -> tuple[Tensor, ...]:
    """Compute ∂f_t/∂a at every tap of a run, zero where the logits do not depend on the tap.

    Args:
        trace: The run.
        target: int64 [B].
        keep_graph: Whether another target of the same run will follow.
    """
    with torch.enable_grad():
        total = target_logits(trace.logits, target).sum()
    return torch.autograd.grad(
        total, trace.activations, retain_graph=keep_graph, allow_unused=True, materialize_grads=True
    )


def target_logits(logits: Tensor, target: Tensor) -> Tensor:
    """Pick f_t(x) for every image: [B].

    Raises:
        ValueError: If `target` has another length than the batch or a class is out of range.
    """
    check_target(target, *logits.shape)
    return logits.gather(1, target[:, None])[:, 0]


def check_target(target: Tensor, batch: int, classes: int) -> None:
    """Raise ValueError unless `target` names one of `classes` classes for each of `batch` images."""
    if tuple(target.shape) != (batch,) or target.dtype != torch.int64:
        raise ValueError(f"target is {target.dtype} {list(target.shape)}; expected int64 [{batch}]")
    if batch and not 0 <= int(target.min()) <= int(target.max()) < classes:
        raise ValueError(f"target {target.tolist()} has a class outside 0 to {classes - 1}")
