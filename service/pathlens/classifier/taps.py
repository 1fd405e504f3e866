"""Taps: the outputs of a classifier's activation functions, in call order."""

import re
from collections import Counter
from dataclasses import dataclass

from torch import fx

ACTIVATIONS = frozenset(
    {
        *("relu", "relu6", "leaky_relu", "prelu", "rrelu", "hardtanh"),
        *("gelu", "silu", "hardswish", "mish", "elu", "celu", "selu"),
        *("softplus", "tanh", "sigmoid", "hardsigmoid"),
    }
)
"""Names of the ATen operators that count as activation functions."""

_GATES = frozenset({"sigmoid", "hardsigmoid"})
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


def find_taps(graph: fx.Graph) -> tuple[Tap, ...]:
    """Find every call of an activation function in a functional ATen graph.

    A sigmoid whose result only multiplies other tensors is a gate (squeeze-and-excitation, a hand-written SiLU) and not
    a tap: it scales neurons and is none.
    """
    calls: Counter[str] = Counter()
    taps = []
    for node in graph.nodes:
        activation = _activation_name(node)
        if activation not in ACTIVATIONS or (activation in _GATES and _only_multiplies(node)):
            continue
        prefix = ".".join(filter(None, (owning_module(node), activation)))
        calls[prefix] += 1
        shape = tuple(int(size) for size in node.meta["val"].shape[1:])
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
    # PyTorch computes ReLU6 as a hard tangent between 0 and 6.
    is_relu6 = operator_name(node) == "hardtanh" and tuple(node.args[1:3]) == (0.0, 6.0)
    return "relu6" if is_relu6 else operator_name(node)


def _only_multiplies(node: fx.Node) -> bool:
    return bool(node.users) and all(operator_name(user) == "mul" for user in node.users)


def _channel_dimension(node: fx.Node, dimensions: int) -> int:
    producer = node
    while producer.all_input_nodes:
        producer = producer.all_input_nodes[0]
        name = operator_name(producer)
        if name in _CHANNELS_LAST:
            return dimensions - 1
        if name in _CHANNELS_FIRST:
            break
    return 0
