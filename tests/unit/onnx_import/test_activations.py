"""Activation functions in several nodes are found, and nothing else is taken for one."""

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from onnx_files import by_onnx_runtime, export, linear_model, node, written
from pathlens.classifier.capture import capture
from pathlens.onnx_import.loading import load_onnx_classifier
from small_networks import Plain, images, seeded

SPELLED_OUT: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": functional.silu,
    "gelu": functional.gelu,
    "gelu by tanh": lambda x: functional.gelu(x, approximate="tanh"),
    "hardswish": functional.hardswish,
    "mish": functional.mish,
}


def taps(path: Path) -> list[str]:
    return [tap.name for tap in capture(load_onnx_classifier(path, images(2)), images(2)).taps]


@pytest.mark.parametrize("name", SPELLED_OUT)
def test_of_pytorch_are_taps_where_the_opset_has_none_of_them(name: str, tmp_path: Path) -> None:
    network = seeded(lambda: Plain(SPELLED_OUT[name]))
    path = written(export(network, opset=13), tmp_path / "model.onnx")
    kind = name.partition(" ")[0]
    assert taps(path) == [f"{kind}#1", f"{kind}#2"]
    with torch.no_grad():
        torch.testing.assert_close(
            load_onnx_classifier(path, images(2))(images(3)), network(images(3)), rtol=0, atol=1e-5
        )


NUMBERS = {
    name: np.array(number, np.float32)
    for name, number in {
        "half": 0.5,
        "one": 1,
        "three": 3,
        "zero": 0,
        "six": 6,
        "root": math.sqrt(2),
        "two": 2,
        "bound": 10,
    }.items()
}
HARDSWISH = [
    *(node("Add", "linear three", "a"), node("Clip", "a zero six", "b"), node("Mul", "linear b", "c")),
    node("Div", "c six", "logits"),
]
GELU = [
    *(node("Div", "linear root", "a"), node("Erf", "a", "b"), node("Add", "b one", "c"), node("Mul", "c half", "d")),
    node("Mul", "d linear", "logits"),
]
BOUNDED_GATE = [node("Min", "linear bound", "a"), node("Sigmoid", "a", "b"), node("Mul", "linear b", "logits")]
TWICE_SILU = [node("Sigmoid", "linear", "a"), node("Mul", "a linear", "b"), node("Mul", "b two", "logits")]


@pytest.mark.parametrize(
    ("nodes", "expected"),
    [
        (HARDSWISH, ["hardswish"]),
        (GELU, ["gelu"]),
        (TWICE_SILU, ["silu"]),
        (BOUNDED_GATE, []),
        ([node("Mul", "linear linear", "logits")], []),
        ([node("Sigmoid", "linear", "a"), node("Mul", "a flat", "logits")], []),
        ([node("Tanh", "linear", "a"), node("Mul", "a linear", "logits")], ["tanh"]),
        ([node("Sigmoid", "linear", "a"), node("Mul", "a linear", "b"), node("Add", "a b", "logits")], ["sigmoid"]),
    ],
    ids=[
        "hardswish",
        "gelu",
        "twice silu",
        "gate with a bound",
        "square",
        "gate of another value",
        "x tanh(x)",
        "a sigmoid used again",
    ],
)
def test_are_recognised_by_what_they_compute(nodes: list[onnx.NodeProto], expected: list[str], tmp_path: Path) -> None:
    eye = {"eye": np.eye(4, dtype=np.float32)}
    # Behind it, a layer that keeps what is found from being at the end.
    after = [*nodes[:-1], rename(nodes[-1], "activated"), node("MatMul", "activated eye", "logits")]
    if any("flat" in entry.input for entry in nodes):
        after[0:0] = [node("MatMul", "flat other", "gated")]
        after = [replaced(entry, "flat", "gated") if entry.op_type == "Mul" else entry for entry in after]
        eye["other"] = np.random.default_rng(0).normal(size=(192, 4)).astype(np.float32)
    model = linear_model(after=after, arrays={**NUMBERS, **eye})
    path = written(model, tmp_path / "model.onnx")
    assert [name.split(".")[-1].split("#")[0] for name in taps(path)] == ["relu", *expected]
    network = load_onnx_classifier(path, images(2))
    torch.testing.assert_close(network(images(3)), by_onnx_runtime(model, images(3)), rtol=1e-5, atol=1e-5)


def rename(last: onnx.NodeProto, output: str) -> onnx.NodeProto:
    return replaced(last, last.output[0], output)


def replaced(entry: onnx.NodeProto, old: str, new: str) -> onnx.NodeProto:
    changed = onnx.NodeProto()
    changed.CopyFrom(entry)
    changed.input[:] = [new if name == old else name for name in entry.input]
    changed.output[:] = [new if name == old else name for name in entry.output]
    return changed


def test_belong_to_their_module(tmp_path: Path) -> None:
    path = written(export(seeded(lambda: Plain(nn.SiLU()))), tmp_path / "model.onnx")
    assert taps(path) == ["activation.silu#1", "activation.silu#2"]


@pytest.mark.parametrize(("name", "approximation"), [("gelu", {}), ("gelu by tanh", {"approximate": "tanh"})])
def test_are_told_from_their_approximations(name: str, approximation: dict[str, str], tmp_path: Path) -> None:
    content = export(seeded(lambda: Plain(SPELLED_OUT[name])), opset=17)
    network = load_onnx_classifier(written(content, tmp_path / "model.onnx"), images(2))
    calls = [call for call in capture(network, images(2)).program.calls if call.function == "aten.gelu.default"]
    assert [call.keywords for call in calls] == [approximation] * 2
