"""PyTorch as what computes, on any device."""

import torch
from torch import Tensor

from pathlens.attribution.pathway_gradient import PathwayRun, run_pathway
from pathlens.classifier.acceleration import accelerate
from pathlens.classifier.captured import CapturedClassifier
from pathlens.explainer.backend import BackendName, GenerationRun
from pathlens.explainer.transferred_runs import classify_transferred, run_transferred
from pathlens.generator.generator import PathwayGenerator
from pathlens.pathways.bank import ClassPathwayBank
from pathlens.pathways.pathway import Pathway
from pathlens.slicing.cache import SliceCache


class TorchBackend:
    """Runs the captured classifier, accelerated; see `Backend`.

    Args:
        classifier: The captured classifier.
        bank: The stored pathways and what stands in for removed neurons, on the device of the classifier.
        generator: On the device of the classifier; None without one.
        slice_bytes: Of all slices of stored pathways together; 0 slices nothing.
    """

    name: BackendName = "torch"

    def __init__(
        self,
        classifier: CapturedClassifier,
        bank: ClassPathwayBank,
        generator: PathwayGenerator | None,
        slice_bytes: int = 0,
    ) -> None:
        self._classifier = accelerate(classifier)
        self._bank = bank
        self._generator = generator
        self.slices = SliceCache(self._classifier, bank, slice_bytes)

    def logits(self, images: Tensor) -> Tensor:
        """Classify: f(x), float32 [B, K]."""
        with torch.no_grad():
            return self._classifier(images)

    def generate(self, images: Tensor) -> GenerationRun:
        """Classify, and generate pathways from what that pass computed anyway."""
        generator = self._generator
        assert generator is not None, "the bundle has a generator"  # noqa: S101
        trace = self._classifier.observe(images)
        return GenerationRun(
            trace.logits,
            lambda: generator.pathways(trace.activations, self._bank.replacement_of(trace.logits.argmax(1))),
        )

    def pathway_logits(self, images: Tensor, pathway: Pathway) -> Tensor:
        """Classify through pathways alone: f(x; m), float32 [B, K]."""
        with torch.no_grad():
            return self._classifier(images, pathway)

    def pathway_run(
        self, images: Tensor, target: Tensor, pathway: Pathway, with_contributions: bool = False
    ) -> PathwayRun:
        """Run the pathway network forward and backward."""
        return run_pathway(self._classifier, images, target, pathway, with_contributions)

    def transferred_logits(self, images: Tensor, target: Tensor) -> Tensor:
        """Classify through stored pathways alone: f(x; m), float32 [B, K]."""
        return classify_transferred(self, self._bank, images, target)

    def transferred_run(self, images: Tensor, target: Tensor) -> PathwayRun:
        """Run stored pathways forward and backward."""
        return run_transferred(self, self._bank, images, target)
