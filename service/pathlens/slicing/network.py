"""The computation of a slice, of which nothing stays in memory once it is forgotten."""

import linecache
from collections.abc import Callable, Mapping
from types import SimpleNamespace

import torch
from torch import Tensor
from torch.fx.graph_module import _loader

from pathlens.classifier.convolution import FASTER
from pathlens.classifier.program import Program, build_graph
from pathlens.classifier.recording import at_least_float32

_BYTES_OF_CALL = 2000
"""Of Python objects for each call of a program: `tracemalloc` counts 1300 to 1800 in slices of 16 to 39 calls."""


class Network:
    """A program without taps, with its weights.

    PyTorch never forgets the source that it generates for a graph, and graphs are cycles of references, which keep
    their weights until the garbage collector runs. Slices come and go, so that only the generated function is kept.

    Args:
        program: The computation.
        weights: Its weights by name, all on one device.
    """

    def __init__(self, program: Program, weights: Mapping[str, Tensor]) -> None:
        self.program = program
        self.weights = dict(weights)
        module = build_graph(program, weights, FASTER)
        self._forward: Callable[..., Tensor] = type(module).forward
        # The function reads weights as attributes of its first argument.
        buffers = dict(module.named_buffers())
        self._attributes = SimpleNamespace(**buffers)
        for name in buffers:
            delattr(module, name)
        source = type(module).forward.__code__.co_filename
        _loader.eval_cache.pop(source, None)
        linecache.cache.pop(source, None)

    @property
    def bytes(self) -> int:
        """Of the weights and of the Python objects."""
        weights = sum(weight.nbytes for weight in self.weights.values())
        return weights + _BYTES_OF_CALL * len(self.program.calls)

    def to(self, device: torch.device) -> "Network":
        """Return the same network on a device."""
        if all(weight.device == device for weight in self.weights.values()):
            return self
        return Network(self.program, {name: weight.to(device) for name, weight in self.weights.items()})

    def __call__(self, images: Tensor) -> Tensor:
        """Return logits, float32 [B, K], float64 in double precision, of images [B, C, H, W] on the same device."""
        floating = (weight.dtype for weight in self.weights.values() if weight.is_floating_point())
        return at_least_float32(self._forward(self._attributes, images.to(next(floating, torch.float32)), None))
