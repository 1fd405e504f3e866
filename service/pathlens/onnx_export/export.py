"""Writing an explainer: the graph and what must be known of it, in one file."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import onnx

from pathlens.errors import ExplainerFileError, ExportError
from pathlens.explanation import PathwaySource
from pathlens.files import write_whole
from pathlens.onnx_export.graph_file import DEFAULT_OPSET
from pathlens.onnx_export.graphs import explanation_graph
from pathlens.onnx_export.metadata import ExplainerMetadata, read_metadata
from pathlens.onnx_export.subject import ExplainedClassifier
from pathlens.version import __version__


@dataclass(frozen=True)
class GraphTensor:
    """An input or output of a graph.

    Attributes:
        name: What the graph calls it.
        kind: Type of its elements, as numpy names it.
        shape: Sizes; the batch is a name.
    """

    name: str
    kind: str
    shape: tuple[int | str, ...]


@dataclass(frozen=True)
class ExportedExplainer:
    """What was written.

    Attributes:
        path: The file.
        size: Its bytes.
        sha256: Their hash; the same bundle gives the same one.
        opset: Version of the ONNX operators.
        inputs: Of the graph.
        outputs: Of the graph.
    """

    path: Path
    size: int
    sha256: str
    opset: int
    inputs: tuple[GraphTensor, ...]
    outputs: tuple[GraphTensor, ...]


def export_explainer(
    subject: ExplainedClassifier, metadata: ExplainerMetadata, path: Path, opset: int = DEFAULT_OPSET
) -> ExportedExplainer:
    """Write the whole explanation as one ONNX file, which appears whole or not at all.

    Args:
        subject: Classifier, class pathways and generator.
        metadata: What the file says of itself; its sources are computed by the graph.
        path: The file; an earlier explainer there is replaced.
        opset: Version of the ONNX operators to use.

    Raises:
        ExportError: If the path is taken by something else, a source cannot be had, or the classifier cannot be
            written as an ONNX graph.
    """
    check_destination(path)
    check_sources(subject, metadata.sources)
    # Opened first, so that a folder in which nothing may be written shows before the work.
    with write_whole(path) as file:
        model = explanation_graph(subject, metadata.sources, opset)
        model.producer_version = __version__
        onnx.helper.set_model_props(model, metadata.to_properties())
        content = model.SerializeToString(deterministic=True)
        file.write(content)
    return ExportedExplainer(
        path,
        len(content),
        hashlib.sha256(content).hexdigest(),
        next(entry.version for entry in model.opset_import if not entry.domain),
        tuple(_tensor(value) for value in model.graph.input),
        tuple(_tensor(value) for value in model.graph.output),
    )


def available_sources(subject: ExplainedClassifier) -> tuple[PathwaySource, ...]:
    """Return the sources of pathways that an exported explainer of this subject can have."""
    stored = (PathwaySource.TRANSFERRED,) if len(subject.bank) else ()
    generated = (PathwaySource.GENERATED,) if subject.generator is not None else ()
    return (*stored, *generated)


def check_sources(subject: ExplainedClassifier, sources: tuple[PathwaySource, ...]) -> None:
    """Check that pathways of these sources can be had.

    Raises:
        ExportError: If there is none, or one cannot be had.
    """
    reasons = {
        PathwaySource.TRANSFERRED: "no class has a stored pathway; fit it with more images",
        PathwaySource.GENERATED: "it has no generator; fit it with --source generated",
    }
    available = available_sources(subject)
    for source in sources or reasons:
        if source not in available:
            reason = reasons.get(source, "a graph cannot select neurons by their contributions")
            raise ExportError(f"The bundle cannot explain with {source.value} pathways: {reason}.")


def check_destination(path: Path) -> None:
    """Check that an explainer can be written to this path, before the work of making it.

    Raises:
        ExportError: If the path exists and is not an explainer, such as the ONNX file of the classifier itself.
    """
    if not path.exists():
        return
    try:
        read_metadata(path)
    except ExplainerFileError as error:
        raise ExportError(
            f"{path} exists and is not an exported explainer; choose another path or remove it."
        ) from error


def _tensor(value: onnx.ValueInfoProto) -> GraphTensor:
    kind = value.type.tensor_type
    return GraphTensor(
        value.name,
        onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type).name,
        tuple(size.dim_param or size.dim_value for size in kind.shape.dim),
    )
