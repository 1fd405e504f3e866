"""How far two backends agree."""

from dataclasses import dataclass

from torch import Tensor

from pathlens.explainer.backend import Backend
from pathlens.onnx_export.measures import Measure
from pathlens.pathways.pathway import Pathway

SCORE_TOLERANCE = 1e-4
"""How far from 0 the score of a neuron may be that only one of two pathways keeps, as a part of the largest score."""


@dataclass(frozen=True)
class Agreement:
    """How one backend's results differ from another's.

    Attributes:
        logits: Largest difference of a logit of the classifier or of a pathway network, as a part of its magnitude or
            of 1, whichever is larger; infinite if one is not finite.
        maps: Of each image, the norm of the difference of its map as a part of the map's own; infinite if one is not
            finite. An activation function that bends at 0 may take the other branch where rounding decides, which
            changes the map of that image.
        neurons: How many neurons of the generated pathways differ, of all images together; 0 without a generator.
        score: The score farthest from 0 among those neurons, as a part of the largest score of all; 0 without any.
            Scores above 0 are kept, so that rounding decides where one is near 0.
    """

    logits: float
    maps: tuple[float, ...]
    neurons: int
    score: float


def compare(
    backend: Backend, reference: Backend, images: Tensor, target: Tensor, pathway: Pathway, scores: Tensor | None
) -> Agreement:
    """Run every stage with both backends.

    Args:
        backend: Is judged.
        reference: Is right.
        images: Preprocessed, float32 [B, C, H, W].
        target: The class of each map, int64 [B].
        pathway: The pathway of each map.
        scores: What PyTorch's generator makes of the images, float32 [B, N]; None without a generator.
    """
    run, expected_run = (each.pathway_run(images, target, pathway) for each in (backend, reference))
    pairs = [
        (backend.logits(images), reference.logits(images)),
        (backend.pathway_logits(images, pathway), reference.pathway_logits(images, pathway)),
        (run.logits, expected_run.logits),
    ]
    neurons, score = 0, 0.0
    if scores is not None:
        generated, expected = backend.generate(images), reference.generate(images)
        pairs.append((generated.logits, expected.logits))
        differing = generated.pathway().flat() != expected.pathway().flat()
        neurons = int(differing.sum())
        score = float((scores.abs() * differing).max() / scores.abs().max()) if neurons else 0.0
    return Agreement(
        max(float(Measure.LOGITS.distances(found, right).max()) for found, right in pairs),
        tuple(Measure.MAP.distances(run.gradient, expected_run.gradient).tolist()),
        neurons,
        score,
    )
