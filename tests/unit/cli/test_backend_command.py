"""`pathlens backend`: graphs into a bundle and out again, and never wrong ones."""

import importlib.util
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import CliRunner, Result
from onnx import TensorProto, helper, numpy_helper

from pathlens.bundle.store import MANIFEST, load_bundle, save_bundle
from pathlens.cli import backend as backend_room
from pathlens.cli import main
from pathlens.explanation import Ablation
from pathlens.onnx_export.stage_graphs import ServingGraphs
from tiny_bundle import tensor, tiny_bundle
from tiny_graphs import graphed_bundle


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    save_bundle(tiny_bundle(), tmp_path / "tiny")
    return tmp_path / "tiny"


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_bundle_is_served_by_onnx_runtime_and_by_pytorch_again(tmp_path: Path) -> None:
    folder = tmp_path / "tiny"
    before = save_bundle(tiny_bundle(ablation=Ablation.MEAN), folder)
    done = run("backend", folder, "onnxruntime")
    assert done.exit_code == 0, done.output
    chosen = load_bundle(folder)
    assert chosen.explainer().backend.name == "onnxruntime"
    assert chosen.explainer().predict([tensor()])
    assert done.stdout.splitlines()[-1] == f"{folder}  SHA-256 {chosen.sha256}"
    for how in ("one by one", "in one batch"):
        assert re.search(f"8 random images, {how}: .* 0 of 144 neurons differ, 8 of 8 maps agree", done.stdout)
    assert "Warning" not in done.output
    # What both take shows whether it pays.
    times = re.findall(r"(one image|batch of 8) +PyTorch [\d.]+ ms +ONNX Runtime [\d.]+ ms", done.stdout)
    assert times == ["one image", "batch of 8"]

    done = run("backend", folder, "torch")
    assert done.exit_code == 0, done.output
    assert done.stdout == f"{folder}  SHA-256 {before}\n"
    assert load_bundle(folder).backend == "torch"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tiny"]


@pytest.mark.parametrize("stage", ["prediction", "generation", "pathway"])
@pytest.mark.usefixtures("graphs")
def test_graphs_that_do_not_answer_as_pytorch_does_leave_the_bundle_as_it_was(
    stage: str, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = graphed_bundle().graphs
    assert right is not None
    output, operator = ("mask", "Not") if stage == "generation" else ("logits", "Neg")
    wrong = replace(right, **{stage: changed(getattr(right, stage), output, operator)})

    def serving_graphs(*_: Any) -> ServingGraphs:
        return wrong

    monkeypatch.setattr(backend_room, "serving_graphs", serving_graphs)
    before = content(bundle)
    done = run("backend", bundle, "onnxruntime")
    assert done.exit_code == 1
    assert "does not answer as PyTorch does" in done.stderr
    assert "The bundle is as it was" in done.stderr
    assert content(bundle) == before


@pytest.mark.usefixtures("graphs")
def test_graphs_whose_maps_are_wrong_are_refused(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    right = graphed_bundle().graphs
    assert right is not None
    wrong = replace(right, pathway=changed(right.pathway, "map", "Neg"))
    monkeypatch.setattr(backend_room, "serving_graphs", lambda *_: wrong)
    done = run("backend", bundle, "onnxruntime")
    assert done.exit_code == 1
    assert "0 of 8 maps agree" in done.stderr


@pytest.mark.usefixtures("graphs")
def test_graphs_whose_maps_are_wrong_for_a_single_image_are_refused(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = graphed_bundle().graphs
    assert right is not None
    model = renamed(right.pathway, "map")
    model.graph.node.extend(
        [
            helper.make_node("Shape", ["image"], ["sizes"], start=0, end=1),
            helper.make_node("Cast", ["sizes"], ["images"], to=TensorProto.FLOAT),
            helper.make_node("Reciprocal", ["images"], ["share"]),
            helper.make_node("Floor", ["share"], ["alone"]),
            helper.make_node("Exp", ["alone"], ["factor"]),
            helper.make_node("Mul", ["before", "factor"], ["map"]),
        ]
    )
    monkeypatch.setattr(backend_room, "serving_graphs", lambda *_: replace(right, pathway=model.SerializeToString()))
    done = run("backend", bundle, "onnxruntime")
    assert done.exit_code == 1
    assert "one by one" in done.stderr
    assert "0 of 8 maps agree" in done.stderr


@pytest.mark.usefixtures("graphs")
def test_neurons_about_which_rounding_decides_are_warned_of(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    right = graphed_bundle().graphs
    assert right is not None
    assert right.generation is not None
    wrong = replace(right, generation=changed(right.generation, "mask", "Not"))
    monkeypatch.setattr(backend_room, "serving_graphs", lambda *_: wrong)
    # As if no score were larger than rounding.
    monkeypatch.setattr(backend_room, "SCORE_TOLERANCE", 1)
    monkeypatch.setattr(backend_room, "_SECONDS", 0)
    done = run("backend", bundle, "onnxruntime")
    assert done.exit_code == 0, done.output
    assert "Warning: 144 of 144 neurons of generated pathways differ" in done.stderr


@pytest.mark.usefixtures("graphs")
def test_a_single_map_about_which_rounding_may_decide_is_warned_of(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = graphed_bundle().graphs
    assert right is not None
    stored = tiny_bundle()
    images = np.stack([stored.preprocessing.apply(picture) for picture in backend_room._pictures(stored)])
    *_, second, first = sorted(images.max((1, 2, 3)))
    assert second < first
    model = renamed(right.pathway, "map")
    model.graph.initializer.append(numpy_helper.from_array(np.array(first, np.float32), "first"))
    model.graph.node.extend(
        [
            helper.make_node("ReduceMax", ["image", "dimensions"], ["largest"], keepdims=1),
            helper.make_node("GreaterOrEqual", ["largest", "first"], ["is_first"]),
            helper.make_node("Cast", ["is_first"], ["power"], to=TensorProto.FLOAT),
            helper.make_node("Exp", ["power"], ["factor"]),
            helper.make_node("Mul", ["before", "factor"], ["map"]),
        ]
    )
    model.graph.initializer.append(numpy_helper.from_array(np.array([1, 2, 3]), "dimensions"))
    monkeypatch.setattr(backend_room, "serving_graphs", lambda *_: replace(right, pathway=model.SerializeToString()))
    monkeypatch.setattr(backend_room, "_SECONDS", 0)
    done = run("backend", bundle, "onnxruntime")
    assert done.exit_code == 0, done.output
    assert "Warning: 1 of 8 maps differ by more than 0.001" in done.stderr


def test_what_is_missing_is_named_with_what_to_install(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        backend_room, "find_spec", lambda name: None if name == "onnxscript" else importlib.util.find_spec(name)
    )
    done = run("backend", bundle, "onnxruntime")
    assert done.exit_code == 1
    assert "onnxscript missing" in done.stderr
    assert "pip install 'pathlens[onnx]'" in done.stderr
    assert run("backend", bundle, "torch").exit_code == 0


def test_what_is_no_bundle_is_refused(tmp_path: Path) -> None:
    done = run("backend", tmp_path, "onnxruntime")
    assert done.exit_code == 1
    assert MANIFEST in done.stderr


def changed(graph: bytes, output: str, operator: str) -> bytes:
    """Put an operator behind an output."""
    model = renamed(graph, output)
    model.graph.node.append(helper.make_node(operator, ["before"], [output]))
    return model.SerializeToString()


def renamed(graph: bytes, output: str) -> onnx.ModelProto:
    """Call what was an output "before", so that nodes can be put behind it."""
    model = onnx.load_model_from_string(graph)
    for node in model.graph.node:
        node.output[:] = ["before" if name == output else name for name in node.output]
        node.input[:] = ["before" if name == output else name for name in node.input]
    return model
