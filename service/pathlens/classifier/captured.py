"""A production classifier, captured once: the same logits, with every activation open to reading and editing."""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType
from typing import Any, Protocol

import safetensors.torch
import torch
from torch import Tensor

from pathlens.classifier.program import Program, build_graph
from pathlens.classifier.recording import Recording, at_least_float32
from pathlens.classifier.taps import Tap

TapEdit = Callable[[int, Tensor], Tensor]
"""Receives a tap's number and its output [B, ...] and returns what takes the output's place."""


class TapEditor(Protocol):
    """Anything that edits the taps of a run, such as a pathway."""

    def edit(self, index: int, activation: Tensor) -> Tensor:
        """Return what takes the place of the output of tap `index`."""
        ...


@dataclass(frozen=True)
class Trace:
    """A run with its activations.

    Attributes:
        logits: float32 [B, K].
        activations: One tensor [B, ...] per tap; where gradients are wanted, part of the autograd graph of the logits.
    """

    logits: Tensor
    activations: tuple[Tensor, ...]


class CapturedClassifier:
    """A frozen classifier with named taps.

    Calls keep no state: one instance may be used from several threads.

    Args:
        program: The computation.
        weights: Its weights by qualified name.
        faster: What computes the same as operators of these names and is called in their place.
    """

    def __init__(
        self,
        program: Program,
        weights: Mapping[str, Tensor],
        faster: Mapping[str, Callable[..., Any]] = MappingProxyType({}),
    ) -> None:
        self.program = program
        self._weight_names = tuple(weights)
        self._faster = faster
        self._module = build_graph(program, weights, faster)
        self._fingerprint = ""

    @property
    def taps(self) -> tuple[Tap, ...]:
        """The outputs of the activation functions, in call order."""
        return self.program.taps

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """(channels, height, width)."""
        return self.program.input_shape

    @property
    def classes(self) -> int:
        """Number of classes, K."""
        return self.program.classes

    @cached_property
    def device(self) -> torch.device:
        """Where the weights are and inputs must be; the CPU for a classifier without weights."""
        weight = next(self._module.buffers(), None)
        return weight.device if weight is not None else torch.device("cpu")

    @cached_property
    def dtype(self) -> torch.dtype:
        """What the classifier computes in: float32 unless `to` changed it."""
        floating = (weight.dtype for weight in self._module.buffers() if weight.is_floating_point())
        return next(floating, torch.float32)

    @property
    def weights(self) -> dict[str, Tensor]:
        """The weights by qualified name."""
        return dict(zip(self._weight_names, self._module.buffers(), strict=True))

    @cached_property
    def in_float64(self) -> "CapturedClassifier":
        """The same classifier in double precision, made once."""
        return self.to(dtype=torch.float64)

    @property
    def fingerprint(self) -> str:
        """SHA-256 of program and weights in hexadecimal: equal for equal classifiers on any machine."""
        if not self._fingerprint:
            digest = hashlib.sha256(self.program.to_json().encode())
            digest.update(self.weights_bytes())
            self._fingerprint = digest.hexdigest()
        return self._fingerprint

    def weights_bytes(self) -> bytes:
        """Return the weights in safetensors format."""
        return safetensors.torch.save({name: weight.cpu().contiguous() for name, weight in self.weights.items()})

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> "CapturedClassifier":
        """Return the same classifier on a device or in another precision; this one stays as it is.

        Args:
            device: Where to compute; None stays.
            dtype: bfloat16, float32 or float64; None stays. Images may have any precision and are converted.
        """
        device, dtype = torch.device(device or self.device), dtype or self.dtype
        if (self.device, self.dtype) == (device, dtype):
            return self
        weights = {
            name: weight.to(device, dtype if weight.is_floating_point() else weight.dtype)
            for name, weight in self.weights.items()
        }
        return CapturedClassifier(self.program, weights, self._faster)

    def __call__(self, images: Tensor, pathway: TapEditor | None = None) -> Tensor:
        """Classify, through the whole classifier or through a pathway alone.

        Args:
            images: Preprocessed, float32 [B, C, H, W].
            pathway: What is left of the network; None for all of it.

        Returns:
            Logits, float32 [B, K]; float64 if the classifier computes in float64.

        Raises:
            ValueError: If `images` has another shape.
        """
        return self.run(images, pathway.edit if pathway is not None else None)

    def run(self, images: Tensor, edit: TapEdit | None = None) -> Tensor:
        """Classify while `edit` replaces the output of each tap; returns logits as `__call__` does."""
        self._check(images)
        logits: Tensor = self._module(images.to(self.dtype), edit)
        return at_least_float32(logits)

    def observe(self, images: Tensor) -> Trace:
        """Classify and note what every tap passed on, without gradients.

        Args:
            images: float32 [B, C, H, W].

        Raises:
            ValueError: If `images` has another shape.
        """
        activations: list[Tensor] = []

        def note(_index: int, activation: Tensor) -> Tensor:
            activations.append(activation)
            return activation

        with torch.no_grad():
            logits = self.run(images, note)
        return Trace(logits, tuple(activations))

    def record(self, images: Tensor) -> Recording:
        """Classify and keep every value, to run the network behind single taps again.

        Raises:
            ValueError: If `images` has another shape, or inference mode is on.
        """
        self._check(images)
        _check_mode()
        return Recording(self._module, images.to(self.dtype))

    def trace(self, images: Tensor, pathway: TapEditor | None = None) -> Trace:
        """Classify and record what every tap passed on, with the graph that gradients need.

        Args:
            images: float32 [B, C, H, W].
            pathway: Edits the taps first; what is recorded is what it returned.

        Raises:
            ValueError: If `images` has another shape, or inference mode is on.
        """
        _check_mode()
        activations: list[Tensor] = []

        def record(index: int, activation: Tensor) -> Tensor:
            if pathway is not None:
                activation = pathway.edit(index, activation)
            if not activation.requires_grad:
                activation = activation.requires_grad_()
            activations.append(activation)
            return activation

        with torch.enable_grad():
            logits = self.run(images, record)
        return Trace(logits, tuple(activations))

    def _check(self, images: Tensor) -> None:
        if images.ndim != 4 or tuple(images.shape[1:]) != self.input_shape:
            raise ValueError(
                f"images have shape {list(images.shape)}; expected [batch, {', '.join(map(str, self.input_shape))}]"
            )


def _check_mode() -> None:
    if torch.is_inference_mode_enabled():
        raise ValueError("gradients cannot be computed inside torch.inference_mode(); use torch.no_grad() instead")
