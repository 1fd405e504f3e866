"""A tiny convolutional classifier with a bank of class pathways and a generator, and pictures to send to it."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from io import BytesIO

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from pathlens.bundle.manifest import FitPart
from pathlens.bundle.store import Bundle
from pathlens.classifier.capture import capture
from pathlens.classifier.captured import CapturedClassifier
from pathlens.classifier.preprocessing import Preprocessing
from pathlens.description import ClassPathwaySelection, ClassPathwayStatistics, MaskFigures, TransferFigures
from pathlens.explainer import Explainer
from pathlens.explainer.backend import Backend
from pathlens.explanation import Ablation, Granularity, PathwaySource, ServedModel
from pathlens.generator.generator import PathwayGenerator
from pathlens.pathways.bank import ClassPathwayBank, count_pathways
from pathlens.pathways.neuron_mct import neuron_mct
from pathlens.pathways.pathway import ZERO
from pathlens.pathways.reference import TRACKED, ReferenceDistribution
from pathlens.pathways.replacement import Replacement
from pathlens.slicing.cache import DEFAULT_BYTES

LABELS = ("ant", "bee", "cow", "cow", "eel")
"""Two classes share a label, as ImageNet's cranes do."""
WITHOUT_PATHWAY = 4
"""The class that the bank lacks."""
TWO_SIDED = 2
"""The class whose stored mask is not the one by frequency."""
INPUT_SHAPE = (3, 8, 8)
PREPROCESSING = Preprocessing(8, 8, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.25), resize_shorter_side=9)
INSTANCE_SPARSITY = 0.5
SERVED = ServedModel("tiny", "1.0", "0" * 64)

BackendOf = Callable[[Granularity, Ablation], Backend | None]
"""Makes what computes for the tiny bundle of a granularity and an ablation; None is PyTorch."""
_backends: list[BackendOf] = [lambda *_: None]


class TinyNetwork(nn.Module):
    """Two convolutions and a linear layer, each with an activation function; logits for five classes."""

    def __init__(self, seed: int = 0, classes: int = len(LABELS)) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.first = nn.Conv2d(3, 4, 3, padding=1)
        self.second = nn.Conv2d(4, 6, 3, stride=2)
        self.hidden = nn.Linear(6 * 9, 8)
        self.last = nn.Linear(8, classes)
        with torch.no_grad():
            # Large enough that different images are seen as different classes.
            for layer in (self.first, self.second, self.hidden, self.last):
                layer.weight.mul_(3)
            # The class without a pathway is rarely the predicted one, which is the default target.
            self.last.bias[WITHOUT_PATHWAY:] -= 5

    def forward(self, images: Tensor) -> Tensor:
        features = F.relu(self.second(F.relu(self.first(images))))
        logits: Tensor = self.last(F.relu(self.hidden(features.flatten(1))))
        return logits


def tiny_classifier(seed: int = 0) -> CapturedClassifier:
    """Capture a tiny network; equal seeds give equal classifiers."""
    return capture(TinyNetwork(seed), torch.rand(2, *INPUT_SHAPE, generator=torch.Generator().manual_seed(1)))


@cache
def tiny_bundle(
    granularity: Granularity = Granularity.CHANNEL, seed: int = 0, ablation: Ablation = Ablation.ZERO
) -> Bundle:
    """Make a bundle whose bank holds pathways of every class but `WITHOUT_PATHWAY`; made once, not to be changed."""
    classifier = tiny_classifier(seed)
    images = torch.randn(24, *INPUT_SHAPE, generator=torch.Generator().manual_seed(2))
    classes = torch.arange(24) % WITHOUT_PATHWAY
    pathways = neuron_mct(classifier, images, classes, granularity).select(INSTANCE_SPARSITY)
    counts = count_pathways([(classes, pathways)])
    masks = {TWO_SIDED: ~pathways.flat()[TWO_SIDED]}
    bank = ClassPathwayBank(
        classifier.taps, granularity, 0.5, counts, None, masks, _replacement(classifier, ablation), {WITHOUT_PATHWAY: 3}
    )
    bank.statistics = {
        label: ClassPathwayStatistics(
            image_count=total.images,
            threshold=0.5,
            source=PathwaySource.NEURON_MCT,
            selection=ClassPathwaySelection.TWO_SIDED if label == TWO_SIDED else ClassPathwaySelection.FREQUENCY,
            mean_instance_sparsity=total.sparsity_sum / total.images,
            mean_instance_iou=None if label == 1 else 0.25 + label / 8,
            within_class_iou=None if label == 1 else 0.5,
            cross_class_iou=None if label == 1 else label / 8,
            stored=MaskFigures(
                float(bank.transfer([label]).sparsity[0]),
                TransferFigures(2, 3, 0.5, 0.25, 0.125, 0.75, 0.5, 0.25),
                TransferFigures(0, label),
            ),
            by_frequency=MaskFigures(
                float(bank.by_frequency(label).sparsity[0]),
                TransferFigures(2, 3, 0.75),
                TransferFigures(2, 3, leak=0.5),
            ),
        )
        for label, total in counts.items()
    }
    return Bundle(
        name="tiny",
        classifier=classifier,
        preprocessing=PREPROCESSING,
        labels=LABELS,
        bank=bank,
        source=PathwaySource.NEURON_MCT,
        instance_sparsity=INSTANCE_SPARSITY,
        minimum_images=5,
        fit=FitPart(
            images=24,
            held_out_images=5,
            skipped_images=0,
            seed=2,
            pathlens_version="0.0.0",
            torch_version="2.13.0",
            settings={"threshold": 0.5, "source": "neuron_mct", "epochs": None, "layers": [1, 2]},
        ),
        generator=_generator(classifier, granularity),
        reference={source: tiny_reference(source) for source in TRACKED},
    )


def tiny_explainer(
    granularity: Granularity = Granularity.CHANNEL, ablation: Ablation = Ablation.ZERO, slice_bytes: int = DEFAULT_BYTES
) -> Explainer:
    """Make a new explainer of the tiny bundle."""
    bundle = tiny_bundle(granularity, ablation=ablation)
    return Explainer(
        bundle.classifier,
        bundle.preprocessing,
        bundle.labels,
        bundle.bank,
        bundle.instance_sparsity,
        SERVED,
        generator=bundle.generator,
        reference=bundle.reference,
        backend=_backends[-1](granularity, ablation),
        slice_bytes=slice_bytes,
    )


@contextmanager
def computing_with(backend_of: BackendOf) -> Iterator[None]:
    """Let explainers that are made inside compute with something else."""
    _backends.append(backend_of)
    yield
    _backends.pop()


def tiny_reference(source: PathwaySource) -> ReferenceDistribution:
    """Make up what a fit saw of a source: 40 images of each class, but of class 3 ten."""
    draw = np.random.default_rng(5)
    classes = np.repeat(np.arange(WITHOUT_PATHWAY, dtype=np.int32), (40, 40, 40, 10))
    return ReferenceDistribution(
        source, classes, {statistic: draw.random(len(classes), dtype=np.float32) for statistic in TRACKED[source]}
    )


def _replacement(classifier: CapturedClassifier, ablation: Ablation) -> Replacement:
    """Make values of every tap's channels: none, the same for all classes, or some for each class."""
    if ablation is Ablation.ZERO:
        return ZERO
    draw = torch.Generator().manual_seed(3)
    rows = classifier.classes if ablation is Ablation.OPTIMAL else 1
    return Replacement(
        ablation, tuple(tap.spread(torch.rand(rows, tap.channels, generator=draw)) for tap in classifier.taps)
    )


def _generator(classifier: CapturedClassifier, granularity: Granularity) -> PathwayGenerator:
    """Make a generator that was never trained, but whose pathways differ from image to image."""
    scales = [torch.ones(tap.channels) for tap in classifier.taps]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(4)
        generator = PathwayGenerator(classifier.taps, scales, classifier.classes, granularity, width=8)
        with torch.no_grad():
            for parameter in generator.parameters():
                parameter.add_(torch.randn_like(parameter))
    return generator.frozen()


def pixels(seed: int = 0, height: int = 12, width: int = 10) -> NDArray[np.uint8]:
    """Draw a picture at random: uint8 [height, width, 3]."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def png(picture: NDArray[np.uint8]) -> bytes:
    """Encode a picture as a PNG."""
    buffer = BytesIO()
    Image.fromarray(picture).save(buffer, "PNG")
    return buffer.getvalue()


def tensor(seed: int = 0) -> NDArray[np.float32]:
    """Draw an input of the classifier at random: float32 [3, 8, 8]."""
    return np.random.default_rng(seed).standard_normal(INPUT_SHAPE, dtype=np.float32)
