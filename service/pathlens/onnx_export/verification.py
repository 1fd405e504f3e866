"""Is an exported explainer equal to PyTorch? Every output is compared, image by image."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import Enum

import torch
from torch import Tensor

from pathlens.errors import ExplainerFileError
from pathlens.explanation import PathwaySource
from pathlens.onnx_export import signature
from pathlens.onnx_export.export import available_sources
from pathlens.onnx_export.kinks import KinkSearch, MapBeyond
from pathlens.onnx_export.measures import Measure
from pathlens.onnx_export.metadata import ExplainerMetadata
from pathlens.onnx_export.session import ExplainerSession
from pathlens.onnx_export.subject import ExplainedClassifier
from pathlens.onnx_export.torch_explanation import explain_with_torch

LARGEST_LIST = 5
"""Maps that no kink explains, after which no more maps are looked at: the graph differs."""

_COMPARABLE = ("labels", "preprocessing", "taps", "granularity", "ablation")
"""Metadata that must be as the bundle has it; its hashes are compared on their own."""


class Verdict(Enum):
    """Whether a graph is what PyTorch computes."""

    EQUAL = "equal"
    AT_KINKS = "equal_but_at_kinks"
    """Some maps differ, all of them because rounding falls on either side of a kink."""
    DIFFERS = "differs"


@dataclass(frozen=True)
class OutputComparison:
    """How far one output of the graph is from PyTorch's.

    Attributes:
        output: Its name.
        measure: What is measured of each image.
        largest: Of all images; infinite if a value is not finite.
        images_beyond: How many images are beyond the tolerance.
    """

    output: str
    measure: Measure
    largest: float
    images_beyond: int

    @property
    def equal(self) -> bool:
        """Whether no image is beyond the tolerance."""
        return self.images_beyond == 0


@dataclass(frozen=True)
class Verification:
    """What a comparison found.

    Attributes:
        images: How many were compared.
        batch_sizes: Sizes of the batches they came in.
        differing_metadata: What the file says of itself otherwise than the bundle.
        outputs: One comparison for each.
        maps_beyond: The maps that are not equal, as far as they were looked at; see `LARGEST_LIST`.
    """

    images: int
    batch_sizes: tuple[int, ...]
    differing_metadata: tuple[str, ...]
    outputs: tuple[OutputComparison, ...]
    maps_beyond: tuple[MapBeyond, ...]

    @property
    def verdict(self) -> Verdict:
        """Whether the graph is what PyTorch computes."""
        if self.differing_metadata or not all(output.equal or self.at_kinks(output) for output in self.outputs):
            return Verdict.DIFFERS
        return Verdict.AT_KINKS if self.maps_beyond else Verdict.EQUAL

    def at_kinks(self, output: OutputComparison) -> bool:
        """Tell of an output that is not equal whether it is the maps of a source, each of them at a kink."""
        maps = [each for each in self.maps_beyond if signature.map_output(each.source) == output.output]
        return sum(each.at_kink for each in maps) == output.images_beyond


def check_belongs(session: ExplainerSession, subject: ExplainedClassifier, expected: ExplainerMetadata) -> None:
    """Check that an explainer can be compared with a bundle.

    Args:
        session: The explainer.
        subject: Classifier, class pathways and generator of the bundle.
        expected: What an explainer of the bundle says of itself.

    Raises:
        ExplainerFileError: If it is of another classifier, or explains otherwise than the bundle can.
    """
    path, metadata = session.path, session.metadata
    if metadata.classifier_sha256 != expected.classifier_sha256:
        raise ExplainerFileError(
            f"{path} explains classifier {metadata.classifier_sha256}, and the bundle {expected.name} holds "
            f"{expected.classifier_sha256}; compare it with the bundle it was exported from ({metadata.name})."
        )
    if metadata.granularity is not expected.granularity:
        raise ExplainerFileError(
            f"{path} has pathways of {metadata.granularity.value}s, and the bundle {expected.name} has pathways of "
            f"{expected.granularity.value}s; export it again."
        )
    if missing := [source.value for source in metadata.sources if source not in available_sources(subject)]:
        raise ExplainerFileError(
            f"{path} has {' and '.join(missing)} pathways, and the bundle {expected.name} has none; export it again."
        )
    outputs = _output_names(metadata.sources)
    if set(session.outputs) != set(outputs):
        raise ExplainerFileError(
            f"{path} has the outputs {', '.join(session.outputs)}; expected {', '.join(outputs)}: export it again."
        )


def verify(
    session: ExplainerSession,
    subject: ExplainedClassifier,
    expected: ExplainerMetadata,
    batches: Iterable[tuple[Sequence[str], Tensor]],
) -> Verification:
    """Run an explainer and PyTorch on the same batches and compare all outputs.

    Args:
        session: The explainer, for which `check_belongs` has passed.
        subject: Classifier, class pathways and generator of the bundle.
        expected: What an explainer of the bundle says of itself.
        batches: The names of images with the images preprocessed, float32 [B, C, H, W].

    Raises:
        ExplainerFileError: If the graph fails, or an output has another shape.
    """
    names = _output_names(session.metadata.sources)
    distances: dict[str, list[Tensor]] = {name: [] for name in names}
    beyond: list[MapBeyond] = []
    search = KinkSearch(session, subject)
    sizes: list[int] = []
    for images, inputs in batches:
        sizes.append(len(images))
        actual = session.run(inputs)
        explanation = explain_with_torch(subject, inputs, session.metadata.sources)
        for name in names:
            _check_shape(session, name, actual[name], explanation.outputs[name])
            distances[name].append(_measure(name).distances(actual[name], explanation.outputs[name]))
        for source in session.metadata.sources:
            far = distances[signature.map_output(source)][-1] > Measure.MAP.tolerance
            for row in far.nonzero()[:, 0].tolist():
                if sum(not each.at_kink for each in beyond) < LARGEST_LIST:
                    beyond.append(search.examine(images[row], source, row, inputs, actual, explanation))
    own = session.metadata
    return Verification(
        images=sum(sizes),
        batch_sizes=tuple(sorted(set(sizes))),
        differing_metadata=tuple(key for key in _COMPARABLE if getattr(own, key) != getattr(expected, key)),
        outputs=tuple(_summarise(name, torch.cat(parts)) for name, parts in distances.items()),
        maps_beyond=tuple(beyond),
    )


def _output_names(sources: Sequence[PathwaySource]) -> list[str]:
    names = [signature.LOGITS, signature.TOP_CLASS]
    for source in sources:
        names += [signature.mask_output(source), signature.logits_output(source), signature.map_output(source)]
        if source is PathwaySource.TRANSFERRED:
            names.append(signature.available_output(source))
    return names


def _measure(name: str) -> Measure:
    if name.endswith(signature.LOGITS):
        return Measure.LOGITS
    return Measure.MAP if name.endswith(signature.MAP) else Measure.ELEMENTS


def _summarise(name: str, distances: Tensor) -> OutputComparison:
    measure = _measure(name)
    return OutputComparison(name, measure, float(distances.max()), int((distances > measure.tolerance).sum()))


def _check_shape(session: ExplainerSession, name: str, actual: Tensor, expected: Tensor) -> None:
    if (actual.dtype, actual.shape) != (expected.dtype, expected.shape):
        raise ExplainerFileError(
            f"{session.path} puts out {name} as {actual.dtype} {list(actual.shape)}; expected {expected.dtype} "
            f"{list(expected.shape)}: export it again."
        )
