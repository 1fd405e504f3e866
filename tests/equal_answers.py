"""Whether what ONNX Runtime answered is what PyTorch answers."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from pathlens.errors import PathlensError
from pathlens.explanation import Explanation, ExplanationResult

Answer = ExplanationResult | PathlensError


def logits(result: ExplanationResult) -> Any:
    return np.array([one.logit for one in sorted(result.predictions, key=lambda one: one.class_index)])


def assert_equal(answers: Sequence[Answer], expected: Sequence[Answer]) -> None:
    assert len(answers) == len(expected)
    for found, right in zip(answers, expected, strict=True):
        if isinstance(right, PathlensError):
            assert isinstance(found, PathlensError)
            assert (type(found), found.message, vars(found)) == (type(right), right.message, vars(right))
            continue
        assert isinstance(found, ExplanationResult)
        assert [one.class_index for one in found.predictions] == [one.class_index for one in right.predictions]
        for logit, other in zip(logits(found), logits(right), strict=True):
            assert abs(logit - other) <= 1e-4 * max(1, abs(other))
        for one, same in zip(found.explanations, right.explanations, strict=True):
            assert_equal_explanations(one, same)


def assert_equal_explanations(found: Explanation, right: Explanation) -> None:
    whole = ("source", "granularity", "ablation", "sparsity", "class_pathway_iou")
    assert [getattr(found, name) for name in whole] == [getattr(right, name) for name in whole]
    assert found.target.class_index == right.target.class_index
    assert [part.tap for part in found.pathway] == [part.tap for part in right.pathway]
    for one, other in zip(found.pathway, right.pathway, strict=True):
        np.testing.assert_array_equal(one.mask, other.mask)
    assert (found.map is None) == (right.map is None)
    if found.map is not None and right.map is not None:
        assert found.map.shape == right.map.shape
        assert np.linalg.norm(found.map - right.map) <= 1e-3 * np.linalg.norm(right.map)
    assert (found.faithfulness is None) == (right.faithfulness is None)
    if found.faithfulness and right.faithfulness:
        assert vars(found.faithfulness) == pytest.approx(vars(right.faithfulness), abs=1e-4)
    assert [neuron.index for neuron in found.top_neurons] == [neuron.index for neuron in right.top_neurons]
    assert (found.linearity is None) == (right.linearity is None)
    assert (found.typicality is None) == (right.typicality is None)
    assert bool(found.heatmap_png) == bool(right.heatmap_png)
    assert bool(found.overlay_png) == bool(right.overlay_png)
