"""The explainer's computations as functions of tensors alone, to be followed by a tracer.

Everything is computed by the code that the explainer uses; only its checks of values, which a graph cannot make, and
its choices between images, which become look-ups in tables, are different here.
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from pathlens.classifier.fusion import fuse
from pathlens.explanation import PathwaySource
from pathlens.onnx_export import signature
from pathlens.onnx_export.subject import ExplainedClassifier
from pathlens.pathways.pathway import ZERO, Pathway, from_flat, mask_shape
from pathlens.pathways.replacement import Replacement

Outputs = dict[str, Tensor]
"""Tensors by the names of the graph's outputs."""

EXPORTED_SOURCES = (PathwaySource.TRANSFERRED, PathwaySource.GENERATED)
"""The sources whose pathways a graph can make."""


class ExplanationNetwork:
    """The computations of the exported graphs.

    Args:
        subject: What is explained.
    """

    def __init__(self, subject: ExplainedClassifier) -> None:
        self._classifier = fuse(subject.classifier)
        self._bank = subject.bank
        self._generator = subject.generator

    @property
    def tensors(self) -> dict[str, Tensor]:
        """The weights by name: the classifier's own names, and the generator's after "generator."."""
        own = dict(self._classifier.weights)
        made = {} if self._generator is None else self._generator.state_dict(prefix="generator.")
        return {**own, **made}

    def explain(self, sources: Sequence[PathwaySource]) -> Callable[[Tensor], Outputs]:
        """Return the function of the whole explanation of the top class.

        Args:
            sources: Where the pathways come from; one after the other, each gets a mask, logits and a map.
        """
        masks, rows, stored = self._tables() if PathwaySource.TRANSFERRED in sources else 3 * (torch.empty(0),)

        def explanation(image: Tensor) -> Outputs:
            trace = self._classifier.observe(image)
            top_class = trace.logits.argmax(1)
            replacement = self._bank.replacement_of(top_class)
            outputs = {signature.LOGITS: trace.logits, signature.TOP_CLASS: top_class}
            for source in sources:
                if source is PathwaySource.TRANSFERRED:
                    outputs[signature.available_output(source)] = stored[top_class]
                    pathway = self._pathway(masks[rows[top_class]], replacement)
                else:
                    assert self._generator is not None, "the sources were checked"  # noqa: S101
                    pathway = self._generator.pathways(trace.activations, replacement)
                logits, gradient = self._run(image, top_class, pathway)
                outputs[signature.mask_output(source)] = pathway.flat()
                outputs[signature.logits_output(source)] = logits
                outputs[signature.map_output(source)] = gradient
            return outputs

        return explanation

    def predict(self, image: Tensor) -> Outputs:
        """Classify."""
        with torch.no_grad():
            return {signature.LOGITS: self._classifier(image)}

    def generate(self, image: Tensor) -> Outputs:
        """Classify and generate the pathway of every image."""
        assert self._generator is not None, "asked of bundles with a generator"  # noqa: S101
        trace = self._classifier.observe(image)
        pathway = self._generator.pathways(trace.activations)
        return {signature.LOGITS: trace.logits, signature.MASK: pathway.flat()}

    def run(self, image: Tensor, target: Tensor, mask: Tensor, replacement: Tensor | None = None) -> Outputs:
        """Run the pathway network forward and backward.

        Args:
            image: float32 [batch, C, H, W].
            target: The class of each image that is explained, int64 [batch].
            mask: As `Pathway.flat` returns it, bool [batch, N].
            replacement: What stands in for removed neurons, one tap after the other, float32 [batch, R]; None for
                zeros.
        """
        logits, gradient = self._run(image, target, self._pathway(mask, self._unflatten(replacement)))
        return {signature.LOGITS: logits, signature.MAP: gradient}

    @property
    def replacement_size(self) -> int:
        """Number of replacement values of one image, R; 0 for zeros."""
        return sum(value[0].numel() for value in self._bank.replacement.values)

    @property
    def neurons(self) -> int:
        """Number of neurons, N."""
        shapes = [mask_shape(tap, self._bank.granularity) for tap in self._classifier.taps]
        return sum(math.prod(shape) for shape in shapes)

    def _tables(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return the masks of the classes that have one and an empty mask, the row of each class, and who has one."""
        classes = range(self._classifier.classes)
        known = [label for label in classes if label in self._bank]
        masks = torch.zeros(len(known) + 1, self.neurons, dtype=torch.bool)
        rows = torch.full((len(classes),), len(known))
        if known:
            masks[:-1] = self._bank.transfer(known).flat()
            rows[known] = torch.arange(len(known))
        return masks, rows, rows < len(known)

    def _run(self, image: Tensor, target: Tensor, pathway: Pathway) -> tuple[Tensor, Tensor]:
        leaf = image.detach().requires_grad_()
        with torch.enable_grad():
            logits = self._classifier(leaf, pathway)
            total = logits.gather(1, target[:, None]).sum()
        (gradient,) = torch.autograd.grad(total, (leaf,), allow_unused=True, materialize_grads=True)
        return logits.detach(), gradient

    def _pathway(self, flat: Tensor, replacement: Replacement) -> Pathway:
        return from_flat(flat, self._classifier.taps, self._bank.granularity, replacement)

    def _unflatten(self, values: Tensor | None) -> Replacement:
        if values is None:
            return ZERO
        shapes = [value.shape[1:] for value in self._bank.replacement.values]
        parts = torch.split(values, [shape.numel() for shape in shapes], dim=1)
        return Replacement(
            self._bank.replacement.ablation,
            tuple(part.reshape(-1, *shape) for part, shape in zip(parts, shapes, strict=True)),
        )
