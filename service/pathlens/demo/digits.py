"""A small convolutional classifier of handwritten digits, trained on the images that ship with scikit-learn."""

from pathlib import Path

import numpy as np
import safetensors.torch
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from rich.progress import track
from sklearn.datasets import load_digits
from torch import Tensor, nn

HELD_OUT = 360
"""Images that neither train the classifier nor fit the bundle; the demonstration sends some of them."""

EPOCHS = 20


class DigitsClassifier(nn.Module):
    """Three convolutions over 8 x 8 grey pixels in [0, 1]."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution1 = nn.Conv2d(1, 16, 3, padding=1)
        self.convolution2 = nn.Conv2d(16, 32, 3, padding=1)
        self.convolution3 = nn.Conv2d(32, 64, 3, padding=1)
        self.linear = nn.Linear(64, 10)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits [B, 10] for images [B, 1, 8, 8]."""
        features = F.relu(self.convolution1(images))
        features = F.max_pool2d(F.relu(self.convolution2(features)), 2)
        features = F.relu(self.convolution3(features))
        logits: Tensor = self.linear(features.mean((2, 3)))
        return logits


def train(folder: Path) -> float:
    """Train the classifier and write what a user of pathlens would bring.

    Writes `classifier.safetensors`, `images/DIGIT/*.png` to fit on, and `held-out/DIGIT/*.png` to explain.

    Returns:
        Accuracy on the held-out images, in [0, 1].
    """
    pixels, digits = _load()
    _write_images(folder / "images", pixels[HELD_OUT:], digits[HELD_OUT:])
    _write_images(folder / "held-out", pixels[:HELD_OUT], digits[:HELD_OUT])
    images, targets = torch.from_numpy(pixels).float().div(255)[:, None], torch.from_numpy(digits)
    torch.manual_seed(0)
    classifier = DigitsClassifier()
    optimizer = torch.optim.Adam(classifier.parameters(), lr=3e-3)
    for _ in track(range(EPOCHS), "Training the digits classifier"):
        for rows in (torch.randperm(len(images) - HELD_OUT) + HELD_OUT).split(64):  # type: ignore[no-untyped-call]
            optimizer.zero_grad()
            F.cross_entropy(classifier(images[rows]), targets[rows]).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    safetensors.torch.save_file(classifier.state_dict(), folder / "classifier.safetensors")
    with torch.no_grad():
        correct = classifier(images[:HELD_OUT]).argmax(1) == targets[:HELD_OUT]
    return float(correct.float().mean())


def _load() -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    data = load_digits()
    # Sixteen grey levels become the full range of a byte.
    pixels = (data.images * 255 / 16).round().astype(np.uint8)
    return pixels, data.target.astype(np.int64)


def _write_images(folder: Path, pixels: NDArray[np.uint8], digits: NDArray[np.int64]) -> None:
    for number, (image, digit) in enumerate(zip(pixels, digits, strict=True)):
        path = folder / str(digit) / f"{number:04d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
