"""An exported explainer: one file, always the same, whole or not there."""

import hashlib
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import onnx
import onnxruntime
import pytest

from exported_tiny import BOTH, metadata, subject
from pathlens.errors import ExportError
from pathlens.explanation import PathwaySource
from pathlens.onnx_export.export import (
    ExportedExplainer,
    available_sources,
    check_destination,
    check_sources,
    export_explainer,
)
from pathlens.onnx_export.metadata import read_metadata
from pathlens.pathways.bank import ClassPathwayBank
from pathlens.version import __version__

TRANSFERRED = (PathwaySource.TRANSFERRED,)
WITHOUT_GENERATOR = replace(subject(), generator=None)
_BANK = subject().bank
WITHOUT_STORED = replace(subject(), bank=ClassPathwayBank(_BANK.taps, _BANK.granularity, 0.5, {}))


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> ExportedExplainer:
    path = tmp_path_factory.mktemp("exported") / "new" / "tiny.onnx"
    return export_explainer(WITHOUT_GENERATOR, metadata(WITHOUT_GENERATOR, TRANSFERRED), path)


def test_what_was_written_is_what_is_said_of_it(exported: ExportedExplainer) -> None:
    content = exported.path.read_bytes()
    assert (exported.size, exported.sha256) == (len(content), hashlib.sha256(content).hexdigest())
    assert [entry.name for entry in exported.path.parent.iterdir()] == ["tiny.onnx"]
    session = onnxruntime.InferenceSession(exported.path, providers=["CPUExecutionProvider"])
    for said, real in ((exported.inputs, session.get_inputs()), (exported.outputs, session.get_outputs())):
        assert [(tensor.name, list(tensor.shape)) for tensor in said] == [(each.name, each.shape) for each in real]
        assert all(tensor.shape[0] == "batch" for tensor in said)
    assert {tensor.name: tensor.kind for tensor in exported.outputs} == {
        "logits": "float32",
        "top_class": "int64",
        "transferred_available": "bool",
        "transferred_mask": "bool",
        "transferred_logits": "float32",
        "transferred_map": "float32",
    }


def test_the_file_says_what_it_explains_and_who_made_it(exported: ExportedExplainer) -> None:
    assert read_metadata(exported.path) == metadata(subject(), TRANSFERRED)
    model = onnx.load(exported.path)
    assert (model.producer_name, model.producer_version) == ("pathlens", __version__)
    assert exported.opset in [entry.version for entry in model.opset_import]


def test_the_same_bundle_gives_the_same_bytes_in_another_process(exported: ExportedExplainer, tmp_path: Path) -> None:
    code = (
        "import sys\nfrom pathlib import Path\n"
        "from exported_tiny import metadata, subject\nfrom pathlens.onnx_export.export import export_explainer\n"
        "from pathlens.explanation import PathwaySource\n"
        "export_explainer(subject(), metadata(subject(), (PathwaySource.TRANSFERRED,)), Path(sys.argv[1]))"
    )
    # Another order of sets must not be another order in the file.
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "PYTHONHASHSEED": "1"}
    path = tmp_path / "again.onnx"
    subprocess.run([sys.executable, "-c", code, path], check=True, timeout=120, env=environment)
    assert path.read_bytes() == exported.path.read_bytes()


def test_an_explainer_may_be_replaced_and_nothing_else(exported: ExportedExplainer, tmp_path: Path) -> None:
    check_destination(exported.path)
    check_destination(tmp_path / "new.onnx")
    classifier = tmp_path / "classifier.onnx"
    model = onnx.load(exported.path)
    del model.metadata_props[:]
    onnx.save(model, classifier)
    before = classifier.read_bytes()
    with pytest.raises(ExportError, match=r"classifier\.onnx exists and is not an exported explainer"):
        export_explainer(subject(), metadata(subject()), classifier)
    assert classifier.read_bytes() == before


def test_a_subject_has_the_sources_that_it_can_make() -> None:
    assert available_sources(subject()) == BOTH
    assert available_sources(WITHOUT_GENERATOR) == TRANSFERRED
    assert available_sources(WITHOUT_STORED) == (PathwaySource.GENERATED,)


def test_a_source_that_the_bundle_lacks_is_refused_with_the_remedy() -> None:
    with pytest.raises(ExportError, match=r"generated pathways: it has no generator; fit it with --source generated"):
        check_sources(WITHOUT_GENERATOR, BOTH)
    with pytest.raises(ExportError, match=r"transferred pathways: no class has a stored pathway"):
        check_sources(WITHOUT_STORED, TRANSFERRED)
    with pytest.raises(ExportError, match="neuron_mct pathways"):
        check_sources(subject(), (PathwaySource.NEURON_MCT,))


def test_no_source_at_all_is_refused() -> None:
    with pytest.raises(ExportError, match="no class has a stored pathway"):
        check_sources(replace(WITHOUT_STORED, generator=None), ())
