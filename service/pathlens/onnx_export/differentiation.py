"""Functions with gradients inside, as graphs of plain operators."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch._dispatch.python import enable_python_dispatcher
from torch._subclasses import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv, StatelessSymbolicContext
from torch.nn.attention import SDPBackend, sdpa_kernel

from pathlens.onnx_export.decompositions import decompositions


def differentiate(function: Callable[..., tuple[Tensor, ...]], inputs: Sequence[Tensor]) -> fx.GraphModule:
    """Follow a function and write down every operator, those of its gradients among them.

    Args:
        function: Of tensors; it may call `torch.autograd.grad`.
        inputs: An example of its inputs, a batch each. The size of the batch is left free, all others are fixed.

    Returns:
        A graph of ATen operators with the same inputs; it returns what the function returns.
    """
    # The weights are no inputs and stay real.
    mode = FakeTensorMode(shape_env=ShapeEnv(), allow_non_fake_inputs=True)
    free = [mode.from_tensor(value, symbolic_context=_free_batch(value)) for value in inputs]
    # Attention in one kernel has its gradient in one kernel, which ONNX has not.
    # Without the dispatcher in Python, some of PyTorch's own code takes the size of the example for a constant.
    with sdpa_kernel(SDPBackend.MATH), enable_python_dispatcher():
        traced = make_fx(function, decomposition_table=decompositions())(*free)
        if any(_changes_values(node) for node in traced.graph.nodes):
            # Some of PyTorch's gradients write into their own results: values that are equal would not stay so.
            traced = make_fx(torch.func.functionalize(traced, remove="mutations"))(*free)
    traced.graph.eliminate_dead_code()
    traced.recompile()
    return traced


def _changes_values(node: fx.Node) -> bool:
    return isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable


def _free_batch(value: Tensor) -> Any:
    # DUCK gives the first sizes of all inputs, which are equal in the example, one symbol.
    others = [DimDynamic.STATIC] * (value.ndim - 1)
    return StatelessSymbolicContext(dynamic_sizes=[DimDynamic.DUCK, *others])
