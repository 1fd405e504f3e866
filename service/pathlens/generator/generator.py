"""The pathway generator: from the activations of a run to the pathway of every image."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pathlens.classifier.captured import CapturedClassifier
from pathlens.classifier.taps import Tap
from pathlens.explanation import Granularity
from pathlens.generator.pathway_distillation_network import PathwayDistillationNetwork
from pathlens.generator.recursive_feature_embedder import RecursiveFeatureEmbedder
from pathlens.generator.recursive_pathway_decoder import RecursivePathwayDecoder
from pathlens.pathways.pathway import ZERO, Pathway
from pathlens.pathways.replacement import Replacement

LARGEST_WIDTH = 64
SMALLEST_BUDGET = 1_000_000
"""Parameters that a generator may always have; above it, a twentieth of the classifier's."""


@dataclass(frozen=True, eq=False)
class Generation:
    """What a generator says of a batch.

    Attributes:
        scores: One tensor per tap, [B, C] or [B, ...]; a neuron is kept if its score is above 0.
        class_logits: What the class-relevant code says of the class, [B, K].
    """

    scores: tuple[Tensor, ...]
    class_logits: Tensor


class PathwayGenerator(nn.Module):
    """GEN-CNP (arXiv 2309.09887): RFE, PDN and RPD over the taps of one classifier.

    Args:
        taps: The taps of the classifier.
        scales: Mean magnitude of each channel over many images, one tensor [C] per tap.
        classes: Number of classes, K.
        granularity: What counts as one neuron.
        width: Size of code and embeddings.
    """

    def __init__(
        self, taps: tuple[Tap, ...], scales: Sequence[Tensor], classes: int, granularity: Granularity, width: int
    ) -> None:
        super().__init__()
        self.taps = taps
        self.granularity = granularity
        self.width = width
        # A channel that is silent in all images says nothing, and must not be divided by nothing.
        scales = [torch.maximum(scale, 1e-3 * scale.mean() + 1e-12) for scale in scales]
        self.embedder = RecursiveFeatureEmbedder(taps, scales, width)
        self.distiller = PathwayDistillationNetwork(width, classes)
        self.decoder = RecursivePathwayDecoder(taps, scales, width, granularity)

    @classmethod
    def for_classifier(
        cls, classifier: CapturedClassifier, scales: Sequence[Tensor], granularity: Granularity
    ) -> "PathwayGenerator":
        """Make an untrained generator, as wide as its budget of parameters allows.

        The budget is a twentieth of the classifier's parameters or a million, whichever is larger.
        """
        budget = max(SMALLEST_BUDGET, sum(weight.numel() for weight in classifier.weights.values()) // 20)
        # The number of parameters is that of a polynomial in the width; the largest that fits is found by looking.
        for width in range(LARGEST_WIDTH, 0, -4):
            with torch.device("meta"):
                size = cls(
                    classifier.taps,
                    [torch.ones(tap.channels) for tap in classifier.taps],
                    classifier.classes,
                    granularity,
                    width,
                ).parameter_count
            if size <= budget or width == 4:
                return cls(classifier.taps, scales, classifier.classes, granularity, width)
        raise AssertionError("a width of 4 is always taken")

    @classmethod
    def from_state(
        cls, classifier: CapturedClassifier, granularity: Granularity, width: int, state: Mapping[str, Tensor]
    ) -> "PathwayGenerator":
        """Make a trained generator from what `state_dict` returned.

        Raises:
            RuntimeError: If the state is of another classifier or width.
        """
        scales = [torch.ones(tap.channels) for tap in classifier.taps]
        generator = cls(classifier.taps, scales, classifier.classes, granularity, width)
        generator.load_state_dict(dict(state))
        return generator.frozen()

    @property
    def parameter_count(self) -> int:
        """Number of parameters."""
        return sum(parameter.numel() for parameter in self.parameters())

    def frozen(self, device: torch.device | str | None = None) -> "PathwayGenerator":
        """Return a copy that is not trained any more, on a device; this one stays where it is."""
        return copy.deepcopy(self).to(device).eval().requires_grad_(False)

    def forward(self, activations: Sequence[Tensor]) -> Generation:
        """Score the neurons of every image.

        Args:
            activations: The outputs of the taps, one tensor [B, ...] each.
        """
        embeddings = self.embedder(activations)
        code, class_logits = self.distiller(embeddings)
        return Generation(tuple(self.decoder(code, embeddings, activations)), class_logits)

    def pathways(self, activations: Sequence[Tensor], replacement: Replacement = ZERO) -> Pathway:
        """Generate the pathway of the decision of every image; each finds its own sparsity.

        Args:
            activations: The outputs of the taps, one tensor [B, ...] each.
            replacement: What stands in for removed neurons, the same for all images or with a row for each.
        """
        with torch.no_grad():
            embeddings = self.embedder(activations)
            code, _ = self.distiller(embeddings)
            masks = self.decoder.masks(code, embeddings, activations)
        return Pathway(self.taps, tuple(masks), self.granularity, replacement)
