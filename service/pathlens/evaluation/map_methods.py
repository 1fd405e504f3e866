"""The maps that an evaluation compares, under the names that its figures carry."""

from collections.abc import Callable, Mapping

from torch import Tensor

from pathlens.attribution.comparison import (
    grad_cam,
    gradient_times_input,
    has_feature_maps,
    integrated_gradients,
    random_map,
    vanilla_gradient,
)
from pathlens.classifier.captured import CapturedClassifier

MapMethod = Callable[[CapturedClassifier, Tensor, Tensor], Tensor]
"""Draws a map [B, C, H, W] or [B, 1, H, W] of images for their targets."""


def comparison_maps(classifier: CapturedClassifier, seed: int) -> Mapping[str, MapMethod]:
    """Return, by name, the maps that pathway gradients are compared with.

    Args:
        classifier: Grad-CAM is left out if it has no feature maps.
        seed: Of the random map.
    """
    return {
        "gradient": vanilla_gradient,
        "gradient_times_input": gradient_times_input,
        "integrated_gradients": integrated_gradients,
        **({"grad_cam": grad_cam} if has_feature_maps(classifier) else {}),
        "random": lambda _, images, __: random_map(images, seed),
    }
