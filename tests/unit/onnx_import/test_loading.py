"""ONNX files of PyTorch's two exporters: captured, they are what the network that was exported is."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from onnx_files import Exporter, by_onnx_runtime, exported, linear_model, node, written
from pathlens.attribution.pathway_gradient import pathway_gradient
from pathlens.classifier.capture import capture
from pathlens.classifier.captured import CapturedClassifier
from pathlens.classifier.program import Program
from pathlens.errors import CaptureError
from pathlens.onnx_import.loading import load_onnx_classifier
from pathlens.pathways.neuron_mct import neuron_mct
from small_networks import CLASSES, NETWORKS, SIDE, captured, images, original

# The newer exporter takes a second for each network; these are those that it writes in a way of its own.
BY_DYNAMO = ("residual", "gated")
BY_LEGACY = set(NETWORKS) - {"decisive", "normalised across channels"}
FILES: list[tuple[str, Exporter]] = [
    *((name, "legacy") for name in sorted(BY_LEGACY)),
    *((name, "dynamo") for name in BY_DYNAMO),
]


def loaded(content: bytes, folder: Path, example: Tensor | None = None) -> CapturedClassifier:
    example = images(2, seed=99) if example is None else example
    return capture(load_onnx_classifier(written(content, folder / "model.onnx"), example), example)


@pytest.fixture(scope="module")
def read(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, Exporter], CapturedClassifier]:
    folder = tmp_path_factory.mktemp("files")
    return {(name, exporter): loaded(exported(name, exporter), folder) for name, exporter in FILES}


Read = dict[tuple[str, Exporter], CapturedClassifier]


@pytest.mark.parametrize(("name", "exporter"), FILES)
class TestASmallNetwork:
    @pytest.mark.parametrize("batch", [1, 2, 3])
    def test_has_the_logits_of_onnx_runtime(self, read: Read, name: str, exporter: Exporter, batch: int) -> None:
        pixels = images(batch, seed=batch)
        expected = by_onnx_runtime(exported(name, exporter), pixels)
        torch.testing.assert_close(read[name, exporter](pixels), expected, rtol=0, atol=1e-4)

    def test_has_the_taps_of_the_original(self, read: Read, name: str, exporter: Exporter) -> None:
        taps = [(tap.name, tap.shape, tap.channel_dimension) for tap in read[name, exporter].taps]
        assert taps == [(tap.name, tap.shape, tap.channel_dimension) for tap in captured(name).taps]

    def test_comes_back_from_its_stored_form(self, read: Read, name: str, exporter: Exporter) -> None:
        classifier, pixels = read[name, exporter], images(3)
        restored = CapturedClassifier(Program.from_json(classifier.program.to_json()), classifier.weights)
        assert torch.equal(restored(pixels), classifier(pixels))
        assert restored.fingerprint == classifier.fingerprint

    def test_has_the_pathway_gradient_of_the_original(self, read: Read, name: str, exporter: Exporter) -> None:
        pixels, target = images(2, seed=5), torch.tensor([0, 3])
        pathway = neuron_mct(captured(name), pixels, target).select(0.5)
        expected = pathway_gradient(captured(name), pixels, target, pathway)
        actual = pathway_gradient(read[name, exporter], pixels, target, pathway)
        torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)
        assert expected.abs().max() > 1e-3


class TestNames:
    def test_of_weights_are_those_of_the_original(self, read: Read) -> None:
        assert set(read["plain", "legacy"].weights) == set(original("plain").state_dict())

    def test_that_pytorch_reserves_or_that_stand_for_two_things_do_no_harm(self, tmp_path: Path) -> None:
        nodes = [node("MatMul", "flat training", "a"), node("MatMul", "a training.0", "b"), node("Relu", "b", "c")]
        nodes += [node("MatMul", "c c:0", "d"), node("MatMul", "d c_0", "logits")]
        nodes[2].name = "model/forward/remarks"
        generator = np.random.default_rng(0)
        shapes: dict[str, tuple[int, int]] = {"training": (192, 5), "training.0": (5, 5), "c:0": (5, 5), "c_0": (5, 4)}
        arrays: dict[str, Any] = {
            name: generator.normal(size=shape).astype(np.float32) for name, shape in shapes.items()
        }
        model = linear_model(after=nodes, arrays=arrays)
        classifier = loaded(model.SerializeToString(), tmp_path)
        expected = by_onnx_runtime(model, images(3))
        torch.testing.assert_close(classifier(images(3)), expected, rtol=1e-4, atol=1e-4)
        assert classifier.taps[-1].name == "model.forward_.relu#1"


def test_a_file_whose_logits_are_rounding_errors_is_refused(tmp_path: Path) -> None:
    """Two ways to the same sum of large numbers: what is left differs with every order of adding them."""
    arrays = {"large": np.array(1e9, np.float32), "ones": np.ones((CLASSES, 3, SIDE, SIDE), np.float32)}
    nodes = [
        *(
            node("Mul", "positive large", "a"),
            node("Conv", "a ones", "b"),
            node("ReduceMean", "a", "c", axes=[1, 2, 3]),
        ),
        *(node("Mul", "c count", "d"), node("Sub", "b d", "logits")),
    ]
    arrays["count"] = np.array(3 * SIDE * SIDE, np.float32)
    with pytest.raises(CaptureError, match=r"differ from ONNX Runtime's by .* \(allowed"):
        loaded(linear_model(after=nodes, arrays=arrays).SerializeToString(), tmp_path)
