"""Simplified graphs compute the same, each value once, and constants beforehand."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import pathlens.onnx_export.simplification
from pathlens.onnx_export.differentiation import differentiate
from pathlens.onnx_export.simplification import SimplifiedGraph, simplify

WEIGHT = torch.arange(6.0).view(2, 3)


def simplified(function: Callable[..., tuple[Tensor, ...]], **weights: Tensor) -> SimplifiedGraph:
    return simplify(differentiate(function, [torch.ones(3, 2)]), weights)


def operators(graph: SimplifiedGraph) -> list[str]:
    return [str(node.target) for node in graph.module.graph.nodes if node.op == "call_function"]


def constants(graph: SimplifiedGraph) -> dict[str, Tensor]:
    return {graph.names[name]: value for name, value in graph.module.named_buffers()}


def test_equal_values_are_computed_once() -> None:
    graph = simplified(lambda x: ((x + 2).exp(), (x + 2).exp() * (x + 3)))
    assert operators(graph).count("aten.exp.default") == 1
    assert operators(graph).count("aten.add.Tensor") == 2


def test_numbers_of_two_types_are_not_equal() -> None:
    graph = simplified(lambda x: (torch.ops.aten.add.Scalar(x.long(), 1), torch.ops.aten.add.Scalar(x.long(), 1.0)))
    whole, broken = graph.module(torch.ones(4, 2))
    assert (whole.dtype, broken.dtype) == (torch.int64, torch.float32)


def test_what_is_made_of_weights_is_computed_beforehand_and_named_after_them() -> None:
    graph = simplified(lambda x: (x @ (WEIGHT.exp() * 2),), weight=WEIGHT)
    assert operators(graph) == ["aten.mm.default"]
    ((name, value),) = constants(graph).items()
    assert name == "weight/exp/mul"
    assert value.equal(WEIGHT.exp() * 2)


def test_a_weight_is_told_from_its_parts_and_turns_and_stored_once() -> None:
    square = torch.arange(4.0).view(2, 2)
    graph = simplified(lambda x: (x @ square, x @ square.detach(), x @ square.t(), x * square[0]), square=square)
    assert sorted(tuple(value.flatten().tolist()) for value in constants(graph).values()) == [
        (0, 1),
        (0, 1, 2, 3),
        (0, 2, 1, 3),
    ]
    batch = torch.ones(5, 2)
    results = graph.module(batch)
    assert results[1].equal(batch @ square)
    assert results[2].equal(batch @ square.t())


def test_a_constant_that_would_be_much_larger_than_what_it_is_made_of_is_not_stored(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(pathlens.onnx_export.simplification, "LARGEST_CONSTANT", 5)
    row = torch.arange(2.0)
    graph = simplified(lambda x: (x @ row.repeat(3, 1).t(), x * (row + 1)))
    assert "aten.repeat.default" in operators(graph)
    assert "aten.add.Tensor" not in operators(graph)


def test_a_gradient_that_writes_into_its_own_result_is_written_without() -> None:
    def gradient(x: Tensor) -> tuple[Tensor, ...]:
        leaf = x.detach().requires_grad_()
        return (*torch.autograd.grad(F.normalize(leaf).exp().sum(), leaf), x / x.norm(dim=1, keepdim=True))

    graph = differentiate(gradient, [torch.ones(3, 2)])
    assert not [node for node in graph.graph.nodes if str(node.target).partition(".")[2].split(".")[0].endswith("_")]
    batch = torch.tensor([[0.0, 0.0], [3.0, 4.0]])
    torch.testing.assert_close(simplify(graph, {}).module(batch), gradient(batch), equal_nan=True)
