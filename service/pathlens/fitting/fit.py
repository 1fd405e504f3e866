"""Fitting: instance pathways of many images become the class-pathway bank, and the bank is put to the test."""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pathlens.bundle.manifest import FitPart
from pathlens.bundle.store import Bundle
from pathlens.classifier.captured import CapturedClassifier
from pathlens.classifier.images import ImageSource
from pathlens.classifier.preprocessing import Preprocessing
from pathlens.description import ClassPathwayStatistics
from pathlens.errors import FitError
from pathlens.evaluation.transfer import HeldOut, measure_transfer
from pathlens.explanation import Granularity, PathwaySource
from pathlens.pathways.bank import ClassCounts, ClassPathwayBank, count_pathways
from pathlens.pathways.neuron_mct import contributions_of_trace
from pathlens.pathways.pathway import Pathway
from pathlens.pathways.random_control import random_pathway
from pathlens.version import __version__

Progress = Callable[[Iterable[int], str, int], Iterable[int]]
"""Wraps positions to show how far the work is: (positions, description, how many)."""


@dataclass(frozen=True)
class FitSettings:
    """How a bundle is fitted.

    Attributes:
        name: Name under which it will be served.
        granularity: What counts as one neuron.
        sparsity: Of the instance pathways, in [0, 1).
        threshold: τ, the share of a class's pathways that must keep a neuron, in (0, 1].
        minimum_images: A class with fewer images gets no pathway rather than a made-up one.
        held_out: Fraction of the images that build no pathway but test the bank, in (0, 0.5].
        largest_held_out: Most held-out images; they are kept in memory, and fewer are held out of many.
        others: Most held-out images of other classes that test one class.
        batch_size: Images in one pass.
        seed: Of the random control and of the choice among other classes' images.
    """

    name: str
    granularity: Granularity = Granularity.CHANNEL
    sparsity: float = 0.8
    threshold: float = 0.7
    minimum_images: int = 5
    held_out: float = 0.2
    largest_held_out: int = 512
    others: int = 64
    batch_size: int = 16
    seed: int = 0


def fit(
    classifier: CapturedClassifier,
    preprocessing: Preprocessing,
    labels: Sequence[str],
    images: ImageSource,
    settings: FitSettings,
    progress: Progress = lambda positions, _description, _total: positions,
) -> Bundle:
    """Build and test the class-pathway bank; labels of the images are not needed, the classifier's predictions are.

    Args:
        classifier: The captured classifier, on the device to compute on.
        preprocessing: From pixels to the classifier's input.
        labels: One per class.
        images: What to fit on.
        settings: How.
        progress: Shows how far the work is.

    Raises:
        FitError: If the labels do not fit, no class has enough images, or no held-out image can be read.
    """
    if len(labels) != classifier.classes:
        raise FitError(f"{len(labels)} labels were given for {classifier.classes} classes.")
    # Evenly spread, so that images sorted by class are sampled from every class.
    stride = max(2, round(1 / settings.held_out), math.ceil(len(images) / settings.largest_held_out))
    testing = list(range(0, len(images), stride))
    building = sorted(set(range(len(images))) - set(testing))
    work = _Work(classifier, preprocessing, images, settings, progress)
    totals = count_pathways(
        (batch.predicted, pathway) for batch, pathway in work.pathways(building, "Instance pathways")
    )
    enough = {label: total for label, total in totals.items() if total.images >= settings.minimum_images}
    if not enough:
        most = max((total.images for total in totals.values()), default=0)
        raise FitError(
            f"No class has {settings.minimum_images} images: of {len(images)} given, {len(testing)} are held out for "
            f"the test, {len(images.skipped)} could not be read, and at most {most} were predicted as one class. Give "
            "more images or lower --minimum-images."
        )
    bank = ClassPathwayBank(classifier.taps, settings.granularity, settings.threshold, enough).to(classifier.device)
    batches: list[HeldOut] = []
    overlaps: dict[int, list[float]] = defaultdict(list)
    for batch, pathway in work.pathways(testing, "Held-out images"):
        batches.append(batch)
        for row, label in enumerate(batch.predicted.tolist()):
            if label in bank:
                overlaps[label].append(float(pathway[[row]].iou(bank.transfer([label]))[0]))
    if not batches:
        raise FitError(f"None of the {len(testing)} held-out images could be read: {'; '.join(images.skipped[:3])}")
    held_out = HeldOut(
        torch.cat([batch.images for batch in batches]), torch.cat([batch.probabilities for batch in batches])
    )
    statistics = {
        label: work.test(bank, label, enough[label], held_out, overlaps[label])
        for label in progress(sorted(enough), "Testing class pathways", len(enough))
    }
    return Bundle(
        name=settings.name,
        classifier=classifier,
        preprocessing=preprocessing,
        labels=tuple(labels),
        bank=ClassPathwayBank(classifier.taps, settings.granularity, settings.threshold, enough, statistics),
        source=PathwaySource.NEURON_MCT,
        instance_sparsity=settings.sparsity,
        minimum_images=settings.minimum_images,
        fit=FitPart(
            images=sum(total.images for total in totals.values()),
            held_out_images=len(held_out.images),
            skipped_images=len(images.skipped),
            seed=settings.seed,
            pathlens_version=__version__,
            torch_version=torch.__version__,
        ),
    )


@dataclass(frozen=True)
class _Work:
    classifier: CapturedClassifier
    preprocessing: Preprocessing
    images: ImageSource
    settings: FitSettings
    progress: Progress

    def pathways(self, positions: list[int], description: str) -> Iterator[tuple[HeldOut, Pathway]]:
        """Predict images and find the pathway of each prediction, batch by batch."""
        for batch in self._batches(positions, description):
            trace = self.classifier.trace(batch)
            logits = trace.logits.detach()
            if not bool(logits.isfinite().all()):
                raise FitError(
                    "The classifier's output is not finite for an image; check its weights and --mean, --std."
                )
            predicted = HeldOut(batch, logits.softmax(1))
            granularity = self.settings.granularity
            contributions = contributions_of_trace(self.classifier, trace, predicted.predicted, granularity)
            yield predicted, contributions.select(self.settings.sparsity)

    def test(
        self, bank: ClassPathwayBank, label: int, counts: ClassCounts, held_out: HeldOut, overlaps: list[float]
    ) -> ClassPathwayStatistics:
        """Measure one class pathway, and a random one of the same size, on held-out images."""
        chosen = self._members_and_others(label, held_out)
        pathway = bank.transfer([label])
        control = random_pathway(pathway, self.settings.seed + label)
        return ClassPathwayStatistics(
            image_count=counts.images,
            threshold=bank.threshold,
            source=PathwaySource.NEURON_MCT,
            mean_instance_sparsity=counts.sparsity_sum / counts.images,
            mean_instance_iou=sum(overlaps) / len(overlaps) if overlaps else None,
            figures=measure_transfer(self.classifier, pathway, label, chosen),
            random_control=measure_transfer(self.classifier, control, label, chosen),
        )

    def _members_and_others(self, label: int, held_out: HeldOut) -> list[HeldOut]:
        member = held_out.predicted == label
        others = (~member).nonzero()[:, 0]
        generator = torch.Generator().manual_seed(self.settings.seed + label)
        order = torch.randperm(len(others), generator=generator)[: self.settings.others]
        rows = torch.cat([member.nonzero()[:, 0], others[order.to(others.device)]])
        parts = torch.split(rows, self.settings.batch_size)
        return [HeldOut(held_out.images[part], held_out.probabilities[part]) for part in parts]

    def _batches(self, positions: list[int], description: str) -> Iterator[Tensor]:
        batch: list[Tensor] = []
        for position in self.progress(positions, description, len(positions)):
            for _, pixels in self.images.select([position]):
                batch.append(torch.from_numpy(self.preprocessing.apply(pixels)))
            if len(batch) == self.settings.batch_size:
                yield torch.stack(batch).to(self.classifier.device)
                batch = []
        if batch:
            yield torch.stack(batch).to(self.classifier.device)
