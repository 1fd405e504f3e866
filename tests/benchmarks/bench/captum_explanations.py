"""What others compute on the same classifier: TorchServe's own explanation, and Captum's usual maps."""

import copy
import io
import logging
import warnings
from collections.abc import Mapping
from contextlib import redirect_stdout

from captum.attr import IntegratedGradients, LayerGradCam, Saliency
from torch import Tensor, nn

from benchmarks.bench.timing import Work

with warnings.catch_warnings():
    # TorchServe leaves its version file open when it is imported, and tells which of its extras are missing.
    warnings.simplefilter("ignore")
    logging.getLogger("ts").setLevel(logging.ERROR)
    from ts.torch_handler.vision_handler import VisionHandler

_AT_ONCE = 64
"""Images in one pass of the integral; by default Captum takes all steps of all images, for which memory may not do."""

TORCHSERVE = "TorchServe's explanation: integrated gradients, 15 steps"
"""As `ts.torch_handler.vision_handler.VisionHandler.get_insights` computes it for its image classifiers."""


def captum_explanations(original: nn.Module, images: Tensor, target: Tensor) -> Mapping[str, Work]:
    """Return what computes maps of the target's logit on the classifier as its author wrote it.

    None of them predicts: their forward passes are part of the map.

    Args:
        original: In evaluation mode, on the device of the images.
        images: Preprocessed, float32 [B, C, H, W].
        target: The class of each image, int64 [B].

    Returns:
        Works by name. LayerGradCam is that of the last convolution, without bringing its map to the image's size.
    """
    handler = VisionHandler()
    # Captum would warn that it lets them require gradients.
    leaf = images.detach().clone().requires_grad_()
    handler.ig = IntegratedGradients(original)
    apart = _out_of_place(original)
    last = [module for module in apart.modules() if isinstance(module, nn.Conv2d)][-1]

    def insights() -> list[object]:
        # It prints the shape of what it got.
        with redirect_stdout(io.StringIO()):
            explained: list[object] = handler.get_insights(leaf, None, target)
        return explained

    return {
        TORCHSERVE: insights,
        "Captum integrated gradients, 50 steps": lambda: IntegratedGradients(original).attribute(
            leaf, target=target, n_steps=50, internal_batch_size=_AT_ONCE
        ),
        "Captum Saliency": lambda: Saliency(original).attribute(leaf, target=target),
        "Captum LayerGradCam, last convolution": lambda: LayerGradCam(apart, last).attribute(images, target=target),
    }


def _out_of_place(original: nn.Module) -> nn.Module:
    # An activation function that works in place would overwrite the output of the convolution that Captum looks at.
    copied = copy.deepcopy(original)
    for module in copied.modules():
        if hasattr(module, "inplace"):
            module.inplace = False  # type: ignore[assignment]
    return copied
