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

PARTS = 5
"""Of five images of each digit, one is to explain, one is to validate, and three train."""

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

    Writes `classifier.safetensors`; `images/DIGIT/*.png`, which trained it; `validation/DIGIT/*.png`, which a fit holds
    out; and `held-out/DIGIT/*.png`, which neither sees, to explain.

    Returns:
        Accuracy on the images to explain, in [0, 1].
    """
    pixels, digits = _load()
    held_out, validation, training = _divide(digits)
    for name, rows in (("images", training), ("validation", validation), ("held-out", held_out)):
        _write_images(folder / name, rows, pixels, digits)
    images, targets = torch.from_numpy(pixels).float().div(255)[:, None], torch.from_numpy(digits)
    shown = torch.from_numpy(training)
    torch.manual_seed(0)
    classifier = DigitsClassifier()
    optimizer = torch.optim.Adam(classifier.parameters(), lr=3e-3)
    for _ in track(range(EPOCHS), "Training the digits classifier"):
        for rows in shown[torch.randperm(len(shown))].split(64):  # type: ignore[no-untyped-call]
            optimizer.zero_grad()
            F.cross_entropy(classifier(images[rows]), targets[rows]).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    safetensors.torch.save_file(classifier.state_dict(), folder / "classifier.safetensors")
    with torch.no_grad():
        correct = classifier(images[held_out]).argmax(1) == targets[held_out]
    return float(correct.float().mean())


def _load() -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    data = load_digits()
    # Sixteen grey levels become the full range of a byte.
    pixels = (data.images * 255 / 16).round().astype(np.uint8)
    return pixels, data.target.astype(np.int64)


def _divide(digits: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Return which images are to explain, to validate and to train.

    They are taken in turn, because the data set changes along its way: one block of it is drift to another.
    """
    turn = np.empty_like(digits)
    for digit in np.unique(digits):
        turn[digits == digit] = np.arange((digits == digit).sum()) % PARTS
    return (turn == 0).nonzero()[0], (turn == 1).nonzero()[0], (turn > 1).nonzero()[0]


def _write_images(folder: Path, rows: NDArray[np.int64], pixels: NDArray[np.uint8], digits: NDArray[np.int64]) -> None:
    for row in rows:
        path = folder / str(digits[row]) / f"{row:04d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels[row]).save(path)
