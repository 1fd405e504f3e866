"""Normalisations in evaluation mode."""

import torch
from torch.nn import functional as F

from pathlens.errors import CaptureError
from pathlens.onnx_import.operators.registry import Node, operator
from pathlens.onnx_import.values import Inputs, Value, as_number, is_known, optional, optional_tensor, required_tensor

_EVALUATION_MODE = "export the model in evaluation mode (model.eval(); training=TrainingMode.EVAL)"


@operator("BatchNormalization")
def batch_normalization(node: Node, inputs: Inputs) -> Value:
    """Normalise each channel by stored statistics."""
    if node.attributes.get("training_mode", 0) or any(node.outputs[1:]):
        raise CaptureError(f"normalises by the statistics of the batch; {_EVALUATION_MODE}")
    images, scale, bias, mean, variance = (required_tensor(inputs, position) for position in range(5))
    return F.batch_norm(images, mean, variance, scale, bias, training=False, eps=node.attributes.get("epsilon", 1e-5))


@operator("Dropout")
def dropout(node: Node, inputs: Inputs) -> Value | tuple[Value, ...]:
    """Do nothing, as dropout does in evaluation mode."""
    training = optional(inputs, 2)
    if training is not None and not (is_known(training) and not as_number(training)):
        raise CaptureError(f"drops neurons at random; {_EVALUATION_MODE}")
    value = required_tensor(inputs, 0)
    return (value, torch.ones_like(value, dtype=torch.bool)) if any(node.outputs[1:]) else value


@operator("InstanceNormalization")
def instance_normalization(node: Node, inputs: Inputs) -> Value:
    """Normalise each channel of each image by its own statistics."""
    images, scale, bias = (required_tensor(inputs, position) for position in range(3))
    # As many groups as channels: the same numbers as F.instance_norm, which is batch norm in training mode to ATen.
    return F.group_norm(images, int(images.shape[1]), scale, bias, node.attributes.get("epsilon", 1e-5))


@operator("GroupNormalization")
def group_normalization(node: Node, inputs: Inputs) -> Value:
    """Normalise groups of channels; scale and bias are one per group in opset 18 and one per channel from 21 on."""
    images, scale, bias = (required_tensor(inputs, position) for position in range(3))
    groups = node.attributes["num_groups"]
    if node.opset < 21:
        per_group = int(images.shape[1]) // groups
        scale, bias = (value.repeat_interleave(per_group) for value in (scale, bias))
    return F.group_norm(images, groups, scale, bias, node.attributes.get("epsilon", 1e-5))


@operator("LayerNormalization")
def layer_normalization(node: Node, inputs: Inputs) -> Value | tuple[Value, ...]:
    """Normalise over the last axes; also gives the mean and the inverse standard deviation where they are used."""
    value, scale, bias = required_tensor(inputs, 0), required_tensor(inputs, 1), optional_tensor(inputs, 2)
    epsilon = node.attributes.get("epsilon", 1e-5)
    axis = node.attributes.get("axis", -1) % value.ndim
    shape = list(value.shape[axis:])
    # The weights of a layer norm in PyTorch have the shape that is normalised; those of ONNX may broadcast to it.
    scale = scale if scale.ndim == len(shape) and list(scale.shape) == shape else scale.expand(shape)
    if bias is not None and list(bias.shape) != shape:
        bias = bias.expand(shape)
    normalised = F.layer_norm(value, shape, scale, bias, epsilon)
    if not any(node.outputs[1:]):
        return normalised
    axes = list(range(axis, value.ndim))
    variance, mean = torch.var_mean(value, axes, correction=0, keepdim=True)
    return normalised, mean, torch.rsqrt(variance + epsilon)


@operator("LRN")
def local_response_normalization(node: Node, inputs: Inputs) -> Value:
    """Divide by the energy of the neighbouring channels."""
    size, bias = node.attributes["size"], node.attributes.get("bias", 1.0)
    if size % 2 == 0:
        raise CaptureError(f"has size={size}; ONNX Runtime takes odd sizes only, so choose one")
    alpha, beta = node.attributes.get("alpha", 1e-4), node.attributes.get("beta", 0.75)
    return F.local_response_norm(required_tensor(inputs, 0), size, alpha, beta, bias)
