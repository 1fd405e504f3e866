"""Generated pathways for a batch: one pass of the generator over what the prediction pass computed anyway."""

from collections.abc import Sequence

import torch
from torch import Tensor

from pathlens.explainer.checks import check_finite
from pathlens.explainer.item import Item, Row, errors_of
from pathlens.generator.generator import PathwayGenerator
from pathlens.pathways.bank import ClassPathwayBank


def generate_rows(
    generator: PathwayGenerator,
    bank: ClassPathwayBank,
    items: Sequence[Item],
    targets: Sequence[Sequence[int]],
    logits: Tensor,
    activations: Sequence[Tensor],
) -> None:
    """Give every item a row for each of its targets, or the error that concerns it alone.

    The pathway belongs to the decision on the image: all targets of an item share it, and the predicted class says what
    stands in for the neurons that it leaves out.

    Args:
        generator: On the device of the activations.
        bank: Holds what stands in for removed neurons.
        items: One per image.
        targets: Of each item; none for an item that has an error already.
        logits: Of the images, [B, K].
        activations: The outputs of the taps, one tensor [B, ...] each.
    """
    pathway = generator.pathways(activations, bank.replacement_of(logits.argmax(1)))
    kept = pathway.kept.tolist()
    for index, (item, classes) in enumerate(zip(items, targets, strict=True)):
        if classes:
            with errors_of(item):
                if not kept[index]:
                    _check_scores(generator, [activation[index : index + 1] for activation in activations])
                item.rows = [Row(item, target, pathway[[index]]) for target in classes]


def _check_scores(generator: PathwayGenerator, activations: Sequence[Tensor]) -> None:
    """Check the scores of one image.

    What is not a number anywhere reaches the code, from there every score, and leaves no neuron: only then is it worth
    its time to look at the scores themselves.
    """
    with torch.no_grad():
        for score in generator(activations).scores:
            check_finite(score, "A score of the generator")
