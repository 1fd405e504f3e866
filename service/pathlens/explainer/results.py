"""From tensors to results: probabilities, masks, maps and pictures."""

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache

import numpy as np
import torch
from torch import Tensor

from pathlens.attribution.picture import draw_heatmap, draw_overlay
from pathlens.attribution.reduction import reduce_channels
from pathlens.classifier.preprocessing import Preprocessing
from pathlens.description import TapFrequency
from pathlens.explainer.backend import chunks
from pathlens.explainer.fit_comparison import FitComparison
from pathlens.explainer.item import DRAWN_FROM_GRADIENT, Item, Row
from pathlens.explanation import (
    Explanation,
    Faithfulness,
    NeuronContribution,
    Output,
    PathwaySource,
    Prediction,
    Reduction,
    TapMask,
)
from pathlens.pathways.bank import ClassPathwayBank
from pathlens.pathways.contributions import Contributions
from pathlens.pathways.pathway import Pathway, mask_shape, overlap

_STORED_CLASSES = 1024
_STORED_NEURONS = 1 << 26
"""Of stored pathways, how many are kept ready for answers at most, and how many neurons of theirs."""


@dataclass(frozen=True, eq=False)
class StoredPathway:
    """A stored pathway with what is told of it, which is found out once.

    Attributes:
        pathway: Of one class.
    """

    pathway: Pathway

    @cached_property
    def sparsity(self) -> float:
        """Fraction of neurons removed."""
        return float(self.pathway.sparsity[0])

    @cached_property
    def masks(self) -> tuple[TapMask, ...]:
        """The masks of its taps, read-only, because all answers share them."""
        masks = self.pathway.tap_masks()
        for part in masks:
            part.mask.setflags(write=False)
        return masks


class ResultBuilder:
    """Builds the parts of a result.

    Args:
        labels: One per class.
        preprocessing: Places maps on the image that was sent.
        bank: The stored class pathways, to compare with.
        comparison: With what the fit saw.
    """

    def __init__(
        self, labels: Sequence[str], preprocessing: Preprocessing, bank: ClassPathwayBank, comparison: FitComparison
    ) -> None:
        self._labels = labels
        self._preprocessing = preprocessing
        self._bank = bank
        self._comparison = comparison
        neurons = sum(math.prod(mask_shape(tap, bank.granularity)) for tap in bank.taps)
        kept_ready = max(1, min(_STORED_CLASSES, _STORED_NEURONS // neurons))
        self._stored = lru_cache(kept_ready)(lambda label: StoredPathway(bank.transfer([label])))

    def stored(self, label: int) -> StoredPathway:
        """Return the stored pathway of a class.

        Raises:
            FailedPreconditionError: If it has none.
        """
        return self._stored(label)

    def predictions(self, item: Item) -> tuple[Prediction, ...]:
        """Return the most probable classes, most probable first."""
        count = min(item.request.prediction_count, len(self._labels))
        return tuple(self._prediction(item, index) for index in item.decision.ranking[:count])

    def measure(self, rows: Sequence[Row]) -> None:
        """Fill in what the explanations say of pathways and networks, for all rows at once."""
        groups: dict[int, list[Row]] = defaultdict(list)
        for row in rows:
            if row.item.options.source is PathwaySource.TRANSFERRED:
                stored = self.stored(row.target)
                row.sparsity, row.class_pathway_iou = stored.sparsity, 1.0
                row.masks = stored.masks if Output.PATHWAY in row.item.options.outputs else ()
            else:
                groups[id(row.pathways)].append(row)
        for group in groups.values():
            self._measure_pathways(group)
        _check_faithfulness([row for row in rows if Output.FAITHFULNESS in row.item.options.outputs])
        _reduce_maps([row for row in rows if row.item.options.outputs & DRAWN_FROM_GRADIENT])

    def explanation(self, row: Row) -> Explanation:
        """Return the explanation of one target, which has been measured."""
        options = row.item.options
        outputs = options.outputs
        heatmap, overlay = b"", b""
        if row.map is not None:
            if Output.HEATMAP in outputs:
                heatmap = draw_heatmap(row.map, options.reduction, self._preprocessing, row.item.pixels)
            if Output.OVERLAY in outputs and row.item.pixels is not None:
                overlay = draw_overlay(row.map, options.reduction, self._preprocessing, row.item.pixels)
        explanation = Explanation(
            target=self._prediction(row.item, row.target),
            source=options.source,
            granularity=row.pathways.granularity,
            ablation=row.pathways.ablation,
            sparsity=row.sparsity,
            class_pathway_iou=row.class_pathway_iou,
            pathway=row.masks,
            faithfulness=row.faithfulness,
            map=row.map if Output.MAP in outputs else None,
            heatmap_png=heatmap,
            overlay_png=overlay,
            top_neurons=row.top_neurons,
            linearity=row.linearity,
        )
        typicality = self._comparison.typicality(row.item, explanation)
        return explanation if typicality is None else replace(explanation, typicality=typicality)

    def _prediction(self, item: Item, index: int) -> Prediction:
        decision = item.decision
        return Prediction(
            index, self._labels[index], float(decision.probabilities[index]), float(decision.logits[index])
        )

    def _measure_pathways(self, rows: Sequence[Row]) -> None:
        """Measure pathways that were made together."""
        pathways = rows[0].pathways
        flat = pathways.flat()
        sparsity = pathways.sparsity.tolist()
        masks = pathways.all_tap_masks() if any(Output.PATHWAY in row.item.options.outputs for row in rows) else []
        for row in rows:
            row.sparsity = sparsity[row.position]
            row.masks = masks[row.position] if Output.PATHWAY in row.item.options.outputs else ()
        known = [row for row in rows if row.target in self._bank and pathways.granularity is self._bank.granularity]
        if known:
            stored = self._bank.flat([row.target for row in known])
            shares = overlap(flat[[row.position for row in known]], stored).tolist()
            for row, share in zip(known, shares, strict=True):
                row.class_pathway_iou = share


def _check_faithfulness(rows: Sequence[Row]) -> None:
    checked = [(row, row.logits) for row in rows if row.logits is not None]
    if not checked:
        return
    alone = torch.stack([logits for _, logits in checked]).softmax(1).cpu().numpy()
    for (row, _), probabilities in zip(checked, alone, strict=True):
        whole = row.item.decision.probabilities
        p, q = float(whole[row.target]), float(probabilities[row.target])
        drop = max(0.0, p - q) / p if p > 0 else 0.0
        row.faithfulness = Faithfulness(p, q, drop, bool(probabilities.argmax() == whole.argmax()))


def _reduce_maps(rows: Sequence[Row]) -> None:
    groups: dict[Reduction, list[tuple[Row, Tensor]]] = defaultdict(list)
    for row in rows:
        if row.gradient is not None:
            groups[row.item.options.reduction].append((row, row.gradient))
    for reduction, group in groups.items():
        for chunk in chunks(group):
            reduced = reduce_channels(torch.stack([gradient for _, gradient in chunk]), reduction).cpu().numpy()
            for (row, _), values in zip(chunk, reduced, strict=True):
                row.map = values


def tap_frequencies(bank: ClassPathwayBank, label: int) -> tuple[TapFrequency, ...]:
    """Return how often the instance pathways of a class with a stored pathway keep each neuron, tap after tap."""
    shapes = [mask_shape(tap, bank.granularity) for tap in bank.taps]
    parts = torch.split(bank.counts[label].frequency.float(), [math.prod(shape) for shape in shapes])
    return tuple(
        TapFrequency(tap.name, part.reshape(shape).cpu().numpy())
        for tap, part, shape in zip(bank.taps, parts, shapes, strict=True)
    )


def find_top_neurons(pathway: Pathway, contributions: Contributions, count: int) -> tuple[NeuronContribution, ...]:
    """Return the neurons of a pathway that contribute most, greatest magnitude first.

    Args:
        pathway: Of one image.
        contributions: Of the same image and granularity.
        count: How many at most.
    """
    flat = torch.cat([signed.flatten() for signed in contributions.signed])
    inside = torch.where(pathway.flat()[0], flat.abs(), -1.0)
    positions = inside.topk(min(count, int(pathway.kept[0]))).indices
    return tuple(
        NeuronContribution(*_locate(position, pathway), contribution)
        for position, contribution in zip(positions.tolist(), flat[positions].tolist(), strict=True)
    )


def _locate(position: int, pathway: Pathway) -> tuple[str, tuple[int, ...]]:
    for tap, mask in zip(pathway.taps, pathway.masks, strict=True):
        size = mask[0].numel()
        if position < size:
            return tap.name, tuple(int(index) for index in np.unravel_index(position, mask.shape[1:]))
        position -= size
    raise IndexError(f"neuron {position} is beyond the last tap")
