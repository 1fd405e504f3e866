"""How much the pathways of images have in common, within a class and across classes."""

from dataclasses import dataclass

import torch
from torch import Tensor

from pathlens.pathways.pathway import Pathway


@dataclass(frozen=True)
class ClassOverlap:
    """Mean intersection over union of the pathways of one class.

    Attributes:
        within: With each other; its mean over the classes is the acIOU of arXiv 2309.09887, section 4. None for a
            single image.
        cross: With those of other classes; None where there is no other class.
    """

    within: float | None
    cross: float | None


def measure_overlap(predicted: Tensor, pathway: Pathway) -> dict[int, ClassOverlap]:
    """Measure every class that occurs.

    Args:
        predicted: Classes, int64 [M].
        pathway: Pathways of the same images.
    """
    iou = _pairwise_iou(pathway)
    predicted = predicted.to(iou.device)
    same = predicted[:, None] == predicted[None, :]
    pairs = ~torch.eye(len(predicted), dtype=torch.bool, device=iou.device)

    def mean_over(rows: Tensor, chosen: Tensor) -> float | None:
        values = iou[rows][chosen[rows]]
        return float(values.mean()) if len(values) else None

    overlaps = {}
    for label in sorted(set(predicted.tolist())):
        rows = predicted == label
        overlaps[label] = ClassOverlap(mean_over(rows, same & pairs), mean_over(rows, ~same))
    return overlaps


def _pairwise_iou(pathway: Pathway) -> Tensor:
    """Return the IoU of every pathway with every other, float32 [M, M]."""
    intersection = torch.zeros(len(pathway), len(pathway), device=pathway.masks[0].device)
    for mask in pathway.masks:
        # As 0 and 1 in float32, a matrix product counts exactly up to 2²⁴ neurons at once.
        for part in torch.split(mask.flatten(1), 1 << 16, dim=1):
            values = part.float()
            intersection += values @ values.T
    kept = intersection.diagonal()
    union = kept[:, None] + kept[None, :] - intersection
    return torch.where(union > 0, intersection / union.clamp(min=1), 1.0)
