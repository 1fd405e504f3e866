"""The test of a bank: class masks on images that built neither them nor the generator."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from pathlens.classifier.captured import CapturedClassifier
from pathlens.description import ClassPathwaySelection, ClassPathwayStatistics, MaskFigures
from pathlens.evaluation.transfer import HeldOut, measure_transfer
from pathlens.explanation import PathwaySource
from pathlens.pathways.bank import ClassPathwayBank
from pathlens.pathways.overlap import ClassOverlap, measure_overlap
from pathlens.pathways.pathway import Pathway
from pathlens.pathways.random_control import random_pathway

LARGEST_COMPARED = 1 << 30
"""Most mask bits that are compared pair by pair; of more, images evenly spread over all are compared."""


@dataclass(frozen=True, eq=False)
class HeldOutTest:
    """Held-out images with their instance pathways.

    Attributes:
        classifier: The captured classifier.
        held_out: The images.
        pathway: Their instance pathways.
        others: Most images of other classes that test one class.
        batch_size: Images in one pass.
        seed: Of the random control and of the choice among other classes' images.
    """

    classifier: CapturedClassifier
    held_out: HeldOut
    pathway: Pathway
    others: int
    batch_size: int
    seed: int

    def overlaps(self) -> Mapping[int, ClassOverlap]:
        """Measure how much the instance pathways of each class have in common."""
        count = len(self.pathway)
        stride = max(1, -(-count * self.pathway.neurons // LARGEST_COMPARED))
        rows = torch.arange(0, count, stride, device=self.held_out.images.device)
        return measure_overlap(self.held_out.predicted[rows], self.pathway[rows])

    def statistics(
        self, bank: ClassPathwayBank, label: int, overlap: ClassOverlap | None, source: PathwaySource
    ) -> ClassPathwayStatistics:
        """Measure one class pathway, the mask by frequency beside it, and a random control of each.

        Args:
            bank: With the class.
            label: The class.
            overlap: Of its instance pathways; None without held-out images of the class.
            source: Where instance pathways come from.
        """
        chosen = self._members_and_others(label)
        stored, by_frequency = bank.transfer([label]), bank.by_frequency(label)
        learned = label in bank.masks
        measured = self._measure(stored, label, chosen)
        members = (self.held_out.predicted == label).nonzero()[:, 0]
        counts = bank.counts[label]
        return ClassPathwayStatistics(
            image_count=counts.images,
            threshold=bank.threshold,
            source=source,
            selection=ClassPathwaySelection.TWO_SIDED if learned else ClassPathwaySelection.FREQUENCY,
            mean_instance_sparsity=counts.sparsity_sum / counts.images,
            mean_instance_iou=float(self.pathway[members].iou(stored).mean()) if len(members) else None,
            within_class_iou=overlap.within if overlap else None,
            cross_class_iou=overlap.cross if overlap else None,
            stored=measured,
            by_frequency=self._measure(by_frequency, label, chosen) if learned else measured,
        )

    def _measure(self, mask: Pathway, label: int, chosen: Sequence[HeldOut]) -> MaskFigures:
        control = random_pathway(mask, self.seed + label)
        return MaskFigures(
            float(mask.sparsity[0]),
            measure_transfer(self.classifier, mask, label, chosen),
            measure_transfer(self.classifier, control, label, chosen),
        )

    def _members_and_others(self, label: int) -> list[HeldOut]:
        held_out = self.held_out
        member = held_out.predicted == label
        others = (~member).nonzero()[:, 0]
        generator = torch.Generator().manual_seed(self.seed + label)
        order = torch.randperm(len(others), generator=generator)[: self.others]
        rows = torch.cat([member.nonzero()[:, 0], others[order.to(others.device)]])
        parts = torch.split(rows, self.batch_size)
        return [HeldOut(held_out.images[part], held_out.probabilities[part]) for part in parts]
