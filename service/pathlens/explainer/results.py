"""From tensors to results: probabilities, masks, maps and pictures."""

import math
from collections.abc import Sequence

import numpy as np
import torch

from pathlens.attribution.picture import draw_heatmap, draw_overlay
from pathlens.attribution.reduction import reduce_channels
from pathlens.classifier.preprocessing import Preprocessing
from pathlens.description import TapFrequency
from pathlens.explainer.item import Item, Row
from pathlens.explanation import Explanation, Faithfulness, NeuronContribution, Output, Prediction
from pathlens.pathways.bank import ClassPathwayBank
from pathlens.pathways.contributions import Contributions
from pathlens.pathways.pathway import Pathway, mask_shape


class ResultBuilder:
    """Builds the parts of a result.

    Args:
        labels: One per class.
        preprocessing: Places maps on the image that was sent.
        bank: The stored class pathways, to compare with.
    """

    def __init__(self, labels: Sequence[str], preprocessing: Preprocessing, bank: ClassPathwayBank) -> None:
        self._labels = labels
        self._preprocessing = preprocessing
        self._bank = bank

    def predictions(self, item: Item) -> tuple[Prediction, ...]:
        """Return the most probable classes, most probable first."""
        count = min(item.request.prediction_count, len(self._labels))
        return tuple(self._prediction(item, index) for index in item.ranking[:count])

    def explanation(self, row: Row) -> Explanation:
        """Return the explanation of one target."""
        options = row.item.options
        outputs = options.outputs
        pathway = row.pathway
        values, heatmap, overlay = None, b"", b""
        if row.gradient is not None:
            values = reduce_channels(row.gradient, options.reduction).cpu().numpy()
            if Output.HEATMAP in outputs:
                heatmap = draw_heatmap(values, options.reduction, self._preprocessing, row.item.pixels)
            if Output.OVERLAY in outputs and row.item.pixels is not None:
                overlay = draw_overlay(values, options.reduction, self._preprocessing, row.item.pixels)
        return Explanation(
            target=self._prediction(row.item, row.target),
            source=options.source,
            granularity=pathway.granularity,
            ablation=pathway.ablation,
            sparsity=float(pathway.sparsity[0]),
            class_pathway_iou=self._class_pathway_iou(row),
            pathway=pathway.tap_masks() if Output.PATHWAY in outputs else (),
            faithfulness=_faithfulness(row) if Output.FAITHFULNESS in outputs else None,
            map=values if Output.MAP in outputs else None,
            heatmap_png=heatmap,
            overlay_png=overlay,
            top_neurons=row.top_neurons,
            linearity=row.linearity,
        )

    def _prediction(self, item: Item, index: int) -> Prediction:
        return Prediction(index, self._labels[index], float(item.probabilities[index]), float(item.logits[index]))

    def _class_pathway_iou(self, row: Row) -> float | None:
        if row.target not in self._bank or row.pathway.granularity is not self._bank.granularity:
            return None
        return float(row.pathway.iou(self._bank.transfer([row.target]))[0])


def _faithfulness(row: Row) -> Faithfulness | None:
    if row.logits is None:
        return None
    whole, alone = row.item.probabilities, row.logits.softmax(0)
    p, q = float(whole[row.target]), float(alone[row.target])
    return Faithfulness(p, q, max(0.0, p - q) / p if p > 0 else 0.0, int(alone.argmax()) == int(whole.argmax()))


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
