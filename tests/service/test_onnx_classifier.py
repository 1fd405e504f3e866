"""A classifier that exists only as an ONNX file: fitted, packed, served and explained over gRPC."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from numpy.typing import NDArray
from PIL import Image

from onnx_files import by_onnx_runtime, export, is_close, written
from pathlens.bundle.store import load_bundle
from pathlens.client import Client
from pathlens.demo.digits import DigitsClassifier
from pathlens.explanation import ExplanationOptions, ExplanationResult, Output, PathwaySource, Targets
from pathlens.gateway import GatewaySettings
from pathlens.serving import Service
from pathlens.torchserve import TorchServeSettings
from service.conftest import run_pathlens

CLASSES = 10
OUTPUTS = frozenset({Output.PATHWAY, Output.MAP, Output.FAITHFULNESS})
OPTIONS = {
    "transferred": ExplanationOptions(targets=Targets(top_k=2), outputs=OUTPUTS),
    "generated": ExplanationOptions(source=PathwaySource.GENERATED, outputs=OUTPUTS),
    "NeuronMCT": ExplanationOptions(source=PathwaySource.NEURON_MCT, sparsity=0.5, outputs=OUTPUTS, top_neurons=3),
}


@dataclass(frozen=True)
class ServedFile:
    """A running service, the file and the bundle that it came from, and images that neither has seen."""

    address: str
    file: Path
    bundle: Path
    images: tuple[Path, ...]

    def client(self) -> Client:
        return Client(self.address, "digits-onnx", timeout=60)


@pytest.fixture(scope="module")
def served(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServedFile]:
    folder = tmp_path_factory.mktemp("onnx")
    classifier, file, bundle = DigitsClassifier().eval(), folder / "digits.onnx", folder / "bundle"
    classifier.load_state_dict(safetensors.torch.load_file(digits / "classifier.safetensors"))
    written(export(classifier, example=torch.rand(2, 1, 8, 8)), file)
    run_pathlens(
        *("fit", "--classifier", file, "--images", digits / "images", "--held-out-images", digits / "validation"),
        *("--size", "8", "--colour", "grey", "--name", "digits-onnx", "--out", bundle, "--ablation", "mean"),
        *("--class-steps", "40", "--generator-steps", "30", "--workers", "0"),
    )
    run_pathlens("pack", bundle, "--model-store", folder / "store")
    images = tuple(sorted((digits / "held-out").glob("*/*.png"))[::40])
    settings = TorchServeSettings(archives=(folder / "store" / "digits-onnx.mar",))
    with Service(settings, GatewaySettings(port=0, metrics_port=0)) as service:
        yield ServedFile(service.address, file, bundle, images)


def test_predictions_over_grpc_are_those_of_onnx_runtime(served: ServedFile) -> None:
    with served.client() as client:
        for image in served.images:
            answer = logits(client.predict(image, predictions=CLASSES))
            assert is_close(answer, by_onnx_runtime(served.file, preprocessed(image)))


def test_explanations_over_grpc_have_the_logits_of_onnx_runtime(served: ServedFile) -> None:
    options = ExplanationOptions(predictions=CLASSES)
    with served.client() as client:
        for image in served.images:
            answer = logits(client.explain(image, options))
            assert is_close(answer, by_onnx_runtime(served.file, preprocessed(image)))


@pytest.mark.parametrize("source", OPTIONS)
def test_explanations_over_grpc_equal_those_in_process(served: ServedFile, source: str) -> None:
    explainer = load_bundle(served.bundle).explainer(version="1.0")
    expected = explainer.explain([image.read_bytes() for image in served.images], OPTIONS[source])
    with served.client() as client:
        for image, wanted in zip(served.images, expected, strict=True):
            assert_same(client.explain(image, OPTIONS[source]), wanted)


def test_taps_are_called_as_in_the_exported_network(served: ServedFile) -> None:
    with served.client() as client:
        assert [tap.name for tap in client.get_model().taps] == ["relu#1", "relu#2", "relu#3"]


def test_the_bundle_needs_the_file_no_more(served: ServedFile) -> None:
    names = {path.name for path in served.bundle.rglob("*")}
    assert names
    assert not [name for name in names if name.endswith(".onnx")]
    assert load_bundle(served.bundle).classifier.classes == CLASSES


def preprocessed(image: Path) -> torch.Tensor:
    with Image.open(image) as opened:
        pixels: NDArray[np.uint8] = np.asarray(opened)
    return torch.from_numpy(pixels.astype(np.float32) / 255)[None, None]


def logits(answer: ExplanationResult) -> torch.Tensor:
    """Put the predictions, which come with the most probable first, in the order of the classes."""
    assert len(answer.predictions) == CLASSES
    return torch.tensor([[found.logit for found in sorted(answer.predictions, key=lambda found: found.class_index)]])


def assert_same(answer: ExplanationResult, expected: ExplanationResult) -> None:
    assert len(answer.explanations) == len(expected.explanations) > 0
    for one, other in zip(answer.explanations, expected.explanations, strict=True):
        assert one.target.class_index == other.target.class_index
        assert [part.tap for part in one.pathway] == [part.tap for part in other.pathway]
        assert all(np.array_equal(a.mask, b.mask) for a, b in zip(one.pathway, other.pathway, strict=True))
        assert sum(part.kept for part in one.pathway) > 0
        assert one.map is not None
        assert other.map is not None
        assert np.linalg.norm(one.map - other.map) <= 1e-5 * np.linalg.norm(other.map) > 0
