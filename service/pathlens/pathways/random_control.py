"""The random control: a pathway that knows only how many neurons each tap keeps."""

import torch

from pathlens.pathways.pathway import Pathway
from pathlens.pathways.selection import select_ranked


def random_pathway(like: Pathway, seed: int) -> Pathway:
    """Draw, for every image and tap, as many neurons as `like` keeps there, uniformly at random.

    What stands in for the others is the same as in `like`.

    Args:
        like: Gives the counts.
        seed: Same seed, same pathway.
    """
    generator = torch.Generator().manual_seed(seed)
    masks = []
    for mask in like.masks:
        flat = mask.flatten(1)
        # Above 0, because a neuron of score 0 is never kept.
        scores = 1 - torch.rand(flat.shape, generator=generator)
        masks.append(select_ranked(scores.to(mask.device), flat.sum(1)).view_as(mask))
    return Pathway(like.taps, tuple(masks), like.granularity, like.replacement)
