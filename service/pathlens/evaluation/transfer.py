"""How stored class pathways transfer: agreement within the class, forcing and leak outside it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pathlens.classifier.captured import CapturedClassifier
from pathlens.description import TransferFigures
from pathlens.pathways.pathway import Pathway


@dataclass(frozen=True, eq=False)
class HeldOut:
    """Images that built no pathway, with what the whole classifier makes of them.

    Attributes:
        images: Preprocessed, float32 [B, C, H, W].
        probabilities: float32 [B, K].
    """

    images: Tensor
    probabilities: Tensor

    @property
    def predicted(self) -> Tensor:
        """Predicted classes, int64 [B]."""
        return self.probabilities.argmax(1)


def measure_transfer(
    classifier: CapturedClassifier, pathway: Pathway, label: int, held_out: Sequence[HeldOut]
) -> TransferFigures:
    """Apply the mask of class c to held-out images and compare P_c and the predicted class with the whole classifier.

    Args:
        classifier: The captured classifier.
        pathway: The mask of the class, a pathway of one image.
        label: The class c.
        held_out: In batches.

    Returns:
        The figures, each None where no image could show it.
    """
    whole, masked, was_member, stays = [], [], [], []
    with torch.no_grad():
        for batch in held_out:
            alone = classifier(batch.images, pathway[[0] * len(batch.images)]).softmax(1)
            whole.append(batch.probabilities[:, label])
            masked.append(alone[:, label])
            was_member.append(batch.predicted == label)
            stays.append(alone.argmax(1) == label)
    p, q, member, as_class = torch.cat(whole), torch.cat(masked), torch.cat(was_member), torch.cat(stays)
    members, others = int(member.sum()), int((~member).sum())

    def mean_over(rows: Tensor, values: Callable[[], Tensor]) -> float | None:
        return float(values()[rows].double().mean()) if bool(rows.any()) else None

    return TransferFigures(
        member_images=members,
        other_images=others,
        agreement=mean_over(member, lambda: as_class),
        mean_increase=mean_over(member, lambda: q > p),
        mean_drop=mean_over(member, lambda: (p - q).clamp(min=0) / p),
        forcing=mean_over(~member, lambda: as_class),
        leak=mean_over(~member, lambda: q),
        leak_reference=mean_over(~member, lambda: p),
    )
