"""What no ONNX file is, and what is wrong with some."""

import re
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import helper, numpy_helper

from onnx_files import by_onnx_runtime, exported, linear_model, node, written
from pathlens.errors import CaptureError
from pathlens.onnx_import.loading import load_onnx_classifier
from pathlens.onnx_import.model_file import read_model
from small_networks import images, original


def refused(path: Path, message: str) -> None:
    with pytest.raises(CaptureError, match=message) as caught:
        load_onnx_classifier(path, images(2))
    assert str(path) in caught.value.message


class TestWhatIsNoModel:
    def test_is_refused_where_there_is_no_file(self, tmp_path: Path) -> None:
        refused(tmp_path / "model.onnx", "does not exist; give the path")

    def test_is_refused_where_it_is_a_folder(self, tmp_path: Path) -> None:
        refused(tmp_path, "is a folder; give the path of an ONNX file")

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (b"", "holds no ONNX model"),
            (b"a model of flowers, in words\n", "not an ONNX file, or is truncated.*again"),
            (bytes(1000), "not an ONNX file"),
            (exported("plain")[: len(exported("plain")) // 2], "truncated.*again"),
            (exported("plain")[:-1], "truncated.*again"),
            (onnx.NodeProto(op_type="Relu", name="a node").SerializeToString(), "holds no ONNX model"),
            (onnx.TensorProto(dims=[1], data_type=1, raw_data=b"1234").SerializeToString(), "holds no ONNX model"),
        ],
        ids=["empty", "text", "zeros", "half", "all but one byte", "a node", "a tensor"],
    )
    def test_is_refused_whatever_it_holds(self, content: bytes, message: str, tmp_path: Path) -> None:
        refused(written(content, tmp_path / "model.onnx"), message)

    def test_is_refused_where_the_graph_breaks_the_rules(self, tmp_path: Path) -> None:
        model = linear_model(after=[node("Add", "linear nowhere", "logits")])
        refused(written(model, tmp_path / "model.onnx"), "not a valid ONNX model: .*nowhere.*Export it again")

    def test_is_refused_where_a_weight_claims_more_than_there_is(self, tmp_path: Path) -> None:
        model = linear_model()
        model.graph.initializer[0].dims[0] = 10**15
        refused(written(model, tmp_path / "model.onnx"), "not a valid ONNX model: .*weight.*too small")


class TestExternalData:
    @pytest.fixture
    def path(self, tmp_path: Path) -> Path:
        path = tmp_path / "folder" / "model.onnx"
        path.parent.mkdir()
        model = onnx.load_from_string(exported("plain"))
        onnx.save(model, path, save_as_external_data=True, location="data", size_threshold=0)
        return path

    def test_beside_the_file_is_read(self, path: Path) -> None:
        with torch.no_grad():
            logits = load_onnx_classifier(path, images(2))(images(3))
            torch.testing.assert_close(logits, original("plain")(images(3)), rtol=0, atol=1e-5)

    def test_of_a_file_that_is_converted_is_read(self, tmp_path: Path) -> None:
        model, path = linear_model(opset=11), tmp_path / "model.onnx"
        expected = by_onnx_runtime(model, images(2))
        onnx.save(model, path, save_as_external_data=True, location="data", size_threshold=0)
        with torch.no_grad():
            torch.testing.assert_close(load_onnx_classifier(path, images(2))(images(2)), expected, rtol=0, atol=1e-5)

    def test_that_is_missing_is_named(self, path: Path) -> None:
        path.with_name("data").unlink()
        refused(path, "data.*in the same folder")

    def test_that_is_too_short_is_refused(self, path: Path) -> None:
        data = path.with_name("data")
        data.write_bytes(data.read_bytes()[:20])
        refused(path, "external data .* cannot be read.*complete")

    @pytest.mark.parametrize("location", ["../data", "{folder}/data"])
    def test_outside_the_folder_is_refused(self, path: Path, location: str) -> None:
        outside = path.parents[1] / "data"
        path.with_name("data").rename(outside)
        model = onnx.load(path, load_external_data=False)
        for tensor in model.graph.initializer:
            place = next(entry for entry in tensor.external_data if entry.key == "location")
            place.value = location.format(folder=outside.parent)
        refused(written(model, path), "outside the directory|should be a relative path")

    def test_of_a_constant_that_is_missing_is_named(self, tmp_path: Path) -> None:
        shift = numpy_helper.from_array(np.zeros((1, 3, 1, 1), np.float32), "shift")
        model = linear_model([node("Constant", "", "shift", value=shift), node("Add", "image shift", "pixels")])
        onnx.save(
            model,
            tmp_path / "model.onnx",
            save_as_external_data=True,
            location="data",
            size_threshold=0,
            convert_attribute=True,
        )
        (tmp_path / "data").unlink()
        refused(tmp_path / "model.onnx", "data.*in the same folder")

    def test_of_a_name_that_no_file_can_have_is_refused(self, path: Path) -> None:
        model = onnx.load(path, load_external_data=False)
        for tensor in model.graph.initializer:
            place = next(entry for entry in tensor.external_data if entry.key == "location")
            place.value = "a" * 300
        refused(written(model, path), "not a valid ONNX model: .*in the same folder")

    def test_behind_a_link_is_refused(self, path: Path) -> None:
        outside = path.parents[1] / "data"
        path.with_name("data").rename(outside)
        path.with_name("data").symlink_to(outside)
        refused(path, "symbolic link")


class TestOpsets:
    @pytest.mark.parametrize("opset", [7, 9, 11, 12])
    def test_before_13_are_converted_and_this_is_said(self, opset: int, tmp_path: Path) -> None:
        model = linear_model(after=[node("Softmax", "linear", "logits")], opset=opset)
        network = load_onnx_classifier(written(model, tmp_path / "model.onnx"), images(2))
        assert f"Converted from opset {opset} to 13." in network.remarks
        expected = by_onnx_runtime(model, images(3))
        torch.testing.assert_close(network(images(3)).softmax(1), expected, rtol=0, atol=1e-5)

    def test_that_cannot_be_converted_are_named(self, tmp_path: Path) -> None:
        shift = {"shift": np.zeros(3, np.float32)}
        model = linear_model([node("Add", "image shift", "pixels", broadcast=1, axis=1)], arrays=shift, opset=6)
        refused(written(model, tmp_path / "model.onnx"), "opset 6 and cannot be converted to opset 13.*from 13 to 21")

    def test_from_22_on_are_tried(self, tmp_path: Path) -> None:
        model = linear_model(opset=22)
        network = load_onnx_classifier(written(model, tmp_path / "model.onnx"), images(2))
        torch.testing.assert_close(network(images(2)), by_onnx_runtime(model, images(2)), rtol=0, atol=1e-5)

    def test_may_be_in_a_file_of_the_newest_version(self, tmp_path: Path) -> None:
        model = linear_model()
        model.ir_version = onnx.IR_VERSION
        assert load_onnx_classifier(written(model, tmp_path / "model.onnx"), images(2))(images(1)).shape == (1, 4)

    def test_that_onnx_runtime_does_not_know_are_refused(self, tmp_path: Path) -> None:
        refused(written(linear_model(opset=99), tmp_path / "model.onnx"), "ONNX Runtime .* cannot run.*13 to 21")


class TestFunctions:
    def test_of_the_file_are_written_out(self, tmp_path: Path) -> None:
        model = linear_model(after=[node("Twice", "linear", "logits", domain="ours")], domains=["ours"])
        model.functions.append(function("Twice", [node("Add", "x x", "y")]))
        network = load_onnx_classifier(written(model, tmp_path / "model.onnx"), images(2))
        torch.testing.assert_close(network(images(2)), by_onnx_runtime(model, images(2)), rtol=0, atol=1e-5)

    def test_that_stand_for_too_many_nodes_are_refused_at_once(self, tmp_path: Path) -> None:
        model = linear_model(after=[node("F9", "linear", "logits", domain="ours")], domains=["ours"])
        model.functions.append(function("F0", [node("Identity", "x", "y")]))
        for number in range(1, 10):
            calls = [node(f"F{number - 1}", "x", "y" if call == 0 else f"y{call}", domain="ours") for call in range(10)]
            model.functions.append(function(f"F{number}", calls))
        with pytest.raises(CaptureError, match=r"stand for 1,000,000,004 nodes; at most 1,000,000"):
            read_model(written(model, tmp_path / "model.onnx"))


def function(name: str, nodes: list[onnx.NodeProto]) -> onnx.FunctionProto:
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("ours", 1)]
    return helper.make_function("ours", name, ["x"], ["y"], nodes, imports)


@pytest.mark.parametrize("package", ["onnx", "onnxruntime"])
def test_an_installation_without_the_extra_says_which_one_it_needs(
    package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = written(exported("plain"), tmp_path / "model.onnx")
    # None in this table is how Python marks what cannot be imported.
    monkeypatch.setitem(sys.modules, package, None)
    refused(path, re.escape("pip install 'pathlens[onnx]'"))
