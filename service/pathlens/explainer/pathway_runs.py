"""The pathway networks of a batch: one pass for the rows of one granularity and ablation, whatever their source.

Only rows of stored pathways are apart, because these may be run as slices.
"""

from collections import defaultdict
from collections.abc import Sequence

import torch
from torch import Tensor

from pathlens.attribution.linearity import POINTS, linearity_error
from pathlens.classifier.captured import CapturedClassifier
from pathlens.explainer.backend import Backend, chunks
from pathlens.explainer.checks import check_finite
from pathlens.explainer.item import Row, errors_of, join_pathways
from pathlens.explainer.results import find_top_neurons
from pathlens.explanation import Ablation, Granularity, Linearity


def run_pathways(backend: Backend, classifier: CapturedClassifier, rows: Sequence[Row]) -> None:
    """Give every row what it needs of its pathway network, or the error that concerns its item alone.

    Args:
        backend: Runs the pathway networks.
        classifier: What is explained; checks of linearity run it in double precision.
        rows: Those that need a run.
    """
    groups: dict[tuple[Granularity, Ablation, bool, bool], list[Row]] = defaultdict(list)
    for row in rows:
        groups[row.pathways.granularity, row.pathways.ablation, row.needs_gradient, row.is_transferred].append(row)
    for (_, _, needs_gradient, is_transferred), group in groups.items():
        if is_transferred:
            # Rows of one class can be computed together, so they should be in one chunk.
            group.sort(key=lambda row: row.target)
        for chunk in chunks(group):
            if live := [row for row in chunk if not row.item.expire()]:
                with errors_of(*(row.item for row in live)):
                    if needs_gradient:
                        _run_both_ways(backend, classifier, live, is_transferred)
                    else:
                        _run_forward(backend, classifier, live, is_transferred)


def _run_forward(backend: Backend, classifier: CapturedClassifier, rows: Sequence[Row], is_transferred: bool) -> None:
    images, target = _batch(classifier, rows)
    if is_transferred:
        batch = backend.transferred_logits(images, target)
    else:
        batch = backend.pathway_logits(images, join_pathways(rows))
    for row, logits in zip(rows, batch, strict=True):
        with errors_of(row.item):
            row.logits = check_finite(logits, "The pathway network's output")


def _run_both_ways(backend: Backend, classifier: CapturedClassifier, rows: Sequence[Row], is_transferred: bool) -> None:
    images, target = _batch(classifier, rows)
    if is_transferred:
        run = backend.transferred_run(images, target)
    else:
        with_contributions = any(row.item.options.top_neurons for row in rows)
        run = backend.pathway_run(images, target, join_pathways(rows), with_contributions)
    for index, row in enumerate(rows):
        with errors_of(row.item):
            row.logits = check_finite(run.logits[index], "The pathway network's output")
            row.gradient = check_finite(run.gradient[index], "The pathway gradient")
            if run.contributions is not None and row.item.options.top_neurons:
                contributions = run.contributions[index : index + 1]
                for signed in contributions.signed:
                    check_finite(signed, "A contribution")
                row.top_neurons = find_top_neurons(row.pathway, contributions, row.item.options.top_neurons)
            if row.item.options.linearity_radius is not None:
                row.item.check_time()
                row.linearity = _linearity(classifier, row, row.gradient, row.item.options.linearity_radius)


def _batch(classifier: CapturedClassifier, rows: Sequence[Row]) -> tuple[Tensor, Tensor]:
    images = torch.stack([row.item.tensor for row in rows]).to(classifier.device)
    return images, torch.tensor([row.target for row in rows], device=images.device)


def _linearity(classifier: CapturedClassifier, row: Row, gradient: Tensor, radius: float) -> Linearity:
    images = row.item.tensor[None].to(gradient.device)
    target = torch.tensor([row.target], device=gradient.device)
    error = linearity_error(classifier, images, target, row.pathway, gradient[None], radius, POINTS)
    return Linearity(radius, POINTS, float(check_finite(error, "The linearity error")))
