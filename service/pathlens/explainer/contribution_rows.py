"""Pathways by contribution: NeuronMCT for a batch at once, NeuronIntGrad for one image at a time."""

from collections import defaultdict
from collections.abc import Sequence

import torch

from pathlens.classifier.captured import CapturedClassifier, Trace
from pathlens.explainer.backend import LARGEST_RUN
from pathlens.explainer.checks import check_finite, check_integration
from pathlens.explainer.item import Item, Row, errors_of
from pathlens.explanation import Granularity
from pathlens.pathways.contributions import Contributions, first_order
from pathlens.pathways.neuron_intgrad import neuron_intgrad
from pathlens.pathways.neuron_mct import tap_gradients


class ContributionRows:
    """Selects the neurons that contribute most to each target of an item.

    Args:
        classifier: What is explained.
        granularity: Of items that state none.
        sparsity: Of items that state none, in [0, 1).
    """

    def __init__(self, classifier: CapturedClassifier, granularity: Granularity, sparsity: float) -> None:
        self._classifier = classifier
        self._granularity = granularity
        self._sparsity = sparsity

    def select(self, items: Sequence[Item], targets: Sequence[Sequence[int]], trace: Trace) -> None:
        """Give every item a row for each of its targets by NeuronMCT, or the error that concerns it alone.

        Args:
            items: One per image.
            targets: Of each item; none for an item that has an error already.
            trace: Of the pass that predicted the images.
        """
        ranks = max(map(len, targets))
        granularities = {self._granularity_of(item) for item in items}
        for rank in range(ranks):
            # Ends early for all or for none: the pass is the same however many of them it is for.
            if all(item.expire() for item in items):
                return
            # An item with fewer targets repeats its first one, so that the batch stays whole; its row is not used.
            classes = [wanted[rank] if rank < len(wanted) else (wanted or [0])[0] for wanted in targets]
            target = torch.tensor(classes, device=trace.logits.device)
            gradients = tap_gradients(trace, target, keep_graph=rank < ranks - 1)
            for granularity in granularities:
                contributions = first_order(self._classifier.taps, trace.activations, gradients, granularity)
                chosen: dict[float, list[int]] = defaultdict(list)
                for index, (item, wanted) in enumerate(zip(items, targets, strict=True)):
                    if rank < len(wanted) and self._granularity_of(item) is granularity:
                        with errors_of(item):
                            chosen[self._checked_sparsity(item, contributions[index : index + 1])].append(index)
                for sparsity, indices in chosen.items():
                    pathways = contributions[indices].select(sparsity)
                    for position, index in enumerate(indices):
                        items[index].rows.append(Row(items[index], targets[index][rank], pathways, position=position))

    def integrate(self, item: Item, classes: Sequence[int]) -> list[Row]:
        """Return a row for each target of one item by NeuronIntGrad.

        Args:
            item: Its image is decoded.
            classes: Its targets.

        Raises:
            InvalidRequestError: If there are too many steps for so many targets, or a contribution is not finite.
            DeadlineExceededError: If nobody waits for it any more; this is looked at before every pass.
        """
        check_integration(item.options.integration_steps, len(classes))
        image = item.tensor[None].to(self._classifier.device)
        rows = []
        for target in classes:
            contributions = neuron_intgrad(
                self._classifier,
                image,
                torch.tensor([target], device=image.device),
                item.options.integration_steps,
                self._granularity_of(item),
                largest_batch=LARGEST_RUN,
                before_pass=item.check_time,
            )
            sparsity = self._checked_sparsity(item, contributions)
            rows.append(Row(item, target, contributions.select(sparsity)))
        return rows

    def _granularity_of(self, item: Item) -> Granularity:
        return item.options.granularity or self._granularity

    def _checked_sparsity(self, item: Item, contributions: Contributions) -> float:
        """Return the sparsity at which the item's neurons are to be selected, if their contributions are finite."""
        for signed in contributions.signed:
            check_finite(signed, "A contribution")
        return self._sparsity if item.options.sparsity is None else item.options.sparsity
