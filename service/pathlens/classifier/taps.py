"""Taps: the outputs of a classifier's activation functions, in call order."""

import math
import re
from collections import Counter
from dataclasses import dataclass

from torch import Tensor, fx

ACTIVATIONS = frozenset(
    {
        *("relu", "relu6", "leaky_relu", "prelu", "rrelu", "hardtanh"),
        *("gelu", "silu", "hardswish", "mish", "elu", "celu", "selu"),
        *("softplus", "tanh", "sigmoid", "hardsigmoid"),
        *("threshold", "hardshrink", "softshrink", "glu"),
    }
)
"""Names of the ATen operators that count as activation functions."""

_GATES = frozenset({"sigmoid", "hardsigmoid"})
_SHAPE_ONLY = frozenset({"unsqueeze", "squeeze", "view", "reshape", "expand", "expand_as", "permute", "slice"})
_CHANNELS_LAST = frozenset({"linear", "matmul", "addmm", "bmm", "mm", "layer_norm"})
_CHANNELS_FIRST = frozenset({"conv1d", "conv2d", "conv3d", "convolution", "_native_batch_norm_legit_no_training"})


@dataclass(frozen=True)
class Tap:
    """One call of an activation function.

    Attributes:
        name: Owning module, function and number of the call within that module, such as "layer1.0.relu#2".
        activation: Name of the function.
        shape: Of the output, without the batch dimension.
        channel_dimension: Which dimension of `shape` counts the channels: 0 after convolutions, the last one after
            linear layers and layer norms, as in transformers and channels-last networks.
        node: Name of the call in the captured program.
    """

    name: str
    activation: str
    shape: tuple[int, ...]
    channel_dimension: int
    node: str

    @property
    def channels(self) -> int:
        """Number of feature maps."""
        return self.shape[self.channel_dimension]

    @property
    def units(self) -> int:
        """Number of scalars of one image."""
        return math.prod(self.shape)

    def spread(self, per_channel: Tensor) -> Tensor:
        """Shape one value per channel, [R, C], so that it broadcasts over an output of this tap, [R, ...]."""
        shape = [1] * len(self.shape)
        shape[self.channel_dimension] = self.channels
        return per_channel.view(-1, *shape)


def find_taps(graph: fx.Graph) -> tuple[Tap, ...]:
    """Find every call of an activation function in a functional ATen graph.

    A sigmoid whose result, in whatever shape, only multiplies other tensors is a gate (squeeze-and-excitation, a
    hand-written SiLU) and not a tap: it scales neurons and is none.
    """
    calls: Counter[str] = Counter()
    taps = []
    for node in graph.nodes:
        activation = _activation_name(node)
        if activation not in ACTIVATIONS or (activation in _GATES and _only_multiplies(node)):
            continue
        prefix = ".".join(filter(None, (owning_module(node), activation)))
        calls[prefix] += 1
        # A symbolic size must not be read as a number: that would fix it for the whole program. `capture` refuses it.
        shape = tuple(size if isinstance(size, int) else -1 for size in node.meta["val"].shape[1:])
        taps.append(
            Tap(f"{prefix}#{calls[prefix]}", activation, shape, _channel_dimension(node, len(shape)), node.name)
        )
    return tuple(taps)


def operator_name(node: fx.Node) -> str:
    """Return the name of the ATen operator that a node calls, without overload; empty for anything else."""
    packet = getattr(node.target, "overloadpacket", None) if node.op == "call_function" else None
    return packet.__name__ if packet is not None else ""


def owning_module(node: fx.Node) -> str:
    """Return the qualified name of the module whose forward made this call; empty for the classifier itself."""
    stack = list(node.meta.get("nn_module_stack", {}).values())
    # A module called a second time is recorded as "name@1"; the number of the call is counted by `find_taps` instead.
    return re.sub(r"@\d+", "", stack[-1][0]) if stack else ""


def _activation_name(node: fx.Node) -> str:
    # PyTorch computes ReLU6 as a hard tangent between 0 and 6, and some networks write ReLU as a clamp at 0.
    name, bounds = operator_name(node), tuple(node.args[1:3])
    if name in ("hardtanh", "clamp") and bounds == (0, 6):
        return "relu6"
    if name in ("clamp", "clamp_min") and bounds in ((0,), (0, None)):
        return "relu"
    return name


def _only_multiplies(node: fx.Node) -> bool:
    return bool(node.users) and all(
        operator_name(user) == "mul" or (operator_name(user) in _SHAPE_ONLY and _only_multiplies(user))
        for user in node.users
    )


def _channel_dimension(node: fx.Node, dimensions: int) -> int:
    """Return where the channels are in the output of `node`, not counting the batch dimension.

    The nearest convolution, linear layer or layer norm before it tells; permutations in between are followed.
    """
    producer, moves = node, list[list[int]]()
    while inputs := [value for value in producer.all_input_nodes if value.op != "get_attr"]:
        producer = inputs[0]
        name = operator_name(producer)
        if name in _CHANNELS_LAST or name in _CHANNELS_FIRST:
            break
        if name in ("permute", "transpose"):
            moves.append(_order_of_dimensions(producer))
    channel = producer.meta["val"].ndim - 1 if operator_name(producer) in _CHANNELS_LAST else 1
    for order in reversed(moves):
        channel = order.index(channel) if channel in order else channel
    return max(min(channel, dimensions), 1) - 1


def _order_of_dimensions(node: fx.Node) -> list[int]:
    """Return which dimension of its input each dimension of a permuted tensor is."""
    count = node.meta["val"].ndim
    if operator_name(node) == "permute":
        return [dimension % count for dimension in node.args[1]]  # type: ignore[union-attr]
    order = list(range(count))
    first, second = (int(dimension) % count for dimension in node.args[1:3])  # type: ignore[arg-type]
    order[first], order[second] = second, first
    return order
