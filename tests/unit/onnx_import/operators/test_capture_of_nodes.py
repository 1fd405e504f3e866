"""Nodes captured by `torch.export` with a free batch, as `pathlens.capture` does it."""

import itertools
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from torch import fx
from torch.export import Dim

from onnx_nodes import SideBySide, Single, floats, integers, normal, number
from pathlens.classifier.taps import find_taps, operator_name, owning_module

IMAGE = normal(2, 6, 5, 4)
SCALES = [np.abs(normal(6, seed=seed)) for seed in range(1, 5)] + [normal(12), normal(12)]
WINDOW = {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}
HIGHEST = float(np.finfo(np.float32).max)

ACTIVATIONS = [
    (Single("Relu", [IMAGE], {}), "relu"),
    (Single("Clip", [IMAGE, number(0)], {}), "relu"),
    (Single("Clip", [IMAGE, number(0), number(HIGHEST)], {}), "relu"),
    (Single("Max", [IMAGE, number(0)], {}), "relu"),
    (Single("Clip", [IMAGE, number(0), number(6)], {}), "relu6"),
    (Single("Clip", [IMAGE, number(-1), number(1)], {}), "hardtanh"),
    (Single("LeakyRelu", [IMAGE], {"alpha": 0.2}), "leaky_relu"),
    (Single("PRelu", [IMAGE, normal(6, 1, 1)], {}), "prelu"),
    (Single("PRelu", [IMAGE, floats(0.1)], {}), "prelu"),
    (Single("Gelu", [IMAGE], {}), "gelu"),
    (Single("Gelu", [IMAGE], {"approximate": "tanh"}), "gelu"),
    (Single("HardSwish", [IMAGE], {}), "hardswish"),
    (Single("Mish", [IMAGE], {}), "mish"),
    (Single("Elu", [IMAGE], {}), "elu"),
    (Single("Celu", [IMAGE], {"alpha": 2.0}), "celu"),
    (Single("Selu", [IMAGE], {}), "selu"),
    (Single("Softplus", [IMAGE], {}), "softplus"),
    (Single("Tanh", [IMAGE], {}), "tanh"),
    (Single("Sigmoid", [IMAGE], {}), "sigmoid"),
    (Single("HardSigmoid", [IMAGE], {"alpha": 1 / 6}), "hardsigmoid"),
    (Single("ThresholdedRelu", [IMAGE], {"alpha": 0.5}), "threshold"),
]
CALLS = [
    (Single("Conv", [IMAGE, normal(12, 6, 3, 3), normal(12)], {"pads": [1, 1, 1, 1]}), ["conv2d"]),
    (Single("Conv", [IMAGE, normal(12, 6, 3, 3), normal(12)], {"pads": [0, 1, 1, 1]}), ["pad", "conv2d"]),
    (Single("Conv", [IMAGE, normal(6, 1, 3, 3)], {"auto_pad": "SAME_UPPER", "group": 6}), ["conv2d"]),
    (Single("ConvTranspose", [IMAGE, normal(6, 3, 2, 2)], {"strides": [2, 2]}), ["conv_transpose2d"]),
    (Single("MaxPool", [IMAGE], {**WINDOW, "ceil_mode": 1, "strides": [2, 2]}), ["max_pool2d"]),
    (Single("MaxPool", [IMAGE], {**WINDOW, "pads": [0, 0, 1, 1]}), ["pad", "max_pool2d"]),
    (Single("AveragePool", [IMAGE], WINDOW), ["avg_pool2d"]),
    (Single("AveragePool", [IMAGE], {**WINDOW, "pads": [0, 0, 1, 1]}), ["pad", "ones", "conv2d", "div"]),
    (Single("GlobalAveragePool", [IMAGE], {}), ["mean"]),
    (Single("GlobalMaxPool", [IMAGE], {}), ["amax"]),
    (Single("BatchNormalization", [IMAGE, *SCALES[:4]], {}), ["_native_batch_norm_legit_no_training"]),
    (Single("LayerNormalization", [normal(2, 5, 12), *SCALES[4:]], {}), ["layer_norm"]),
    (Single("GroupNormalization", [normal(2, 12, 5), *SCALES[4:]], {"num_groups": 3}), ["group_norm"]),
    (Single("InstanceNormalization", [normal(2, 12, 5), *SCALES[4:]], {}), ["group_norm"]),
    (Single("Gemm", [normal(2, 5), normal(12, 5), normal(12)], {"transB": 1}), ["linear"]),
    (Single("MatMul", [normal(2, 3, 5), normal(5, 4)], {}), ["matmul"]),
    (Single("Softmax", [IMAGE], {"axis": 1}), ["softmax"]),
    (Single("Mul", [IMAGE, number(0.5)], {}), ["mul"]),
    (Single("Sub", [IMAGE, number(1)], {}), ["sub"]),
    (Single("Pow", [IMAGE, number(2)], {}), ["pow"]),
    (Single("Mean", [IMAGE, number(2)], {}), ["add", "div"]),
    (Single("ReduceMean", [IMAGE, integers(2, 3)], {}), ["mean"]),
    (Single("ReduceL2", [IMAGE, integers(1)], {}), ["linalg_vector_norm"]),
    (Single("Concat", [IMAGE], {"axis": 1}), ["cat"]),
    (Single("Slice", [IMAGE, integers(1), integers(2**63 - 1), integers(1)], {}), ["slice", "slice"]),
    (
        Single("Slice", [IMAGE, integers(-1), integers(-(2**63)), integers(1), integers(-2)], {}),
        ["flip", "slice", "slice"],
    ),
    (Single("Gather", [IMAGE, np.array(-1)], {"axis": 1}), ["select"]),
    (Single("Gather", [IMAGE, integers(0, 0, 2)], {"axis": 1}), ["index_select"]),
    (Single("Reshape", [IMAGE, integers(0, -1)], {}), ["view"]),
    (Single("Flatten", [IMAGE], {}), ["view"]),
    (Single("Transpose", [IMAGE], {"perm": [0, 2, 3, 1]}), ["permute"]),
    (Single("Expand", [normal(2, 1, 4), integers(1, 5, 1)], {}), ["expand"]),
    (Single("DepthToSpace", [normal(2, 8, 3, 2)], {"blocksize": 2}), ["view", "permute", "_unsafe_view"]),
    (Single("Pad", [IMAGE, integers(0, 0, 1, 1, 0, 0, 1, 1)], {"mode": "reflect"}), ["pad"]),
    (
        Single("Resize", [IMAGE, None, floats(1, 1, 2, 2)], {}),
        ["upsample_nearest2d"],
    ),
    (Single("Resize", [IMAGE, None, floats(1, 1, 2, 2)], {"mode": "linear"}), ["upsample_bilinear2d"]),
    (Single("Resize", [IMAGE, None, floats(1, 1, 2, 2)], {"mode": "cubic"}), ["upsample_bicubic2d"]),
]


SINGLES = [single for single, _ in (*ACTIVATIONS, *CALLS)]
OPSET = 21


@cache
def captured() -> fx.GraphModule:
    """Export all nodes at once: an export takes as long as some hundred nodes."""
    examples = [torch.from_numpy(single.image) for single in SINGLES]
    dimensions = ([{0: Dim("batch", min=1)}] * len(examples),)
    exported = torch.export.export(SideBySide(SINGLES, OPSET), (examples,), dynamic_shapes=dimensions, strict=False)
    module = exported.run_decompositions({}).module(check_guards=False)
    assert isinstance(module, fx.GraphModule)
    module.graph.eliminate_dead_code()
    return module


@pytest.mark.parametrize(("single", "activation"), ACTIVATIONS, ids=itertools.count())
def test_an_activation_function_becomes_a_tap(single: Single, activation: str) -> None:
    names = [
        tap.activation
        for tap in find_taps(captured().graph)
        if tap.name.startswith(f"networks.{SINGLES.index(single)}.")
    ]
    assert names == [activation]


@pytest.mark.parametrize(("single", "calls"), CALLS, ids=itertools.count())
def test_a_node_becomes_the_calls_that_pytorch_code_makes(single: Single, calls: list[str]) -> None:
    module = f"networks.{SINGLES.index(single)}"
    made = [operator_name(node) for node in captured().graph.nodes if owning_module(node) == module]
    # Small arrays are constants of the program, which are cloned; what has no name takes one of several results.
    assert [name for name in made if name not in ("clone", "")] == calls


@pytest.mark.parametrize("batch", [1, 2, 3])
def test_captured_nodes_compute_batches_of_any_size(batch: int) -> None:
    images = [normal(batch, *single.image.shape[1:]) for single in SINGLES]
    results = captured()([torch.from_numpy(image) for image in images])
    for single, image, result in zip(SINGLES, images, results, strict=True):
        wanted = replace(single, inputs=[image, *single.inputs[1:]]).by_runtime(OPSET)[0]
        np.testing.assert_allclose(result.numpy(), wanted, 1e-4, 1e-5, err_msg=single.operator)
