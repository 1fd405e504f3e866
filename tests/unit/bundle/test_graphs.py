"""Bundles that carry graphs: stored, packed and checked like everything else, and served by ONNX Runtime."""

import hashlib
import json
import logging
import shutil
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from pathlens.bundle.archive import pack
from pathlens.bundle.store import MANIFEST, Bundle, load_bundle, save_bundle
from pathlens.errors import BundleError
from pathlens.explanation import Ablation, Granularity
from tiny_bundle import tensor, tiny_bundle
from tiny_graphs import graphed_bundle

GRAPHS = ("generation.onnx", "pathway.onnx", "prediction.onnx")


@pytest.fixture(scope="module")
def stored(graphs: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundle") / "tiny"
    save_bundle(graphed_bundle(), folder)
    return folder


@pytest.fixture
def copy(stored: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(stored, tmp_path / "tiny"))


def edit_manifest(folder: Path, **changes: Any) -> None:
    values = json.loads((folder / MANIFEST).read_text())
    values["files"] |= {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir() if path.name != MANIFEST
    }
    (folder / MANIFEST).write_text(json.dumps(values | changes))


def test_graphs_are_stored_and_read_again(stored: Path) -> None:
    bundle = load_bundle(stored)
    assert bundle.graphs == graphed_bundle().graphs
    assert bundle.backend == "onnxruntime"
    manifest = json.loads((stored / MANIFEST).read_text())
    assert (manifest["schema_version"], manifest["backend"]) == (2, "onnxruntime")
    assert set(GRAPHS) <= set(manifest["files"])


def test_a_bundle_without_a_generator_has_no_graph_of_the_generation(graphs: None, tmp_path: Path) -> None:
    bundle = graphed_bundle()
    assert bundle.graphs is not None
    save_bundle(replace(bundle, generator=None, graphs=replace(bundle.graphs, generation=None)), tmp_path / "tiny")
    assert not (tmp_path / "tiny" / "generation.onnx").exists()
    read = load_bundle(tmp_path / "tiny")
    assert read.graphs is not None
    assert read.graphs.generation is None
    assert read.explainer().backend.name == "onnxruntime"


def test_graphs_fit_the_generator_or_its_absence(graphs: None) -> None:
    with pytest.raises(ValueError, match="without a generator"):
        replace(graphed_bundle(), generator=None)


def test_without_graphs_a_bundle_is_the_same_as_ever(stored: Path, tmp_path: Path) -> None:
    plain = save_bundle(tiny_bundle(), tmp_path / "plain")
    assert "backend" not in json.loads((tmp_path / "plain" / MANIFEST).read_text())
    assert load_bundle(tmp_path / "plain").backend == "torch"
    assert save_bundle(replace(load_bundle(stored), graphs=None), tmp_path / "back") == plain
    assert plain != hashlib.sha256((stored / MANIFEST).read_bytes()).hexdigest()


def test_an_archive_carries_the_graphs(stored: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(pack(stored, tmp_path)) as archive:
        for name in GRAPHS:
            assert archive.read(f"bundle/{name}") == (stored / name).read_bytes()


@pytest.mark.parametrize("name", GRAPHS)
def test_a_graph_that_was_changed_or_is_missing_is_refused(copy: Path, name: str) -> None:
    content = (copy / name).read_bytes()
    (copy / name).write_bytes(content[:-1])
    with pytest.raises(BundleError, match="was changed"):
        load_bundle(copy)
    (copy / name).unlink()
    with pytest.raises(BundleError, match=f"lacks the file {name}"):
        load_bundle(copy)


@pytest.mark.parametrize("backend", ["torch", "tensorflow"])
def test_graphs_and_the_stated_backend_belong_together(copy: Path, backend: str) -> None:
    edit_manifest(copy, backend=backend)
    with pytest.raises(BundleError, match=r"names the files|is damaged"):
        load_bundle(copy)


@pytest.mark.parametrize("name", GRAPHS)
def test_a_graph_of_another_classifier_is_refused(copy: Path, name: str) -> None:
    model = onnx.load(copy / name)
    onnx.helper.set_model_props(model, {"classifier_sha256": "0" * 64})
    onnx.save(model, copy / name)
    edit_manifest(copy)
    with pytest.raises(BundleError, match=f"belongs to classifier {'0' * 64}"):
        load_bundle(copy).explainer()


@pytest.mark.parametrize("name", GRAPHS)
def test_a_graph_without_a_stamp_is_refused(copy: Path, name: str) -> None:
    model = onnx.load(copy / name)
    del model.metadata_props[:]
    onnx.save(model, copy / name)
    edit_manifest(copy)
    with pytest.raises(BundleError, match="belongs to classifier None"):
        load_bundle(copy).explainer()


@pytest.mark.parametrize("name", GRAPHS)
def test_a_damaged_graph_is_refused(copy: Path, name: str) -> None:
    (copy / name).write_bytes(b"not a graph")
    edit_manifest(copy)
    with pytest.raises(BundleError, match=r"cannot load the graph .*pathlens backend BUNDLE onnxruntime"):
        load_bundle(copy).explainer()


@pytest.mark.parametrize("name", ["generation.onnx", "pathway.onnx"])
def test_a_graph_for_pathways_of_another_kind_is_refused(copy: Path, name: str) -> None:
    # The classifier is the same, and so is its hash.
    save_bundle(graphed_bundle(Granularity.UNIT, Ablation.OPTIMAL), copy.parent / "other")
    shutil.copy(copy.parent / "other" / name, copy / name)
    edit_manifest(copy)
    with pytest.raises(BundleError, match="this bundle calls for"):
        load_bundle(copy).explainer()


def test_without_onnx_runtime_the_error_says_what_to_install(stored: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # An entry of None makes the import fail, as where it is not installed.
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    bundle = load_bundle(stored)
    with pytest.raises(BundleError, match=r"pip install 'pathlens\[serve\]'"):
        bundle.explainer()
    assert replace(bundle, graphs=None).explainer().predict([tensor()])


def test_a_bundle_that_pytorch_serves_needs_nothing_of_onnx(tmp_path: Path) -> None:
    save_bundle(tiny_bundle(), tmp_path / "tiny")
    code = (
        "import sys\nfrom pathlens.bundle.store import load_bundle\nload_bundle(sys.argv[1]).explainer()\n"
        "print(sorted({name.partition('.')[0] for name in sys.modules if name.startswith('onnx')}))"
    )
    done = subprocess.run([sys.executable, "-c", code, tmp_path / "tiny"], capture_output=True, text=True, timeout=60)
    assert done.stdout == "[]\n", done.stderr


@pytest.mark.usefixtures("graphs")
class TestWhatComputes:
    """One line in the log says what computes."""

    @pytest.fixture
    def said(self, caplog: pytest.LogCaptureFixture) -> Any:
        caplog.set_level(logging.INFO, "pathlens")

        def messages(bundle: Bundle, device: str) -> tuple[str, list[str]]:
            caplog.clear()
            return bundle.explainer(device).backend.name, [record.getMessage() for record in caplog.records]

        return messages

    def test_on_the_cpu_it_is_onnx_runtime_if_there_are_graphs(self, said: Any) -> None:
        assert said(graphed_bundle(), "cpu") == ("onnxruntime", ["ONNX Runtime computes for tiny on the CPU"])
        assert said(tiny_bundle(), "cpu") == ("torch", ["PyTorch computes for tiny on cpu"])

    def test_on_any_other_device_it_is_pytorch(self, said: Any) -> None:
        # This one is there on every machine; that it holds no numbers to accelerate is said besides.
        name, (line, *_) = said(graphed_bundle(), "meta")
        assert name == "torch"
        assert line == "PyTorch computes for tiny on meta; its graphs are for the CPU alone"

    def test_threads_are_those_of_torch(self, stored: Path) -> None:
        before = torch.get_num_threads()
        try:
            torch.set_num_threads(3)
            explainer = load_bundle(stored).explainer()
        finally:
            torch.set_num_threads(before)
        session = explainer.backend._prediction._session  # type: ignore[attr-defined]
        assert session.get_session_options().intra_op_num_threads == 3
        assert np.isfinite(explainer.predict([tensor()])[0].predictions[0].logit)
