"""The test cases that ONNX itself publishes for its operators."""

import importlib
import pkgutil
import warnings
from functools import cache

import numpy as np
import onnx
import onnx.backend.test.case.node
import pytest
from onnx.backend.test.case.test_case import TestCase

from onnx_nodes import Array, arrays, as_read, compute, is_valid, node_of
from pathlens.errors import CaptureError
from pathlens.onnx_import.operators import NEWEST_OPSET, supported_operators
from single_node_list import SINGLE_NODES

_TYPES = {"float32", "float64", "int64", "int32", "bool"}
"""What the graph of a float32 classifier holds; halves, eight-bit numbers, strings and sequences are not in it."""

_OF_SIZES_ALONE = {"ConstantOfShape", "Range"}
"""Operators that take nothing from an image."""

_REFUSED_IN_PART = {"BatchNormalization", "Dropout", "MaxPool", "Resize"}
"""Operators with forms that no classifier in evaluation mode needs, or that torch cannot express: `test_refusals`."""

_SLOW_TO_MAKE = {"averagepool", "lppool", "maxpool"}
"""Their expected values take seconds of Python loops; `test_windows` compares these operators with ONNX Runtime."""


@cache
def _cases() -> dict[str, list[TestCase]]:
    """Return the cases of single nodes that are valid up to the newest opset, by operator.

    A case of a newer opset is one of the newest opset that we read, where that accepts the node: since then, these
    operators have been given more types and no other meaning.
    """
    package = onnx.backend.test.case.node
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        for module in pkgutil.iter_modules(package.__path__):
            if module.name not in _SLOW_TO_MAKE:
                importlib.import_module(f"{package.__name__}.{module.name}")
    cases: dict[str, list[TestCase]] = {}
    for case in package._NodeTestCases:
        nodes = _model(case).graph.node
        if len(nodes) != 1 or nodes[0].domain or not _is_for_classifiers(case):
            continue
        if is_valid(nodes[0], _opset(case)):
            cases.setdefault(nodes[0].op_type, []).append(case)
    return cases


def _model(case: TestCase) -> onnx.ModelProto:
    assert case.model is not None
    return case.model


def _opset(case: TestCase) -> int:
    return min(next(entry.version for entry in _model(case).opset_import if entry.domain == ""), NEWEST_OPSET)


def _is_for_classifiers(case: TestCase) -> bool:
    values = [value for given, expected in case.data_sets or [] for value in (*given, *expected)]
    # No image is empty.
    return all(str(getattr(value, "dtype", "")) in _TYPES and value.size for value in values)


@pytest.mark.parametrize("operator", sorted(supported_operators()))
def test_the_cases_of_onnx_itself_are_computed_as_published(operator: str) -> None:
    computed = 0
    for case in _cases().get(operator, []):
        node = node_of(_model(case).graph.node[0], _opset(case))
        for given, expected in case.data_sets or []:
            by_name = dict(zip([value.name for value in _model(case).graph.input], given, strict=True))
            inputs = [np.asarray(by_name[name]) if name else None for name in node.inputs]
            for values in (inputs, as_read(inputs))[: 1 if operator in _OF_SIZES_ALONE else 2]:
                try:
                    results = arrays(compute(node, values))
                except CaptureError:
                    assert operator in _REFUSED_IN_PART, case.name
                    continue
                _assert_same(case, results, list(map(np.asarray, expected)))
                computed += 1
    assert computed or operator not in _cases()


def _assert_same(case: TestCase, results: list[Array], expected: list[Array]) -> None:
    assert len(results) == len(expected), case.name
    for result, wanted in zip(results, expected, strict=True):
        assert (result.dtype, result.shape) == (wanted.dtype, wanted.shape), case.name
        np.testing.assert_allclose(result, wanted, case.rtol, max(case.atol, 1e-6), err_msg=case.name)


def test_every_operator_is_computed_by_a_test() -> None:
    published = {operator for operator, cases in _cases().items() if cases}
    assert supported_operators() <= published | {single.operator for single in SINGLE_NODES}
