"""Classifiers of the ONNX model zoo: an old opset, weights among the inputs, a fixed batch of one, a final softmax."""

import torch
from torch import Tensor

from exported_classifiers import captured_file
from onnx_files import by_onnx_runtime, is_close
from onnx_zoo import zoo_file, zoo_logits_file
from small_networks import images

NAME, ACTIVATIONS = "squeezenet", 26
"""`make onnx` reads all of them."""


def coloured_images(count: int, seed: int) -> Tensor:
    return images(count, seed, 224) + images(count, seed + 1, 1)


def test_a_classifier_of_the_zoo_is_captured_with_the_logits_of_onnx_runtime() -> None:
    classifier = captured_file(zoo_file(NAME), coloured_images(2, seed=0))
    assert len(classifier.taps) == ACTIVATIONS
    batch = coloured_images(3, seed=5)
    # The graph takes one image at a time.
    expected = torch.cat([by_onnx_runtime(zoo_logits_file(NAME), image[None]) for image in batch])
    assert is_close(classifier(batch), expected.view(len(batch), -1))
