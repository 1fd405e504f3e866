import numpy as np
import pytest

from onnx_nodes import Single
from pathlens.onnx_import.operators import NEWEST_OPSET
from single_node_list import SINGLE_NODES

OPSETS = (13, 15, 17, 18, 19, 20, 21)


@pytest.mark.parametrize("opset", OPSETS)
def test_nodes_of_every_opset_are_computed_as_onnx_runtime_does(opset: int) -> None:
    for single in SINGLE_NODES:
        if not single.is_valid(opset):
            continue
        for result, wanted in zip(single.by_pathlens(opset), single.by_runtime(opset), strict=True):
            assert (result.dtype, result.shape) == (wanted.dtype, wanted.shape), single
            np.testing.assert_allclose(result, wanted, 1e-4, 1e-5, err_msg=str(single))


@pytest.mark.parametrize("single", SINGLE_NODES, ids=lambda single: single.operator)
def test_every_listed_node_is_valid_in_some_opset(single: Single) -> None:
    assert any(single.is_valid(opset) for opset in range(13, NEWEST_OPSET + 1))
