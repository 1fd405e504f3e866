"""What is measured: the digits of the demonstration, and the fixture networks where there are fixtures."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from fixture_data import CLASSIFIERS, cifar, networks
from fixture_data import FOLDER as FIXTURES
from pathlens.classifier.capture import capture
from pathlens.classifier.captured import CapturedClassifier
from pathlens.classifier.decoding import decode_image
from pathlens.classifier.preprocessing import Colour, Preprocessing
from pathlens.demo.digits import DigitsClassifier, train
from pathlens.explanation import Granularity
from pathlens.generator.generator import PathwayGenerator
from pathlens.pathways.contributions import Contributions
from pathlens.pathways.neuron_mct import neuron_mct

DIGITS = "digits"
NAMES = (DIGITS, "cifar_resnet20", "squeezenet1_1", "mobilenet_v2")
GENERATED_DENSITY = 0.2
"""Share of the neurons that generated pathways keep: about what trained generators come to."""

_PICTURES = {DIGITS: 160, "cifar_resnet20": 160, "squeezenet1_1": 64, "mobilenet_v2": 64}
_QUICK_PICTURES = 40
_BATCH = 16
_JPEG_QUALITY = 95


@dataclass(frozen=True, eq=False)
class Subject:
    """A classifier with images that it knows.

    Attributes:
        name: One of `NAMES`.
        original: The classifier as its author wrote it.
        classifier: The same, captured.
        preprocessing: From pixels to its input.
        pictures: Images as JPEG files.
        images: The same, preprocessed: float32 [N, C, H, W].
    """

    name: str
    original: nn.Module
    classifier: CapturedClassifier
    preprocessing: Preprocessing
    pictures: tuple[bytes, ...]
    images: Tensor

    @cached_property
    def predicted(self) -> Tensor:
        """The predicted class of every image, int64 [N]."""
        with torch.no_grad():
            return torch.cat([self.classifier(batch).argmax(1) for batch in torch.split(self.images, _BATCH)])

    @cached_property
    def contributions(self) -> Contributions:
        """What every channel contributes to the predicted class of every image."""
        parts = [
            neuron_mct(self.classifier, images, target, Granularity.CHANNEL)
            for images, target in zip(
                torch.split(self.images, _BATCH), torch.split(self.predicted, _BATCH), strict=True
            )
        ]
        signed = tuple(torch.cat(tap) for tap in zip(*(part.signed for part in parts), strict=True))
        return Contributions(self.classifier.taps, signed, Granularity.CHANNEL)

    @cached_property
    def generator(self) -> PathwayGenerator:
        """A generator that was never trained; its biases keep `GENERATED_DENSITY` of the channels of every tap."""
        scales = [torch.ones(tap.channels) for tap in self.classifier.taps]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            generator = PathwayGenerator.for_classifier(self.classifier, scales, Granularity.CHANNEL)
            with torch.no_grad():
                for tap, layer in zip(self.classifier.taps, generator.decoder.scores, strict=True):
                    bias = layer.get_parameter("bias")
                    kept = torch.rand(tap.channels) < GENERATED_DENSITY
                    bias.copy_(torch.where(kept, 1.0, -1.0))
        return generator.frozen()

    def rows_of_different_classes(self, count: int) -> list[int]:
        """Find images that are predicted as different classes, and then others if there are too few of these."""
        first: dict[int, int] = {}
        for row, label in enumerate(self.predicted.tolist()):
            first.setdefault(label, row)
        rows = [*first.values(), *(row for row in range(len(self.images)) if row not in first.values())]
        return rows[:count]


def available() -> tuple[tuple[str, ...], str]:
    """Tell which subjects there are, and why others are missing."""
    if (FIXTURES / "networks.py").is_file():
        return NAMES, ""
    return (DIGITS,), f"There are no fixtures in {FIXTURES}, so only digits are measured; set PATHLENS_FIXTURES."


def make_subject(name: str, folder: Path, quick: bool = False) -> Subject:
    """Make a subject.

    Args:
        name: One of `NAMES`.
        folder: Where the digits classifier is trained, unless it was.
        quick: Whether few images are enough.
    """
    original = _original(name, folder)
    pixels = _pixels(name, folder, _QUICK_PICTURES if quick else _PICTURES[name])
    pictures = tuple(_jpeg(picture) if isinstance(picture, np.ndarray) else picture for picture in pixels)
    preprocessing = _preprocessing(name)
    images = torch.stack([torch.from_numpy(preprocessing.apply(decode_image(picture))) for picture in pictures])
    return Subject(name, original, capture(original, images[:2]), preprocessing, pictures, images)


def _original(name: str, folder: Path) -> nn.Module:
    if name != DIGITS:
        network: nn.Module = networks().load(name)
        return network
    weights = folder / "classifier.safetensors"
    if not weights.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        train(folder)
    digits = DigitsClassifier()
    digits.load_state_dict(safetensors.torch.load_file(weights))
    return digits.eval()


def _preprocessing(name: str) -> Preprocessing:
    if name == DIGITS:
        return Preprocessing(8, 8, mean=(0.0,), std=(1.0,), colour=Colour.GREY)
    _, side, mean, std = networks().CLASSIFIERS[name]
    return Preprocessing(side, side, mean=mean, std=std)


def _pixels(name: str, folder: Path, count: int) -> Sequence[NDArray[np.uint8] | bytes]:
    if name == DIGITS:
        files = sorted((folder / "held-out").glob("*/*.png"))
        # Spread over the digits, whose files follow each other.
        return [np.asarray(Image.open(files[place])) for place in np.linspace(0, len(files) - 1, count, dtype=int)]
    if CLASSIFIERS[name][1] == 32:
        return list(cifar()[0][:count])
    return [path.read_bytes() for path in sorted((FIXTURES / "imagenet_val").glob("*.JPEG"))[:count]]


def _jpeg(pixels: NDArray[np.uint8]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=_JPEG_QUALITY)
    return buffer.getvalue()
