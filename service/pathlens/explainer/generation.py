"""Generated pathways for a batch, which belong to the decisions on its images."""

from collections.abc import Sequence

import torch

from pathlens.classifier.captured import CapturedClassifier
from pathlens.explainer.checks import check_finite
from pathlens.explainer.item import Item, Row, errors_of
from pathlens.generator.generator import PathwayGenerator
from pathlens.pathways.pathway import Pathway


def generate_rows(
    classifier: CapturedClassifier,
    generator: PathwayGenerator,
    items: Sequence[Item],
    targets: Sequence[Sequence[int]],
    pathway: Pathway,
) -> None:
    """Give every item a row for each of its targets, or the error that concerns it alone.

    The pathway belongs to the decision on the image: all targets of an item share it, and the predicted class says what
    stands in for the neurons that it leaves out.

    Args:
        classifier: What is explained.
        generator: Made the pathways; on the device of the classifier.
        items: One per image.
        targets: Of each item; none for an item that has an error already.
        pathway: The generated pathway of each image.
    """
    kept = pathway.kept.tolist()
    for index, (item, classes) in enumerate(zip(items, targets, strict=True)):
        if classes:
            with errors_of(item):
                if not kept[index]:
                    _check_scores(classifier, generator, item)
                item.rows = [Row(item, target, pathway, position=index) for target in classes]


def _check_scores(classifier: CapturedClassifier, generator: PathwayGenerator, item: Item) -> None:
    """Check the scores of one image.

    What is not a number anywhere reaches the code, from there every score, and leaves no neuron: only then is it worth
    the time of computing the scores once more.
    """
    activations = classifier.observe(item.tensor[None].to(classifier.device)).activations
    with torch.no_grad():
        for score in generator(activations).scores:
            check_finite(score, "A score of the generator")
