"""Activation functions, each as the ATen operator that PyTorch code would call, so that its output becomes a tap."""

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from pathlens.onnx_import.operators.registry import Node, operator
from pathlens.onnx_import.values import (
    Inputs,
    Value,
    as_operand,
    as_tensor,
    first_tensor,
    is_known,
    known,
    optional,
    required,
    required_tensor,
)

_SELU = (1.6732631921768188, 1.0507010221481323)


def _register(name: str, function: Callable[[Tensor], Tensor]) -> None:
    @operator(name)
    def run(_node: Node, inputs: Inputs) -> Value:
        return function(required_tensor(inputs, 0))


_register("Relu", torch.relu)
_register("Sigmoid", torch.sigmoid)
_register("Tanh", torch.tanh)
_register("HardSwish", F.hardswish)
_register("Mish", F.mish)
_register("Softplus", F.softplus)
_register("Softsign", F.softsign)


@operator("LeakyRelu")
def leaky_relu(node: Node, inputs: Inputs) -> Value:
    """Scale what is below 0."""
    return F.leaky_relu(required_tensor(inputs, 0), node.attributes.get("alpha", 0.01))


@operator("PRelu")
def prelu(_node: Node, inputs: Inputs) -> Value:
    """Scale what is below 0 by learned slopes."""
    images, slope = required_tensor(inputs, 0), required_tensor(inputs, 1)
    channels = images.shape[1] if images.ndim > 1 else 1
    # ONNX broadcasts the slopes; those of one channel each are what PyTorch calls PReLU.
    if slope.numel() == 1:
        return F.prelu(images, slope.reshape(1))
    if slope.numel() == channels and slope.ndim in (images.ndim - 1, images.ndim) and slope.shape[-images.ndim + 1] > 1:
        return F.prelu(images, slope.reshape(-1))
    return torch.where(images < 0, slope * images, images)


@operator("Elu")
def elu(node: Node, inputs: Inputs) -> Value:
    """Compute the exponential linear unit."""
    return F.elu(required_tensor(inputs, 0), node.attributes.get("alpha", 1.0))


@operator("Selu")
def selu(node: Node, inputs: Inputs) -> Value:
    """Compute the scaled exponential linear unit."""
    alpha, gamma = node.attributes.get("alpha", _SELU[0]), node.attributes.get("gamma", _SELU[1])
    if math.isclose(alpha, _SELU[0], rel_tol=1e-6) and math.isclose(gamma, _SELU[1], rel_tol=1e-6):
        return F.selu(required_tensor(inputs, 0))
    return torch.mul(F.elu(required_tensor(inputs, 0), alpha), gamma)


@operator("Celu")
def celu(node: Node, inputs: Inputs) -> Value:
    """Compute the continuously differentiable exponential linear unit."""
    return F.celu(required_tensor(inputs, 0), node.attributes.get("alpha", 1.0))


@operator("Gelu")
def gelu(node: Node, inputs: Inputs) -> Value:
    """Compute the Gaussian error linear unit."""
    return F.gelu(required_tensor(inputs, 0), approximate=node.attributes.get("approximate", "none"))


@operator("HardSigmoid")
def hard_sigmoid(node: Node, inputs: Inputs) -> Value:
    """Compute clamp(αx + β, 0, 1), which PyTorch knows for α = 1/6 and β = 1/2."""
    alpha, beta = node.attributes.get("alpha", 0.2), node.attributes.get("beta", 0.5)
    if math.isclose(alpha, 1 / 6, rel_tol=1e-6) and beta == 0.5:
        return F.hardsigmoid(required_tensor(inputs, 0))
    return torch.clamp(alpha * required_tensor(inputs, 0) + beta, 0, 1)


@operator("ThresholdedRelu")
def thresholded_relu(node: Node, inputs: Inputs) -> Value:
    """Keep what is above a threshold."""
    return F.threshold(required_tensor(inputs, 0), node.attributes.get("alpha", 1.0), 0.0)


@operator("Clip")
def clip(_node: Node, inputs: Inputs) -> Value:
    """Clamp between two bounds; with 0 and 6 this is ReLU6, with 0 alone ReLU, with -1 and 1 the hard tangent."""
    value, bounds = required(inputs, 0), (optional(inputs, 1), optional(inputs, 2))
    if is_known(value) and first_tensor(bounds) is None:
        low, high = bounds
        clipped = value if low is None else np.maximum(value, low)
        return known(clipped if high is None else np.minimum(clipped, high))
    images = required_tensor(inputs, 0)
    low, high = (None if bound is None or _bounds_nothing(bound) else as_operand(bound, images) for bound in bounds)
    if isinstance(low, Tensor) or isinstance(high, Tensor):
        # torch.clamp takes two tensors or two numbers.
        low, high = (None if bound is None else as_tensor(bound, images) for bound in bounds)
        return torch.clamp(images, low, high)
    if (low, high) == (-1, 1):
        return F.hardtanh(images)
    return images if low is None and high is None else torch.clamp(images, low, high)


def _bounds_nothing(bound: Value) -> bool:
    """Tell whether a bound is as large as the largest float, as some exporters write one that is not there."""
    return is_known(bound) and bool(np.all(np.abs(bound.astype(np.float64)) >= float(np.finfo(np.float32).max)))


@operator("Softmax")
def softmax(node: Node, inputs: Inputs) -> Value:
    """Normalise exponentials along one axis."""
    return F.softmax(required_tensor(inputs, 0), node.attributes.get("axis", -1))


@operator("LogSoftmax")
def log_softmax(node: Node, inputs: Inputs) -> Value:
    """Compute logarithms of a softmax."""
    return F.log_softmax(required_tensor(inputs, 0), node.attributes.get("axis", -1))
