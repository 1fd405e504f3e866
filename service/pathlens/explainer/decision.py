"""What the classifier makes of one image, as numbers on the host."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Decision:
    """The prediction of one image.

    Attributes:
        logits: float32 [K].
        probabilities: Their softmax, float32 [K].
        ranking: The most probable classes, most probable first; of equal ones the lowest index, as argmax has it.
    """

    logits: NDArray[np.float32]
    probabilities: NDArray[np.float32]
    ranking: list[int]


def decide(logits: Tensor, depth: int) -> list[Decision]:
    """Read the predictions of a batch, with one transfer for all of them.

    Args:
        logits: float32 [B, K], on any device.
        depth: How many classes to rank at most, at least 1.
    """
    # A class more than is asked for shows whether the last one has an equal.
    values, ranking = logits.topk(min(depth + 1, logits.shape[1]), dim=1)
    if bool((values[:, 1:] == values[:, :-1]).any()):
        # Which of equals topk takes, and in what order, is left open.
        ranking = logits.argsort(dim=1, descending=True, stable=True)
    probabilities = logits.softmax(1)
    rows = zip(logits.cpu().numpy(), probabilities.cpu().numpy(), ranking[:, :depth].tolist(), strict=True)
    return [Decision(*row) for row in rows]
