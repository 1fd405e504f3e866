"""The tiny bundle exported as an explainer, once for each kind, and damaged on purpose."""

import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import Tensor

from pathlens.explanation import Ablation, Granularity, PathwaySource
from pathlens.onnx_export.export import export_explainer
from pathlens.onnx_export.metadata import ExplainerMetadata
from pathlens.onnx_export.subject import ExplainedClassifier
from tiny_bundle import INPUT_SHAPE, tiny_bundle

BOTH = (PathwaySource.TRANSFERRED, PathwaySource.GENERATED)
BUNDLE_SHA256 = "b" * 64


def subject(
    granularity: Granularity = Granularity.CHANNEL, ablation: Ablation = Ablation.ZERO, seed: int = 0
) -> ExplainedClassifier:
    bundle = tiny_bundle(granularity, seed, ablation)
    return ExplainedClassifier(bundle.classifier, bundle.bank, bundle.generator)


def metadata(of: ExplainedClassifier, sources: Sequence[PathwaySource] = BOTH) -> ExplainerMetadata:
    bundle = tiny_bundle()
    return ExplainerMetadata.of(of, bundle.labels, bundle.preprocessing, bundle.name, BUNDLE_SHA256, sources)


@cache
def explainer_bytes(ablation: Ablation) -> bytes:
    """Return the content of the exported file, made once."""
    of = subject(ablation=ablation)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tiny.onnx"
        export_explainer(of, metadata(of), path)
        return path.read_bytes()


def images(count: int, seed: int = 0) -> Tensor:
    return torch.randn(count, *INPUT_SHAPE, generator=torch.Generator().manual_seed(seed))


def constant(model: onnx.ModelProto, values: NDArray[np.generic]) -> onnx.TensorProto:
    """Return the constant of a graph that holds these values."""
    for tensor in model.graph.initializer:
        held = onnx.numpy_helper.to_array(tensor)
        if held.dtype == values.dtype and np.array_equal(held.ravel(), values.ravel()):
            return tensor
    raise AssertionError(f"no constant of the graph holds the {values.size} values")


def replace(tensor: onnx.TensorProto, values: NDArray[np.generic]) -> None:
    """Put other values of the same type and number in the place of a constant's own."""
    tensor.CopyFrom(onnx.numpy_helper.from_array(values.reshape(tuple(tensor.dims)), tensor.name))
