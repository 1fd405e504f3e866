"""Random contributions: the baseline that knows nothing of the classifier or the image (arXiv 2103.16886)."""

import math

import torch
from torch import Tensor

from pathlens.classifier.captured import CapturedClassifier
from pathlens.explanation import Granularity
from pathlens.pathways.contributions import Contributions
from pathlens.pathways.pathway import mask_shape


def random_contributions(
    classifier: CapturedClassifier, images: Tensor, granularity: Granularity | str = Granularity.UNIT, seed: int = 0
) -> Contributions:
    """Score every neuron uniformly at random in (0, 1].

    The scores of an image depend on its row and the seed alone, not on how many images follow it.

    Args:
        classifier: Gives the taps.
        images: float32 [B, C, H, W]; gives the number of images and the device.
        granularity: What counts as one neuron.
        seed: Same seed, same scores.
    """
    granularity = Granularity(granularity)
    shapes = [mask_shape(tap, granularity) for tap in classifier.taps]
    sizes = [math.prod(shape) for shape in shapes]
    # Above 0, because a neuron of score 0 is never kept.
    flat = 1 - torch.rand(len(images), sum(sizes), generator=torch.Generator().manual_seed(seed))
    parts = torch.split(flat.to(images.device), sizes, dim=1)
    signed = tuple(part.reshape(-1, *shape) for part, shape in zip(parts, shapes, strict=True))
    return Contributions(classifier.taps, signed, granularity)
