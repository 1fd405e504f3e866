"""`pathlens fit` of ONNX files: a bundle like any other, or a clear refusal that leaves nothing behind."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from click.testing import CliRunner, Result
from onnx import TensorProto
from torch import Tensor, nn

from onnx_files import EXPORTERS, Exporter, by_onnx_runtime, export, exported, linear_model, node, value, written
from pathlens.bundle.store import load_bundle
from pathlens.cli import main
from small_networks import CLASSES, SIDE, Residual, captured, images, seeded

FIT = (
    *("fit", "--classifier", "model.onnx", "--images", "images.npz", "--out", "bundle", "--size", str(SIDE)),
    *("--mean", "0.5,0.5,0.5", "--std", "0.1,0.1,0.1", "--minimum-images", "1", "--workers", "0"),
    *("--generator-steps", "2", "--class-steps", "2", "--training-batch", "8"),
)


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder with images, as the current folder."""
    pixels = np.random.default_rng(0).integers(0, 128, (40, SIDE, SIDE, 3), np.uint8)
    # Of three colours, so that the classifiers see several classes.
    pixels[np.arange(40), :, :, np.arange(40) % 3] += 100
    np.savez(tmp_path / "images.npz", images=pixels)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path.copy())
    monkeypatch.setenv("COLUMNS", "250")


def run(model: bytes | onnx.ModelProto | None, *arguments: str) -> Result:
    if model is not None:
        written(model, Path("model.onnx"))
    return CliRunner().invoke(main, [*FIT, *arguments])


def refused(model: bytes | onnx.ModelProto | None, *arguments: str) -> str:
    """Fit in vain; returns what is said, after a check that nothing is left behind."""
    result = run(model, *arguments)
    assert result.exit_code == 1, result.output
    assert {path.name for path in Path().iterdir()} <= {"images.npz", "model.onnx", "data"}
    assert "Traceback" not in result.output
    return result.stderr


class TestABundle:
    @pytest.mark.parametrize("exporter", EXPORTERS)
    def test_has_the_logits_of_onnx_runtime_and_the_taps_of_the_original(self, exporter: Exporter) -> None:
        result = run(exported("concatenating", exporter))
        assert result.exit_code == 0, result.output
        assert "Captured model.onnx: 4 classes, 2 taps" in result.stderr
        classifier = load_bundle(Path("bundle")).classifier
        expected = by_onnx_runtime(exported("concatenating", exporter), images(3))
        torch.testing.assert_close(classifier(images(3)), expected, rtol=0, atol=1e-4)
        assert [tap.name for tap in classifier.taps] == [tap.name for tap in captured("concatenating").taps]

    def test_is_fitted_to_the_chosen_output_without_its_softmax(self) -> None:
        after = [node("Softmax", "linear", "classes"), node("ReduceSum", "linear", "sum")]
        model = linear_model(after=after, outputs=[value("sum", shape=(1, 1)), value("classes")])
        result = run(model, "--output-name", "classes", "--input-name", "image")
        assert result.exit_code == 0, result.output
        assert "Logits are the output 'classes' of 'sum', 'classes'." in result.stderr
        assert "Images are the input 'image' of 'image'." in result.stderr
        assert "Took off the Softmax at the end: what goes into it are the logits." in result.stderr
        logits = load_bundle(Path("bundle")).classifier(images(2))
        torch.testing.assert_close(logits.softmax(1), by_onnx_runtime(model, images(2), "classes"), rtol=0, atol=1e-5)

    def test_is_made_of_the_sizes_that_the_options_give(self) -> None:
        model = linear_model([node("Concat", "image image image", "pixels", axis=1)], shape=("n", 1, "h", "w"))
        result = run(model, "--colour", "grey", "--mean", "0.5", "--std", "0.1")
        assert result.exit_code == 0, result.output
        assert load_bundle(Path("bundle")).classifier.input_shape == (1, SIDE, SIDE)


WITHOUT_PACKAGES = """
import contextlib
import sys

# None in this table is how Python marks what cannot be imported.
sys.modules |= dict.fromkeys(["onnx", "onnxscript", "onnxruntime"])
from pathlens.cli import main

for source in ("model.onnx", "small_networks:Plain"):
    with contextlib.suppress(SystemExit):
        main([*sys.argv[1:], "--classifier", source])
"""


def test_only_an_onnx_file_needs_the_extra() -> None:
    written(linear_model(), Path("model.onnx"))
    # Without its labels, the second fit ends once the classifier is captured.
    command = [sys.executable, "-c", WITHOUT_PACKAGES, *FIT, "--labels", "missing.txt"]
    search = os.pathsep.join([str(Path(__file__).parents[2]), *filter(None, sys.path)])
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env={**os.environ, "PYTHONPATH": search}
    )
    assert "Reading model.onnx needs further packages; install them with: pip install 'pathlens[onnx]'" in done.stderr
    assert "Captured small_networks:Plain: 4 classes, 2 taps" in done.stderr


class Dropping(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.dropout, self.linear = nn.Conv2d(3, 16, 1), nn.Dropout(0.5), nn.Linear(16, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.linear(self.dropout(torch.relu(self.conv(x)).mean((2, 3))))
        return logits


class TestARefusal:
    def test_names_a_missing_file(self) -> None:
        assert "model.onnx does not exist" in refused(None)

    def test_names_a_damaged_file(self) -> None:
        assert "truncated" in refused(exported("concatenating")[:1000])

    def test_names_missing_external_data(self) -> None:
        onnx.save(linear_model(), "model.onnx", save_as_external_data=True, location="data", size_threshold=0)
        Path("data").unlink()
        assert "external data must be a file in the same folder" in refused(None)

    def test_names_the_flag_that_chooses_an_output(self) -> None:
        after = [node("Identity", "linear", "logits"), node("Identity", "linear", "others")]
        assert "--output-name" in refused(linear_model(after=after, outputs=[value("logits"), value("others")]))

    def test_names_the_flags_of_the_size(self) -> None:
        assert "--size and --colour" in refused(linear_model(), "--size", "16")

    # The newer exporter writes batch norm in its evaluation form whatever the mode.
    @pytest.mark.parametrize(
        ("network", "exporter"), [(Residual, "legacy"), (Dropping, "legacy"), (Dropping, "dynamo")]
    )
    def test_asks_for_evaluation_mode_where_the_file_trains(
        self, network: Callable[[], nn.Module], exporter: Exporter
    ) -> None:
        assert "evaluation mode" in refused(export(seeded(network).train(), exporter))

    def test_names_an_operator_that_cannot_be_read(self) -> None:
        nodes = [node("RandomNormalLike", "image", "pixels")]
        assert "RandomNormalLike of opset 17 in node 'RandomNormalLike of pixels'" in refused(linear_model(nodes))

    def test_names_logits_that_are_none(self) -> None:
        cast = [node("Cast", "linear", "logits", to=TensorProto.INT64)]
        model = linear_model(after=cast, outputs=[value("logits", TensorProto.INT64)])
        assert "expected logits" in refused(model)

    def test_says_that_other_classifiers_have_no_names_to_choose(self) -> None:
        said = refused(None, "--classifier", "small_networks:Plain", "--input-name", "image")
        assert "is no ONNX file; leave out --input-name" in said

    def test_says_that_the_file_has_weights(self) -> None:
        said = refused(None, "--weights", "w.safetensors")
        assert "model.onnx holds its own weights; leave out w.safetensors" in said
