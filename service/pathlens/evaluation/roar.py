"""ROAR, remove and retrain: how well a new classifier learns without the pixels that a map calls important.

Hooker et al., NeurIPS 2019, arXiv 1806.10758, section 3; used by arXiv 2103.16886, section 4. Without its pixels an
image is of a kind that the classifier never saw, and its accuracy may drop for that reason alone. ROAR removes the
pixels from the training images as well and trains anew: what is lost then was in the removed pixels and nowhere else.

What is not lost may be in the gap itself: a map is drawn for the predicted class, so the shape of what it removes can
tell a new classifier that class (Rong et al., ICML 2022, arXiv 2202.00449), while that of a random map cannot. Where
much is removed, a map may therefore keep more accuracy than the random one.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pathlens.classifier.captured import CapturedClassifier
from pathlens.errors import EvaluationError
from pathlens.evaluation.degradation import pixel_relevance
from pathlens.evaluation.journal import Task
from pathlens.evaluation.map_methods import MapMethod
from pathlens.evaluation.observation import Observation

MEASURE = "accuracy after retraining"


@dataclass(frozen=True)
class RoarSettings:
    """How much is removed, and how the classifiers are trained.

    Attributes:
        fractions: Shares of the pixels that are removed, each in (0, 1); with nothing removed is always measured too.
        seeds: Retrainings under the same conditions, at least 1.
        epochs: Passes over the training images, at least 1.
        batch_size: Images in one step of the training and in one batch of maps, at least 1.
        learning_rate: Of Adam, above 0.
        held_out: Share of the images that measure the accuracy, in (0, 1).
        seed: Of the split, of the pixels that go first among equally relevant ones, and of the first retraining; each
            further retraining has the next.

    Raises:
        ValueError: If a value is out of range.
    """

    fractions: tuple[float, ...] = (0.1, 0.3, 0.5, 0.7, 0.9)
    seeds: int = 3
    epochs: int = 20
    batch_size: int = 64
    learning_rate: float = 3e-3
    held_out: float = 0.2
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.fractions or not all(0 < fraction < 1 for fraction in self.fractions):
            raise ValueError(f"fractions are {list(self.fractions)}; expected numbers between 0 and 1, both excluded")
        if len(set(self.fractions)) < len(self.fractions):
            raise ValueError(f"fractions are {list(self.fractions)}; expected each of them once")
        for name in ("seeds", "epochs", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; expected at least 1")
        if not self.learning_rate > 0:
            raise ValueError(f"learning_rate is {self.learning_rate}; expected a number above 0")
        if not 0 < self.held_out < 1:
            raise ValueError(f"held_out is {self.held_out}; expected a number between 0 and 1, both excluded")


@dataclass(frozen=True, eq=False)
class Roar:
    """The retrainings that compare maps on one set of images.

    Attributes:
        classifier: What the maps explain, for the class that it predicts in each image.
        make: Makes a fresh, untrained network [B, C, H, W] to logits [B, K]. It is called with torch's own random
            generator seeded.
        images: Preprocessed, float32 [N, C, H, W].
        labels: True classes, int64 [N] in [0, K).
        methods: The maps by name.
        settings: How.

    Raises:
        EvaluationError: If the images are of one class, too few to be split, or what `make` makes does not take them or
            has another number of classes than the classifier.
        ValueError: If the shapes or classes of images and labels do not fit.
    """

    classifier: CapturedClassifier
    make: Callable[[], nn.Module]
    images: Tensor
    labels: Tensor
    methods: Mapping[str, MapMethod]
    settings: RoarSettings

    def __post_init__(self) -> None:
        if self.images.shape[1:] != self.classifier.input_shape or self.labels.shape != self.images.shape[:1]:
            raise ValueError(
                f"images have shape {list(self.images.shape)} and labels {list(self.labels.shape)}; expected "
                f"[N, {', '.join(map(str, self.classifier.input_shape))}] and [N]"
            )
        classes = sorted(set(self.labels.tolist()))
        if classes and not 0 <= classes[0] <= classes[-1] < self.classifier.classes:
            raise ValueError(f"labels are {classes}; expected classes from 0 to {self.classifier.classes - 1}")
        if len(classes) < 2:
            raise EvaluationError(f"All {len(self.images)} images are of one class; give images of at least two.")
        training, held_out = self.split()
        learnt = len(set(self.labels[training].tolist()))
        if len(held_out) == 0 or learnt < 2:
            raise EvaluationError(
                f"{len(self.images)} images are too few: {len(held_out)} are held out, and of the {len(training)} to "
                f"train on, the number of classes is {learnt}. Give more images."
            )
        self._check_network()

    def split(self) -> tuple[Tensor, Tensor]:
        """Return which images train and which are held out, the same in every retraining: int64 each."""
        order = torch.randperm(len(self.images), generator=torch.Generator().manual_seed(self.settings.seed))
        held_out = round(self.settings.held_out * len(order))
        return order[held_out:], order[:held_out]

    def tasks(self) -> list[Task]:
        """Return the retrainings, each a task that makes one observation of the measure `MEASURE`, in [0, 1].

        Of the observation, `method` is the name of the map and `detail` the fraction removed, such as "0.3"; where
        nothing is removed they are "" and "0". `subject` is the number of the retraining, from 0. The tasks of a method
        follow each other, as only the maps of one method are kept in memory.
        """
        relevance = lru_cache(maxsize=1)(self._relevance)
        training, _ = self.split()
        pixel = self.images.mean((2, 3))[training].mean(0)

        def task(method: str, fraction: float, number: int) -> Task:
            def run() -> list[Observation]:
                images = self.images
                if method:
                    images = remove_pixels(images, relevance(method), fraction, pixel, self.settings.seed)
                accuracy = self._retrain(images, self.settings.seed + number)
                return [Observation(MEASURE, accuracy, method, detail=f"{fraction:g}", subject=number)]

            stage = f"{method}, {100 * fraction:g} % removed" if method else "nothing removed"
            return Task(f"{method or 'nothing'}/{fraction:g}/{number}", stage, run)

        conditions = [("", 0.0)] + [(method, part) for method in self.methods for part in self.settings.fractions]
        return [task(method, part, number) for method, part in conditions for number in range(self.settings.seeds)]

    def _relevance(self, method: str) -> Tensor:
        parts = []
        for images in torch.split(self.images, self.settings.batch_size):
            batch = images.to(self.classifier.device)
            with torch.no_grad():
                target = self.classifier(batch).argmax(1)
            parts.append(pixel_relevance(self.methods[method](self.classifier, batch, target)).cpu())
        relevance = torch.cat(parts)
        if not bool(relevance.isfinite().all()):
            raise EvaluationError(f"The map {method} is not finite for an image, so its pixels have no order.")
        return relevance

    def _retrain(self, images: Tensor, seed: int) -> float:
        """Train a network and return its accuracy on the held-out images."""
        training, held_out = self.split()
        device = self.classifier.device
        # What the network draws itself, its weights and its dropout, comes from torch's own generator.
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(seed)
            network = self.make().to(device).train()
            optimizer = torch.optim.Adam(network.parameters(), lr=self.settings.learning_rate)
            generator = torch.Generator().manual_seed(seed)
            for _ in range(self.settings.epochs):
                for rows in self._batches(training[torch.randperm(len(training), generator=generator)]):
                    optimizer.zero_grad()
                    logits = network(images[rows].to(device))
                    F.cross_entropy(logits, self.labels[rows].to(device)).backward()  # type: ignore[no-untyped-call]
                    optimizer.step()
            network.eval()
            with torch.no_grad():
                logits = torch.cat([network(images[rows].to(device)).cpu() for rows in self._batches(held_out)])
        if not bool(logits.isfinite().all()):
            raise EvaluationError(
                "The retrained classifier's output is not finite; lower the learning rate, which is "
                f"{self.settings.learning_rate:g}."
            )
        return float((logits.argmax(1) == self.labels[held_out]).double().mean())

    def _batches(self, rows: Tensor) -> tuple[Tensor, ...]:
        # Of nearly equal size: batch norm cannot be trained on a single left-over image.
        return rows.tensor_split(-(-len(rows) // self.settings.batch_size))

    def _check_network(self) -> None:
        with torch.random.fork_rng(devices=[]):
            network = self.make().eval()
        if not any(parameter.requires_grad for parameter in network.parameters()):
            raise EvaluationError(f"The {type(network).__name__} to retrain has no weights that can be trained.")
        images = self.images[:2]
        try:
            with torch.no_grad():
                logits = network(images)
        except Exception as error:  # A network may fail in any way.
            reason = str(error).partition("\n")[0]
            raise EvaluationError(
                f"The {type(network).__name__} to retrain does not take images {list(images.shape)} as the bundle's "
                f"classifier does: {reason}"
            ) from error
        expected = (len(images), self.classifier.classes)
        if not isinstance(logits, Tensor) or logits.shape != expected:
            found = list(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
            raise EvaluationError(
                f"The {type(network).__name__} to retrain returns {found} for {len(images)} images; expected "
                f"{list(expected)}, as the bundle's classifier has {self.classifier.classes} classes."
            )


def remove_pixels(images: Tensor, relevance: Tensor, fraction: float, pixel: Tensor, seed: int = 0) -> Tensor:
    """Replace the most relevant pixels of each image, in all colour channels at once.

    Exactly round(fraction · H · W) pixels of each image are replaced. Equally relevant ones go in a random sequence,
    the same for every image: by position, the pixels that a map leaves at zero would go from the top down.

    Args:
        images: float32 [N, C, H, W]; they stay as they are.
        relevance: Of every pixel, [N, H, W], finite.
        fraction: Share of the pixels, in [0, 1].
        pixel: What replaces them, [C].
        seed: Of the choice among equally relevant pixels.

    Returns:
        The shape of `images`.

    Raises:
        ValueError: If the fraction is out of range, or relevance or pixel do not have the size of the images.
    """
    if not 0 <= fraction <= 1:
        raise ValueError(f"fraction is {fraction}; expected a number in [0, 1]")
    count, channels, height, width = images.shape
    if relevance.shape != (count, height, width) or pixel.shape != (channels,):
        raise ValueError(
            f"relevance has shape {list(relevance.shape)} and pixel {list(pixel.shape)}; expected "
            f"{[count, height, width]} and {[channels]}"
        )
    shuffle = torch.randperm(height * width, generator=torch.Generator().manual_seed(seed))
    changed = images.flatten(2).clone()
    # Image by image, as the sequences of all together would need more memory than the images.
    for image, scores in zip(changed, relevance.flatten(1), strict=True):
        sequence = shuffle[scores[shuffle].argsort(descending=True, stable=True)]
        image[:, sequence[: round(fraction * len(sequence))]] = pixel[:, None]
    return changed.view_as(images)
