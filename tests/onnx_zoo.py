"""Graphs of the ONNX model zoo as the package `onnx` ships them, with random weights in place of constants.

They are old: opset 9, the weights among the inputs, a batch of exactly one image, a softmax at the end.
"""

import tempfile
from functools import cache
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

NAMES = ("bvlc_alexnet", "densenet121", "inception_v1", "inception_v2", "resnet50", "shufflenet", "squeezenet")
"""All but VGG-19 and ZFNet, which take gigabytes of memory and show nothing that AlexNet does not."""


@cache
def zoo_file(name: str) -> Path:
    """Write one of NAMES with random weights, once per process."""
    path = Path(_folder().name) / f"{name}.onnx"
    onnx.save(_with_random_weights(name), path)
    return path


@cache
def zoo_logits_file(name: str) -> Path:
    """Write the same classifier with its logits as the output."""
    model, path = onnx.load(zoo_file(name)), Path(_folder().name) / f"{name}-logits.onnx"
    if model.graph.node[-1].op_type == "Softmax":
        output, last = model.graph.output[0], model.graph.node.pop()
        output.name = last.input[0]
    onnx.save(model, path)
    return path


def _with_random_weights(name: str) -> onnx.ModelProto:
    """The package leaves the weights out: a constant of every weight's size stands in for it."""
    model = onnx.load(Path(onnx.__file__).parent / "backend/test/data/light" / f"light_{name}.onnx")
    graph, generator = model.graph, np.random.default_rng(0)
    sizes = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    residual = any(node.op_type == "Sum" for node in graph.node)
    scales = {node.input[1] for node in graph.node if node.op_type == "BatchNormalization"}
    fillers = [node for node in graph.node if node.op_type == "ConstantOfShape"]
    for node in fillers:
        weight = _random_weight(sizes[node.input[0]].tolist(), generator)
        if residual and node.output[0] in scales:  # Sums of many branches would grow beyond all bounds.
            weight /= 2
        graph.node.remove(node)
        graph.initializer.append(numpy_helper.from_array(weight, node.output[0]))
        graph.input.append(helper.make_tensor_value_info(node.output[0], onnx.TensorProto.FLOAT, weight.shape))
    for tensor in [tensor for tensor in graph.initializer if tensor.name in {node.input[0] for node in fillers}]:
        graph.initializer.remove(tensor)
        graph.input.remove(next(value for value in graph.input if value.name == tensor.name))
    return model


def _random_weight(shape: list[int], generator: np.random.Generator) -> NDArray[np.float32]:
    if len(shape) == 1:  # Of a batch norm, whose variance must be positive, or a bias.
        return generator.uniform(0.5, 1.5, shape).astype(np.float32)
    return generator.normal(0, np.sqrt(2 / np.prod(shape[1:])), shape).astype(np.float32)


@cache
def _folder() -> "tempfile.TemporaryDirectory[str]":
    return tempfile.TemporaryDirectory(prefix="onnx-zoo-")
