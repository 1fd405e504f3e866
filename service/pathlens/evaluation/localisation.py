"""Localisation: whether a map lies on the object, told by boxes around it.

The pointing game (Zhang et al., arXiv 1608.00507) and the energy inside the boxes (Wang et al., arXiv 1910.01279), each
beside what needs no map at all. Several boxes count as one region, their union; a pixel belongs to it if its centre
does. A measure in [0, 1] each; higher is better.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pathlens.classifier.preprocessing import Preprocessing
from pathlens.errors import ImagesError
from pathlens.evaluation.batch import Subject

HARD_SHARE = 1 / 3
"""An image is hard if its boxes cover less."""


@dataclass(frozen=True)
class Localisation:
    """How a map lies on the object of one image.

    Attributes:
        pointing: 1 if the map's largest value is inside the boxes, 0 if not; where several pixels share the largest
            value, the share of them that are inside.
        energy: Share of the sum of the map's values that is inside the boxes.
    """

    pointing: float
    energy: float


def localise(relevance: NDArray[np.float32], subject: Subject, preprocessing: Preprocessing) -> Localisation:
    """Compare a map with the boxes of its image.

    Args:
        relevance: Map over the classifier's input, float32 [height, width], at least 0. Magnitudes are taken before:
            what is laid onto the image is interpolated, and opposite signs would cancel.
        subject: The image, with boxes.
        preprocessing: Tells where the classifier's input lies in the image.

    Returns:
        The measures. A map that is 0 everywhere prefers no pixel of the image: both are the share that the boxes cover.

    Raises:
        ValueError: If the subject has no boxes or the map another size.
        ImagesError: If the boxes cover no pixel of the image.
    """
    inside = object_mask(subject)
    placed = preprocessing.place(relevance, subject.height, subject.width).astype(np.float64)
    if not placed.any():
        placed = np.ones_like(placed)
    return Localisation(float(inside[placed == placed.max()].mean()), float(placed[inside].sum() / placed.sum()))


def without_map(subject: Subject) -> Localisation:
    """Return the trivial baselines: pointing at the image's centre, and energy spread evenly over the image.

    Args:
        subject: The image, with boxes.

    Raises:
        ValueError: If the subject has no boxes.
        ImagesError: If the boxes cover no pixel of the image.
    """
    inside = object_mask(subject)
    return Localisation(float(inside[subject.height // 2, subject.width // 2]), float(inside.mean()))


def is_hard(subject: Subject) -> bool:
    """Tell whether an image's centre misses every box, or the boxes cover less than `HARD_SHARE` of it.

    Args:
        subject: The image, with boxes.

    Raises:
        ValueError: If the subject has no boxes.
        ImagesError: If the boxes cover no pixel of the image.
    """
    trivial = without_map(subject)
    return trivial.pointing == 0 or trivial.energy < HARD_SHARE


def object_mask(subject: Subject) -> NDArray[np.bool_]:
    """Return which pixels of the image have their centre in a box, bool [height, width].

    Args:
        subject: The image, with boxes.

    Raises:
        ValueError: If the subject has no boxes.
        ImagesError: If the boxes cover no pixel of the image.
    """
    if not subject.boxes:
        raise ValueError(f"image {subject.position} has no boxes; measure localisation on images that have")
    columns, rows = np.arange(subject.width) + 0.5, np.arange(subject.height)[:, None] + 0.5
    mask = np.zeros((subject.height, subject.width), dtype=np.bool_)
    for left, top, right, bottom in subject.boxes:
        mask |= (left <= columns) & (columns < right) & (top <= rows) & (rows < bottom)
    if not mask.any():
        raise ImagesError(
            f"The boxes {list(subject.boxes)} of image {subject.position} cover no pixel of its {subject.height} rows "
            f"and {subject.width} columns; give them as [left, top, right, bottom] in pixels of the image file."
        )
    return mask
