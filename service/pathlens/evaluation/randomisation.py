"""Sanity check of maps: what is left of them as the classifier's layers are randomised, one after the other.

Cascading randomisation from the top as in arXiv 2103.16886, section 4, after Adebayo et al., arXiv 1810.03292. A map
that stays the same while the classifier forgets what it learned does not explain the classifier.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import spearmanr
from skimage.metrics import structural_similarity
from torch import Tensor

from pathlens.classifier.captured import CapturedClassifier
from pathlens.classifier.program import Call

_LARGEST_WINDOW = 7
"""Side of the window in which structural similarity compares two maps; less for smaller maps, and always odd."""


class Similarity(NamedTuple):
    """How alike two maps are, image by image.

    Attributes:
        spearman: Rank correlation of the values with their signs, float64 [B], in [-1, 1]; 0 where a map is constant.
        absolute_spearman: Rank correlation of the magnitudes, likewise.
        ssim: Structural similarity of the magnitudes, each map scaled to a largest one of 1: float64 [B], in [-1, 1].
    """

    spearman: Tensor
    absolute_spearman: Tensor
    ssim: Tensor


def randomise_from_top(classifier: CapturedClassifier, seed: int) -> Iterator[tuple[str, CapturedClassifier]]:
    """Randomise the layers one after the other, from the logits to the image; what is randomised stays so.

    A layer is a call with a matrix or kernel among its weights. Weights that scale or shift single channels (batch norm
    with its statistics, layer norm, layer scale) go with the layer that is next towards the image, whose output they
    mostly act on; those before the first layer come last, on their own. Weights that several calls share are randomised
    once, with the topmost call.

    The values of each weight tensor are permuted, which keeps their distribution exactly: variances stay positive, and
    what was never learned, such as a scale of 1, stays as it is. Within a layer, tensors of one length share one
    permutation, so that a channel's statistics stay with the scale that fits them: the output of a live channel,
    divided by the tiny deviation of a dead one, would let the logits grow by orders of magnitude. A single number has
    no other arrangement and stays, and so do integers, which index.

    Args:
        classifier: What is randomised; it stays as it is.
        seed: Same seed, same weights.

    Yields:
        The layer randomised last, named by its weight ("layer4.1.conv2", "attention.in_proj_weight"), with the
        classifier so far. At the end all weights are randomised.
    """
    generator = torch.Generator().manual_seed(seed)
    weights = classifier.weights
    waiting = {name for name, weight in weights.items() if weight.is_floating_point()}
    joined: list[str] = []
    orders: dict[int, Tensor] = {}
    for call in reversed(classifier.program.calls):
        for name in _weight_names(call):
            if name in waiting:
                waiting.remove(name)
                joined.append(name)
                weights[name] = _permuted(weights[name], orders, generator)
        own = [name for name in joined if name in _weight_names(call) and _mixes_neurons(weights[name])]
        if own:
            yield own[0].removesuffix(".weight"), CapturedClassifier(classifier.program, weights)
            joined, orders = [], {}
    if joined:
        yield joined[0].removesuffix(".weight"), CapturedClassifier(classifier.program, weights)


def similarity(original: Tensor, randomised: Tensor) -> Similarity:
    """Compare maps of the original classifier with maps of a randomised one.

    Args:
        original: One channel with signs, finite, [B, H, W].
        randomised: The same of the randomised classifier.

    Raises:
        ValueError: If the shapes differ or the maps are smaller than 3 x 3.
    """
    if original.shape != randomised.shape or original.ndim != 3 or min(original.shape[1:]) < 3:
        raise ValueError(
            f"the maps have shapes {list(original.shape)} and {list(randomised.shape)}; expected equal shapes "
            "[B, H, W] with height and width of at least 3"
        )
    pairs = list(zip(original.double().cpu().numpy(), randomised.double().cpu().numpy(), strict=True))
    return Similarity(
        _float64([_rank_correlation(one, other) for one, other in pairs]),
        _float64([_rank_correlation(np.abs(one), np.abs(other)) for one, other in pairs]),
        _float64([_structural_similarity(np.abs(one), np.abs(other)) for one, other in pairs]),
    )


def _weight_names(call: Call) -> list[str]:
    """Return the weights that a call uses, in the order of its arguments."""

    def names(value: Any) -> list[str]:
        if isinstance(value, list):
            return [name for item in value for name in names(item)]
        return [value["weight"]] if isinstance(value, dict) and "weight" in value else []

    return names([*call.arguments, *call.keywords.values()])


def _mixes_neurons(weight: Tensor) -> bool:
    """Tell a matrix or kernel from what has one value per channel, in whatever shape."""
    return sum(size > 1 for size in weight.shape) > 1


def _permuted(weight: Tensor, orders: dict[int, Tensor], generator: torch.Generator) -> Tensor:
    if (count := weight.numel()) not in orders:
        orders[count] = torch.randperm(count, generator=generator)
    return weight.flatten()[orders[count].to(weight.device)].view(weight.shape)


def _rank_correlation(one: NDArray[np.float64], other: NDArray[np.float64]) -> float:
    # Ranks that are all equal have no correlation; scipy would warn and return NaN.
    if np.ptp(one) == 0 or np.ptp(other) == 0:
        return 0.0
    return float(spearmanr(one, other, axis=None).statistic)


def _structural_similarity(one: NDArray[np.float64], other: NDArray[np.float64]) -> float:
    side = min(_LARGEST_WINDOW, *one.shape)
    window = side if side % 2 else side - 1
    value = structural_similarity(_scaled(one), _scaled(other), win_size=window, data_range=1.0)  # type: ignore[no-untyped-call]
    return float(value)


def _scaled(magnitudes: NDArray[np.float64]) -> NDArray[np.float64]:
    return magnitudes / (magnitudes.max() or 1.0)


def _float64(values: list[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)
