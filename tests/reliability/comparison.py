"""What differs between two answers to the same question, beyond rounding."""

from collections.abc import Iterator
from io import BytesIO
from math import isclose

import numpy as np
from PIL import Image

from pathlens.explanation import Explanation, ExplanationResult, Prediction

_PROBABILITY = 1e-5
# Logits and gradients of the test's network go to about a hundred.
_RELATIVE, _ABSOLUTE = 1e-4, 1e-4
# A value between two colours may fall on either side.
_PIXEL_LEVELS = 2


def difference(actual: ExplanationResult, expected: ExplanationResult) -> str | None:
    """Compare an answer with the right one.

    Args:
        actual: What the service answered.
        expected: What the explainer answers.

    Returns:
        What differs, in words; None if nothing does.
    """
    return next(_differences(actual, expected), None)


def _differences(actual: ExplanationResult, expected: ExplanationResult) -> Iterator[str]:
    if actual.model != expected.model:
        yield f"model {actual.model} instead of {expected.model}"
    if len(actual.predictions) != len(expected.predictions) or len(actual.explanations) != len(expected.explanations):
        yield (
            f"{len(actual.predictions)} predictions and {len(actual.explanations)} explanations instead of"
            f" {len(expected.predictions)} and {len(expected.explanations)}"
        )
    for mine, other in zip(actual.predictions, expected.predictions, strict=True):
        if not _same_prediction(mine, other):
            yield f"predicts {mine} instead of {other}"
    for explained, wanted in zip(actual.explanations, expected.explanations, strict=True):
        yield from _of_explanation(explained, wanted)


def _of_explanation(actual: Explanation, expected: Explanation) -> Iterator[str]:
    if not _same_prediction(actual.target, expected.target):
        yield f"target {actual.target} instead of {expected.target}"
    for name in ("source", "granularity", "ablation"):
        if getattr(actual, name) is not getattr(expected, name):
            yield f"{name} {getattr(actual, name)} instead of {getattr(expected, name)}"
    if not isclose(actual.sparsity, expected.sparsity, abs_tol=1e-9):
        yield f"sparsity {actual.sparsity} instead of {expected.sparsity}"
    if not _close(actual.class_pathway_iou, expected.class_pathway_iou):
        yield f"IoU {actual.class_pathway_iou} instead of {expected.class_pathway_iou}"
    if [part.tap for part in actual.pathway] != [part.tap for part in expected.pathway]:
        yield "masks of other taps"
    for part, other in zip(actual.pathway, expected.pathway, strict=False):
        if not np.array_equal(part.mask, other.mask):
            yield f"another mask at {part.tap}"
    yield from _of_checks(actual, expected)
    yield from _of_map(actual, expected)
    for name in ("heatmap_png", "overlay_png"):
        if not _same_picture(getattr(actual, name), getattr(expected, name)):
            yield f"another {name}"


def _of_checks(actual: Explanation, expected: Explanation) -> Iterator[str]:
    mine, other = actual.faithfulness, expected.faithfulness
    if (mine is None) is not (other is None):
        yield f"faithfulness {mine} instead of {other}"
    if mine is not None and other is not None:
        if abs(mine.pathway_confidence - other.pathway_confidence) > _PROBABILITY:
            yield f"faithfulness {mine} instead of {other}"
        if mine.agreement is not other.agreement:
            yield f"agreement {mine.agreement} instead of {other.agreement}"
    if (actual.typicality is None) is not (expected.typicality is None):
        yield f"typicality {actual.typicality} instead of {expected.typicality}"
    neurons = {(one.tap, one.index): one.contribution for one in actual.top_neurons}
    wanted = {(one.tap, one.index): one.contribution for one in expected.top_neurons}
    if neurons.keys() != wanted.keys() or not all(_close(neurons[key], wanted[key]) for key in wanted):
        yield f"top neurons {neurons} instead of {wanted}"


def _of_map(actual: Explanation, expected: Explanation) -> Iterator[str]:
    if (actual.map is None) is not (expected.map is None):
        yield "a map too many or too few"
    if actual.map is not None and expected.map is not None:
        if actual.map.shape != expected.map.shape:
            yield f"a map of shape {actual.map.shape} instead of {expected.map.shape}"
        elif not np.allclose(actual.map, expected.map, rtol=_RELATIVE, atol=_ABSOLUTE):
            yield f"a map that is {np.abs(actual.map - expected.map).max():.3g} off"


def _same_prediction(actual: Prediction, expected: Prediction) -> bool:
    return (
        (actual.class_index, actual.label) == (expected.class_index, expected.label)
        and abs(actual.probability - expected.probability) <= _PROBABILITY
        # Probabilities near one are alike; logits tell images apart.
        and _close(actual.logit, expected.logit)
    )


def _close(actual: float | None, expected: float | None) -> bool:
    if actual is None or expected is None:
        return actual is expected
    return isclose(actual, expected, rel_tol=_RELATIVE, abs_tol=_ABSOLUTE)


def _same_picture(actual: bytes, expected: bytes) -> bool:
    if actual == expected:
        return True
    if not actual or not expected:
        return False
    mine, other = (np.asarray(Image.open(BytesIO(data)).convert("RGB"), dtype=np.int16) for data in (actual, expected))
    return mine.shape == other.shape and int(np.abs(mine - other).max()) <= _PIXEL_LEVELS
