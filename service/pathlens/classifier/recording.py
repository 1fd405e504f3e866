"""A run of which every value is kept, so that the network behind a tap can be run again on its own."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx

from pathlens.classifier.program import edit_tap


class Recording:
    """One forward pass with all its values.

    Args:
        module: The classifier as `pathlens.classifier.program.build_graph` makes it.
        images: Preprocessed, float32 [B, C, H, W].

    Attributes:
        logits: float32 [B, K].
        activations: The output of every tap, [B, ...].
    """

    def __init__(self, module: fx.GraphModule, images: Tensor) -> None:
        self._interpreter = fx.Interpreter(module, garbage_collect_values=False)
        with torch.no_grad():
            logits: Tensor = self._interpreter.run(images, None)
            # Another size of the batch tells which tensors have the batch first: a number of tokens may equal it.
            others = images[:1] if len(images) > 1 else images.repeat(2, 1, 1, 1)
            sizes = _FirstSizes(module)
            sizes.run(others, None)
        self._values: Mapping[fx.Node, Any] = self._interpreter.env
        self._has_batch_first = {
            node
            for node, size in sizes.sizes.items()
            if size == len(others) and self._values[node].shape[0] == len(images)
        }
        self._images = next(node for node in module.graph.nodes if node.op == "placeholder")
        self._vary = _behind(self._images)
        self._taps = [node for node in module.graph.nodes if node.target is edit_tap]
        self.logits = at_least_float32(logits)
        self.activations: tuple[Tensor, ...] = tuple(self._values[node] for node in self._taps)

    def run_tail(self, index: int, activation: Tensor, rows: Tensor) -> Tensor:
        """Run what lies behind a tap, and nothing else.

        Args:
            index: Number of the tap.
            activation: What the tap puts out, [R, ...].
            rows: Which of the B images each of the R rows belongs to, int64 [R]. What does not depend on the tap, such
                as the other branch of a residual sum, is taken from the recording of that image.

        Returns:
            Logits, float32 [R, K].

        Raises:
            ValueError: If the logits do not depend on the tap.
        """
        start = self._taps[index]
        values: dict[fx.Node, Any] = {start: activation}
        for node in _behind(start):
            if node.op == "output":
                logits: Tensor = self._value(node.all_input_nodes[0], values, rows)
                return at_least_float32(logits)
            values[node] = self._call(node, values, rows)
        raise ValueError(f"the logits do not depend on tap {index}")

    def _value(self, node: fx.Node, values: dict[fx.Node, Any], rows: Tensor) -> Any:
        """Return the value of a node in the run of a tail, from the recording if the tail does not change it."""
        if node not in values:
            recorded = self._values[node]
            if node is not self._images and node not in self._vary:
                values[node] = recorded
            elif node in self._has_batch_first:
                values[node] = recorded[rows]
            else:
                # Batch sizes, and tensors whose first dimension is not the batch, follow from their own inputs.
                values[node] = self._call(node, values, rows)
        return values[node]

    def _call(self, node: fx.Node, values: dict[fx.Node, Any], rows: Tensor) -> Any:
        # A nested function that called itself would be a cycle of references, which keeps all values until the garbage
        # collector runs: gigabytes, because tensors are few objects and large.
        value = partial(self._value, values=values, rows=rows)
        return node.target(*fx.map_arg(node.args, value), **fx.map_arg(node.kwargs, value))  # type: ignore[operator]


class _FirstSizes(fx.Interpreter):
    """Runs a module and notes the first dimension of every tensor."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.sizes: dict[fx.Node, int] = {}

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        if isinstance(result, Tensor) and result.ndim:
            self.sizes[n] = len(result)
        return result


def at_least_float32(logits: Tensor) -> Tensor:
    """Widen logits of half precision, in which a softmax over many classes would lose the small ones."""
    return logits if logits.dtype is torch.float64 else logits.float()


def _behind(start: fx.Node) -> dict[fx.Node, None]:
    """Return every node that depends on one, in order of execution."""
    reached = {start}
    behind: dict[fx.Node, None] = {}
    for node in start.graph.nodes:
        if any(source in reached for source in node.all_input_nodes):
            reached.add(node)
            behind[node] = None
    return behind
