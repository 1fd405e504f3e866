"""Which images train, which validate, and which are held out."""

import math
from collections.abc import Sequence

from torch import Tensor


def hold_out(total: int, share: float, largest: int) -> tuple[list[int], list[int]]:
    """Divide images into those that build a bundle and those that test it.

    Args:
        total: Number of images.
        share: Of the held-out ones, in (0, 0.5].
        largest: Most held-out images.

    Returns:
        Positions of the images that build, and of those that are held out: evenly spread, so that images sorted by
        class are sampled from every class.
    """
    stride = max(2, round(1 / share), math.ceil(total / largest))
    held_out = list(range(0, total, stride))
    return sorted(set(range(total)) - set(held_out)), held_out


def thin_out(positions: Sequence[int], largest: int) -> list[int]:
    """Take some of many positions, evenly spread.

    Args:
        positions: To take from.
        largest: Most to take.
    """
    return list(positions[:: max(1, math.ceil(len(positions) / largest))])


def set_apart(positions: Sequence[int], predicted: Tensor, share: float, largest: int) -> tuple[list[int], list[int]]:
    """Divide images into those that train and those that validate, of each class alike.

    Args:
        positions: Of the images to divide.
        predicted: Class of each image of the source, int64 [M].
        share: Of the validation images, in (0, 0.5].
        largest: Most validation images.

    Returns:
        Positions of the images that train, in order, and of those that validate; none of so few that the share is less
        than one.
    """
    by_class = sorted(positions, key=lambda position: int(predicted[position]))
    stride = max(round(1 / share), math.ceil(len(by_class) / largest))
    validation = by_class[stride - 1 :: stride]
    return sorted(set(positions) - set(validation)), validation
