"""What an exported explainer says of itself, in real ONNX files."""

import json
import tempfile
from pathlib import Path

import onnx
import onnxruntime
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from exported_tiny import BUNDLE_SHA256, images, metadata, subject
from pathlens.classifier.preprocessing import Preprocessing
from pathlens.errors import ExplainerFileError
from pathlens.explanation import Ablation, Granularity
from pathlens.onnx_export.metadata import ExplainerMetadata, read_metadata
from tiny_bundle import LABELS, PREPROCESSING


def write(path: Path, properties: dict[str, str]) -> Path:
    """Write a small ONNX file with properties."""
    floats = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1]) for name in ("a", "b")]
    graph = onnx.helper.make_graph([onnx.helper.make_node("Identity", ["a"], ["b"])], "g", floats[:1], floats[1:])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=10)
    onnx.helper.set_model_props(model, properties)
    onnx.save(model, path)
    return path


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "explainer.onnx"


@pytest.fixture(scope="module")
def properties() -> dict[str, str]:
    return metadata(subject()).to_properties()


@pytest.mark.parametrize("granularity", Granularity)
@pytest.mark.parametrize("ablation", Ablation)
def test_a_file_gives_back_what_was_written(granularity: Granularity, ablation: Ablation, path: Path) -> None:
    written = metadata(subject(granularity, ablation))
    assert read_metadata(write(path, written.to_properties())) == written


@given(labels=st.lists(st.text(), max_size=5))
def test_labels_may_be_any_text(labels: list[str]) -> None:
    written = metadata(subject()).model_copy(update={"labels": tuple(labels)})
    with tempfile.TemporaryDirectory() as folder:
        path = write(Path(folder) / "explainer.onnx", written.to_properties())
        assert read_metadata(path).labels == tuple(labels)


def test_a_program_with_onnx_runtime_alone_reads_json(path: Path, properties: dict[str, str]) -> None:
    session = onnxruntime.InferenceSession(write(path, properties), providers=["CPUExecutionProvider"])
    said = {key: json.loads(value) for key, value in session.get_modelmeta().custom_metadata_map.items()}
    assert said["labels"] == list(LABELS)
    assert said["bundle_sha256"] == BUNDLE_SHA256
    assert said["sources"] == ["transferred", "generated"]
    assert Preprocessing.from_json(said["preprocessing"]) == PREPROCESSING


@pytest.mark.parametrize("granularity", Granularity)
def test_the_taps_tell_which_part_of_a_mask_is_theirs(granularity: Granularity) -> None:
    of = subject(granularity)
    assert of.generator is not None
    pathway = of.generator.pathways(of.classifier.observe(images(3)).activations)
    flat = pathway.flat()
    for tap, described, mask in zip(of.classifier.taps, metadata(of).taps, pathway.masks, strict=True):
        assert (described.name, described.activation, described.shape) == (tap.name, tap.activation, tap.shape)
        end = described.offset + mask[0].numel()
        assert torch.equal(flat[:, described.offset : end].reshape(-1, *described.mask_shape), mask)


def test_properties_of_others_are_left_alone(path: Path, properties: dict[str, str]) -> None:
    write(path, {**properties, "owner": "the shop team"})
    assert read_metadata(path) == ExplainerMetadata.from_properties(properties)


@pytest.mark.parametrize("content", [b"", b"not an ONNX file at all", b"PK\x03\x04" * 50, b"\x08\x0a"])
def test_a_file_that_is_no_onnx_file_is_refused(content: bytes, path: Path) -> None:
    path.write_bytes(content)
    with pytest.raises(ExplainerFileError, match=r"explainer\.onnx is not an ONNX file"):
        read_metadata(path)


def test_a_truncated_file_is_refused(path: Path, properties: dict[str, str]) -> None:
    whole = write(path, properties).read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ExplainerFileError, match=r"explainer\.onnx is not an ONNX file, or not all of one"):
        read_metadata(path)


def test_a_file_that_is_missing_is_named(path: Path) -> None:
    with pytest.raises(ExplainerFileError, match=r"explainer\.onnx cannot be read: No such file"):
        read_metadata(path)


def test_a_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ExplainerFileError, match="cannot be read: Is a directory"):
        read_metadata(tmp_path)


@pytest.mark.parametrize("said", [{}, {"labels": '["a"]', "schema_version": "1"}])
def test_the_onnx_file_of_something_else_is_no_explainer(said: dict[str, str], path: Path) -> None:
    with pytest.raises(ExplainerFileError, match="but no explainer"):
        read_metadata(write(path, said))


def test_another_schema_version_is_refused(path: Path, properties: dict[str, str]) -> None:
    with pytest.raises(ExplainerFileError, match="schema version 2; this pathlens reads version 1"):
        read_metadata(write(path, {**properties, "schema_version": "2"}))


@pytest.mark.parametrize("missing", ["labels", "preprocessing", "taps", "sources", "bundle_sha256"])
def test_a_missing_property_is_named(missing: str, path: Path, properties: dict[str, str]) -> None:
    write(path, {key: value for key, value in properties.items() if key != missing})
    with pytest.raises(ExplainerFileError, match=f"is damaged: {missing}"):
        read_metadata(path)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("labels", "ant, bee"),
        ("labels", '"ant"'),
        ("sources", "[]"),
        ("sources", '["guessed"]'),
        ("granularity", '"pixel"'),
        ("preprocessing", '{"height": 8}'),
        ("taps", '[{"name": "relu#1"}]'),
        ("taps", "[" * 100_000),
    ],
)
def test_an_impossible_property_is_refused(key: str, value: str, path: Path, properties: dict[str, str]) -> None:
    with pytest.raises(ExplainerFileError, match=r"The metadata of .*explainer\.onnx is damaged"):
        read_metadata(write(path, {**properties, key: value}))
