"""Matrix products."""

import torch
from torch.nn import functional as F

from pathlens.onnx_import.operators.registry import Node, operator
from pathlens.onnx_import.values import Inputs, Value, optional_tensor, required_tensor


@operator("Gemm")
def gemm(node: Node, inputs: Inputs) -> Value:
    """Compute αAB + βC, which is a linear layer where α and β are 1 and C is one bias per output."""
    left, right, bias = required_tensor(inputs, 0), required_tensor(inputs, 1), optional_tensor(inputs, 2)
    alpha, beta = node.attributes.get("alpha", 1.0), node.attributes.get("beta", 1.0)
    left = left.T if node.attributes.get("transA", 0) else left
    weight = right if node.attributes.get("transB", 0) else right.T
    if alpha == 1 and (bias is None or (beta == 1 and bias.ndim == 1 and bias.shape[0] == weight.shape[0])):
        return F.linear(left, weight, bias)
    result = F.linear(left, weight)
    result = result if alpha == 1 else alpha * result
    if bias is None or beta == 0:
        return result
    return result + (bias if beta == 1 else beta * bias)


@operator("MatMul")
def matmul(_node: Node, inputs: Inputs) -> Value:
    """Multiply matrices, or batches of them."""
    return torch.matmul(required_tensor(inputs, 0), required_tensor(inputs, 1))


@operator("Einsum")
def einsum(node: Node, inputs: Inputs) -> Value:
    """Sum products as an equation says."""
    tensors = [required_tensor(inputs, position) for position in range(len(inputs))]
    return torch.einsum(node.attributes["equation"], *tensors)
