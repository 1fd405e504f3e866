"""DAQ, the distance-aware quantizer: hard masks whose gradient knows how near each score is to its boundary."""

import math

import torch
from torch import Tensor

SHARPNESS = 2.0
"""The soft assignment of every score is the logistic function of plus or minus this number, gamma in the paper."""

NEAREST = 0.1
"""Distances to the boundary count as at least this much, which bounds the gradient."""

# What brings σ(-γ) and σ(γ) to 0 and 1.
_SCALE = 1 / (1 / (1 + math.exp(-SHARPNESS)) - 1 / (1 + math.exp(SHARPNESS)))


def quantize(scores: Tensor) -> Tensor:
    """Round importances to {0, 1} (Kim et al., "Distance-aware quantization", ICCV 2021, section 3).

    With x = σ(score) the importance and 0, 1 the levels, the soft assignment to 1 is σ(β (|x - 0| - |x - 1|)) =
    σ(β (2x - 1)). The temperature β = γ / |2x - 1| follows the distance to the boundary ½, so that the soft value is
    the same everywhere on one side and, scaled, equals the hard one: no gap between training and inference. The
    gradient takes β as a constant and is the greater, the nearer the score lies to the boundary.

    Args:
        scores: Any real numbers; importance ½ is score 0.

    Returns:
        1 where the score is above 0, else 0, in the type of the scores.
    """
    signed = 2 * torch.sigmoid(scores) - 1
    temperature = SHARPNESS / signed.detach().abs().clamp(min=NEAREST)
    soft = _SCALE * torch.sigmoid(temperature * signed)
    # The clamp leaves a gap for scores at the boundary itself: the forward value is the hard one, always. In brackets,
    # because 1 + soft - soft would be 1 but for rounding.
    return (scores > 0).to(scores.dtype) + (soft - soft.detach())
