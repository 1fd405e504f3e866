"""An ONNX graph as a PyTorch module."""

import re
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pathlens.errors import CaptureError
from pathlens.onnx_import.graph import Graph, Step
from pathlens.onnx_import.values import Value


class _Scope(nn.Module):
    """Stands where a module of the original classifier stood, so that `torch.export` notes its name."""

    def forward(self, step: Step, inputs: Sequence[Value | None]) -> tuple[Value, ...]:
        return step.run(inputs)


class OnnxNetwork(nn.Module):
    """Runs the nodes of an ONNX graph.

    Args:
        graph: The nodes and what is known.
        input_name: Name of the value that the images are.
        output_name: Name of the value that the logits are.
        channels_last: Whether the graph takes images as [B, H, W, C].
        remarks: What a user should know about how the file was read.

    Raises:
        CaptureError: If a weight is not float32.
    """

    def __init__(
        self, graph: Graph, input_name: str, output_name: str, channels_last: bool, remarks: tuple[str, ...] = ()
    ) -> None:
        super().__init__()
        self.remarks = remarks
        self._steps, self._channels_last = graph.steps, channels_last
        self._input_name, self._output_name = input_name, output_name
        # All modules stand before the first weight, so that no weight takes the name of one.
        self._scopes = {step.module: self._scope(step.module) for step in graph.steps}
        weights = {name: value for name, value in graph.constants.items() if isinstance(value, Tensor)}
        owners = {name: self._scope(name.rpartition(".")[0]) for name in weights}
        self._weights = {name: self._add_weight(name, owners[name], value) for name, value in weights.items()}
        self._numbers = {name: value for name, value in graph.constants.items() if name not in weights}

    def forward(self, images: Tensor) -> Tensor:
        """Compute logits.

        Args:
            images: float32 [B, C, H, W].

        Returns:
            What the graph gives; [B, K, 1, 1] is flattened to [B, K].

        Raises:
            CaptureError: If a node cannot take images of this shape.
        """
        values: dict[str, Value] = dict(self._numbers)
        values.update((name, self.get_buffer(path)) for name, path in self._weights.items())
        values[self._input_name] = images.permute(0, 2, 3, 1) if self._channels_last else images
        for step in self._steps:
            scope = self.get_submodule(self._scopes[step.module])
            inputs = [values[name] if name else None for name in step.node.inputs]
            # A root scope is the network itself, which must not be called within its own call.
            results = step.run(inputs) if scope is self else scope(step, inputs)
            values.update(zip(step.node.outputs, results, strict=False))
        logits = values[self._output_name]
        if not isinstance(logits, Tensor):
            raise CaptureError(f"The output {self._output_name!r} does not depend on the images; choose another one.")
        if logits.ndim > 2 and all(size == 1 for size in logits.shape[2:]):
            return logits.flatten(1)
        return logits

    def _scope(self, name: str) -> str:
        """Make the module that a file calls so, and those around it; returns its path."""
        module: nn.Module = self
        path = []
        for part in filter(None, name.split(".")):
            part = _free(module, _identifier(part))
            if part not in module._modules:
                module.add_module(part, _Scope())
            module = module.get_submodule(part)
            path.append(part)
        return ".".join(path)

    def _add_weight(self, name: str, owner: str, value: Tensor) -> str:
        if value.dtype != torch.float32:
            raise CaptureError(
                f"The weight {name!r} is {str(value.dtype).removeprefix('torch.')}; pathlens computes in float32. "
                "Export the classifier in float32, such as by model.float()."
            )
        module, leaf = self.get_submodule(owner), _identifier(name.rpartition(".")[2])
        while hasattr(module, leaf):
            leaf += "_"
        module.register_buffer(leaf, value)
        return f"{owner}.{leaf}".removeprefix(".")


def _identifier(name: str) -> str:
    return re.sub(r"\W", "_", name) or "_"


def _free(module: nn.Module, name: str) -> str:
    # "forward" and the like would be no names of modules in PyTorch, but these may come from elsewhere.
    while name not in module._modules and hasattr(module, name):
        name += "_"
    return name
