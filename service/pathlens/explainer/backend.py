"""What computes for the explainer: the passes of the network, whatever runs them."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, TypeVar

from torch import Tensor

from pathlens.attribution.pathway_gradient import PathwayRun
from pathlens.pathways.pathway import Pathway
from pathlens.slicing.cache import SliceCache

BackendName = Literal["torch", "onnxruntime"]
"""The names under which bundles and logs know the backends."""

LARGEST_RUN = 16
"""Rows in one pass of the network."""

_T = TypeVar("_T")


@dataclass(frozen=True, eq=False)
class GenerationRun:
    """A prediction that leaves behind what pathways are generated from.

    Attributes:
        logits: f(x), float32 [B, K].
        pathway: Returns the generated pathway of every image, with what stands in for removed neurons in images of its
            predicted class. It may compute it only now, so ask once, and only if it is wanted.
    """

    logits: Tensor
    pathway: Callable[[], Pathway]


class Backend(Protocol):
    """Runs the passes that explanations are made of, for one fitted classifier.

    Backends keep no state between calls but slices, and may be used from several threads. Images are preprocessed,
    float32 [B, C, H, W], B from 1 to `LARGEST_RUN`, and on the device of the classifier, as are all results. None of
    the passes checks whether its results are finite. A pass that finds no memory raises `MemoryError` or
    `torch.OutOfMemoryError`.
    """

    @property
    def name(self) -> BackendName:
        """Which one it is."""
        ...

    @property
    def slices(self) -> SliceCache:
        """Those of the stored pathways."""
        ...

    def logits(self, images: Tensor) -> Tensor:
        """Classify: f(x), float32 [B, K]."""
        ...

    def generate(self, images: Tensor) -> GenerationRun:
        """Classify, and generate the pathway of every image; only for a bundle with a generator."""
        ...

    def pathway_logits(self, images: Tensor, pathway: Pathway) -> Tensor:
        """Classify through pathways alone: f(x; m), float32 [B, K].

        Args:
            images: x.
            pathway: m, one for each image, of any granularity and ablation.
        """
        ...

    def pathway_run(
        self, images: Tensor, target: Tensor, pathway: Pathway, with_contributions: bool = False
    ) -> PathwayRun:
        """Classify through pathways alone, with the gradient of the target's logit.

        Args:
            images: x.
            target: The class t of each image, int64 [B].
            pathway: m, one for each image, of any granularity and ablation.
            with_contributions: Whether to compute the contributions within the pathways as well.
        """
        ...

    def transferred_logits(self, images: Tensor, target: Tensor) -> Tensor:
        """Classify through stored pathways alone, as `pathway_logits` does but for rounding.

        Args:
            images: x.
            target: A class with a stored pathway for each image, int64 [B].
        """
        ...

    def transferred_run(self, images: Tensor, target: Tensor) -> PathwayRun:
        """Classify through the stored pathways of the targets, as `pathway_run` does but for rounding.

        Args:
            images: x.
            target: A class t with a stored pathway for each image, int64 [B].
        """
        ...


def chunks(values: Sequence[_T]) -> Iterator[Sequence[_T]]:
    """Yield the values in parts that fit one pass."""
    for start in range(0, len(values), LARGEST_RUN):
        yield values[start : start + LARGEST_RUN]
