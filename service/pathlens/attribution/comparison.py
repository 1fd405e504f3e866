"""The maps that pathway gradients are compared with, by Captum.

All take (classifier, images [B, C, H, W], target [B]) and return a map that is detached and float32. The zero of the
preprocessed input, which is the mean image, is where gradient times input and integrated gradients start from.
"""

import zlib

import torch
from captum.attr import InputXGradient, IntegratedGradients, LayerAttribution, LayerGradCam, Saliency
from torch import Tensor, nn

from pathlens.classifier.captured import CapturedClassifier
from pathlens.classifier.taps import Tap
from pathlens.pathways.neuron_mct import check_target

STEPS = 50
"""Points of the path of integrated gradients, placed by Gauss-Legendre quadrature."""

_LARGEST_BATCH = 64
"""Images times steps that integrated gradients compute at once, unless the batch itself is larger."""


def vanilla_gradient(classifier: CapturedClassifier, images: Tensor, target: Tensor) -> Tensor:
    """Compute ∂f_t/∂x with its sign, the shape of `images` (Simonyan et al., arXiv 1312.6034).

    Args:
        classifier: The captured classifier f.
        images: Preprocessed x, float32 [B, C, H, W].
        target: The class t of each image, int64 [B].

    Raises:
        ValueError: If a target is out of range.
    """
    check_target(target, len(images), classifier.classes)
    return _plain(Saliency(classifier).attribute(_leaf(images), target=target, abs=False))


def gradient_times_input(classifier: CapturedClassifier, images: Tensor, target: Tensor) -> Tensor:
    """Compute x ⊙ ∂f_t/∂x, the shape of `images` (Shrikumar et al., arXiv 1605.01713).

    Args:
        classifier: The captured classifier f.
        images: Preprocessed x, float32 [B, C, H, W].
        target: The class t of each image, int64 [B].

    Raises:
        ValueError: If a target is out of range.
    """
    check_target(target, len(images), classifier.classes)
    return _plain(InputXGradient(classifier).attribute(_leaf(images), target=target))


def integrated_gradients(classifier: CapturedClassifier, images: Tensor, target: Tensor) -> Tensor:
    """Compute x ⊙ ∫₀¹ ∂f_t(αx)/∂x dα, the shape of `images` (Sundararajan et al., arXiv 1703.01365, equation 1).

    An image's values sum to f_t(x) - f_t(0), up to the error of the quadrature with `STEPS` points.

    Args:
        classifier: The captured classifier f.
        images: Preprocessed x, float32 [B, C, H, W].
        target: The class t of each image, int64 [B].

    Raises:
        ValueError: If a target is out of range.
    """
    check_target(target, len(images), classifier.classes)
    largest_batch = max(_LARGEST_BATCH, len(images))
    method = IntegratedGradients(classifier)
    return _plain(
        method.attribute(images.detach(), baselines=0, target=target, n_steps=STEPS, internal_batch_size=largest_batch)
    )


def grad_cam(classifier: CapturedClassifier, images: Tensor, target: Tensor) -> Tensor:
    """Compute Grad-CAM at the last feature maps, enlarged to the image (Selvaraju et al., arXiv 1610.02391).

    Args:
        classifier: The captured classifier f.
        images: Preprocessed x, float32 [B, C, H, W].
        target: The class t of each image, int64 [B].

    Returns:
        float32 [B, 1, H, W], at least 0, by bilinear interpolation.

    Raises:
        ValueError: If a target is out of range, or no tap has feature maps: channels first, then a height and a width
            above 1. What a transformer puts out has tokens instead.
    """
    check_target(target, len(images), classifier.classes)
    module = _TapAsLayer(classifier, _last_feature_maps(classifier))
    weighted = LayerGradCam(module, module.layer).attribute(_leaf(images), target=target, relu_attributions=True)
    return _plain(LayerAttribution.interpolate(weighted, tuple(images.shape[2:]), "bilinear"))


def random_map(images: Tensor, seed: int) -> Tensor:
    """Draw uniform noise, the control of a map that knows nothing.

    Args:
        images: float32 [B, C, H, W].
        seed: Same seed, same noise.

    Returns:
        float32 [B, 1, H, W] in [0, 1). Every image has noise of its own, whatever batch it is in.
    """
    noise = []
    for image in images.detach().cpu():
        generator = torch.Generator().manual_seed(zlib.crc32(image.contiguous().numpy().tobytes(), seed))
        noise.append(torch.rand(1, *image.shape[1:], generator=generator))
    return torch.stack(noise).to(images.device)


class _TapAsLayer(nn.Module):
    """The classifier with one tap's output passing through a layer of its own, on which Captum puts its hooks."""

    def __init__(self, classifier: CapturedClassifier, tap: int) -> None:
        super().__init__()
        self.classifier, self.tap, self.layer = classifier, tap, nn.Identity()

    def forward(self, images: Tensor) -> Tensor:
        return self.classifier.run(
            images, lambda index, activation: self.layer(activation) if index == self.tap else activation
        )


def has_feature_maps(classifier: CapturedClassifier) -> bool:
    """Tell whether Grad-CAM can be drawn: a transformer or a perceptron has no feature maps to weigh."""
    return any(map(_is_feature_map, classifier.taps))


def _is_feature_map(tap: Tap) -> bool:
    return len(tap.shape) == 3 and tap.channel_dimension == 0 and min(tap.shape[1:]) > 1


def _last_feature_maps(classifier: CapturedClassifier) -> int:
    for index, tap in reversed(list(enumerate(classifier.taps))):
        if _is_feature_map(tap):
            return index
    shapes = ", ".join(f"{tap.name} {list(tap.shape)}" for tap in classifier.taps)
    raise ValueError(
        f"Grad-CAM needs a tap [channels, height, width] with height and width above 1; the taps are {shapes}"
    )


def _leaf(images: Tensor) -> Tensor:
    # Captum warns where it has to ask for the gradient itself, and would do so on the caller's tensor.
    return images.detach().requires_grad_()


def _plain(attribution: Tensor) -> Tensor:
    return attribution.detach().float()
