"""What training minimises beside the price of neurons: unfaithfulness, and a class pathway that leaks."""

import torch
import torch.nn.functional as F
from torch import Tensor


def distillation(logits: Tensor, taught: Tensor) -> Tensor:
    """Kullback-Leibler divergence of the taught distribution from the classifier's, in nats.

    Args:
        logits: Of the whole classifier, [B, K].
        taught: Of the pathway network, or of the class-relevant code, [B, K].

    Returns:
        The mean over the batch, a scalar of at least 0.
    """
    return F.kl_div(taught.log_softmax(1), logits.log_softmax(1), reduction="batchmean", log_target=True)


def odds(logits: Tensor, classes: Tensor) -> Tensor:
    """Logit of P_c, ln(P_c / (1 - P_c)), for one class of each image.

    Args:
        logits: [B, K].
        classes: c, int64 [B].

    Returns:
        [B].
    """
    own = logits.gather(1, classes[:, None])
    others = logits.scatter(1, classes[:, None], -torch.inf).logsumexp(1)
    return own[:, 0] - others


def detection(logits: Tensor, alone: Tensor, classes: Tensor) -> Tensor:
    """Cross-entropy of P_c in the pathway network against P_c in the classifier, in nats.

    It is least where P_c(x; m_c) = P_c(x): the pathway of class c then is the classifier's own detector of that class,
    for images of the class and for others alike.

    Args:
        logits: Of the whole classifier, [B, K].
        alone: Of the pathway network, [B, K].
        classes: c, int64 [B].

    Returns:
        One value per image, [B].
    """
    wanted = odds(logits, classes).sigmoid()
    return F.binary_cross_entropy_with_logits(odds(alone, classes), wanted, reduction="none")
