import io
import json
import pickle
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import nn
from torch.export import Dim, ExportedProgram

from onnx_files import exported, written
from pathlens.classifier.capture import capture
from pathlens.classifier.sources import load_classifier
from pathlens.errors import CaptureError
from small_networks import NETWORKS, Plain, images, original, seeded

FACTORY = "small_networks:Residual"


class RunsCode:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return Path.touch, (self.trace,)


def saved(value: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


@pytest.fixture
def trace(tmp_path: Path) -> Iterator[Path]:
    """A file that must not appear."""
    trace = tmp_path / "code-ran"
    yield trace
    assert not trace.exists()


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    path = tmp_path / "network.pt2"
    shapes = ({0: Dim("images")},)
    torch.export.save(torch.export.export(original("residual"), (images(2),), dynamic_shapes=shapes), path)
    return path


def changed(archive: Path, ending: str, data: bytes | Callable[[bytes], bytes], name: str = "") -> Path:
    """A copy of an archive with one entry changed or, under a new name, added."""
    path = archive.with_name("changed.pt2")
    with zipfile.ZipFile(archive) as source, zipfile.ZipFile(path, "w") as copy:
        for entry in source.namelist():
            content = source.read(entry)
            if entry.endswith(ending):
                replaced = data if isinstance(data, bytes) else data(content)
                if name:
                    copy.writestr(f"{entry.split('/')[0]}/{name}", replaced)
                else:
                    content = replaced
            copy.writestr(entry, content)
    return path


def with_config(data: bytes, change: Callable[[dict[str, Any]], Any]) -> bytes:
    config = json.loads(data)
    entry = next(iter(config["config"].values()), None)
    if entry is None:
        config["config"]["object"] = entry = {"path_name": "tensor_0", "use_pickle": False, "tensor_meta": {}}
    change(entry)
    return json.dumps(config).encode()


class TestFactories:
    def test_the_factorys_own_weights_are_kept_without_a_file(self) -> None:
        assert isinstance(load_classifier(FACTORY), NETWORKS["residual"])  # type: ignore[arg-type]

    @pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
    def test_weights_are_read_from_a_file(self, suffix: str, tmp_path: Path) -> None:
        path, state = tmp_path / f"weights{suffix}", original("residual").state_dict()
        path.write_bytes(safetensors.torch.save(state) if suffix == ".safetensors" else saved(state))
        network = load_classifier(FACTORY, path)
        assert isinstance(network, nn.Module)
        assert all(torch.equal(value, state[name]) for name, value in network.state_dict().items())

    def test_a_module_of_the_current_folder_is_found(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "my_own_classifier.py").write_text("import torch\nmake = torch.nn.Identity\n")
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "path", list(sys.path))
        assert isinstance(load_classifier("my_own_classifier:make"), nn.Identity)

    @pytest.mark.parametrize("source", ["nowhere_at_all:make", "small_networks:nothing"])
    def test_a_missing_factory_is_named(self, source: str) -> None:
        with pytest.raises(CaptureError, match=f"{source}.*cannot be imported"):
            load_classifier(source)

    @pytest.mark.parametrize("source", ["small_networks", "small_networks:", ":Plain", ""])
    def test_what_is_neither_factory_nor_archive_is_refused(self, source: str) -> None:
        with pytest.raises(CaptureError, match=r"neither package\.module:factory nor"):
            load_classifier(source)

    def test_a_factory_that_returns_no_module_is_refused(self) -> None:
        with pytest.raises(CaptureError, match=r"returned dict; expected a torch\.nn\.Module"):
            load_classifier("builtins:dict")

    def test_names_of_inputs_and_outputs_are_refused(self) -> None:
        with pytest.raises(CaptureError, match=r"is no ONNX file; leave out --input-name and --output-name"):
            load_classifier(FACTORY, output_name="logits")


class TestOnnxFiles:
    def test_become_modules(self, tmp_path: Path) -> None:
        path = written(exported("plain"), tmp_path / "network.onnx")
        network = load_classifier(str(path), example=images(2), input_name="image", output_name="logits")
        assert isinstance(network, nn.Module)
        torch.testing.assert_close(network(images(3)), original("plain")(images(3)), rtol=0, atol=1e-5)

    def test_hold_their_own_weights(self, tmp_path: Path) -> None:
        with pytest.raises(CaptureError, match="holds its own weights; leave out"):
            load_classifier("network.onnx", tmp_path / "weights.pt", images(2))

    def test_cannot_be_trained_anew(self) -> None:
        with pytest.raises(CaptureError, match=r"its weights are fixed; give package\.module:factory"):
            load_classifier("network.onnx")


class TestWeights:
    @pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
    @pytest.mark.parametrize("content", [b"", b"text", b"PK\x03\x04", bytes(100)])
    def test_a_damaged_file_is_named(self, suffix: str, content: bytes, tmp_path: Path) -> None:
        path = tmp_path / f"weights{suffix}"
        path.write_bytes(content)
        with pytest.raises(CaptureError, match=str(path)):
            load_classifier(FACTORY, path)

    def test_a_missing_file_is_named(self, tmp_path: Path) -> None:
        with pytest.raises(CaptureError, match=r"missing\.pt"):
            load_classifier(FACTORY, tmp_path / "missing.pt")

    @pytest.mark.parametrize("state", [seeded(Plain).state_dict(), {"state_dict": {}}, [1], 5])
    def test_weights_of_another_network_are_refused(self, state: object, tmp_path: Path) -> None:
        (tmp_path / "weights.pt").write_bytes(saved(state))
        with pytest.raises(CaptureError, match="do not fit Residual"):
            load_classifier(FACTORY, tmp_path / "weights.pt")

    def test_a_pickled_object_is_refused_without_running_it(self, tmp_path: Path, trace: Path) -> None:
        (tmp_path / "weights.pt").write_bytes(saved({"stem.weight": RunsCode(trace)}))
        with pytest.raises(CaptureError, match=r"could run code.*state_dict\(\)"):
            load_classifier(FACTORY, tmp_path / "weights.pt")

    def test_a_plain_pickle_is_refused_without_running_it(self, tmp_path: Path, trace: Path) -> None:
        (tmp_path / "weights.pt").write_bytes(pickle.dumps(RunsCode(trace), protocol=2))
        with pytest.raises(CaptureError, match="could run code"):
            load_classifier(FACTORY, tmp_path / "weights.pt")


class TestArchives:
    def test_give_the_logits_of_the_network_that_was_saved(self, archive: Path) -> None:
        program = load_classifier(str(archive))
        assert isinstance(program, ExportedProgram)
        with torch.no_grad():
            expected = original("residual")(images(5))
        assert torch.allclose(capture(program, images(2))(images(5)), expected, atol=1e-5)

    def test_whose_sizes_depend_on_the_batch_are_read(self, tmp_path: Path) -> None:
        class Doubled(nn.Module):
            def forward(self, x: torch.Tensor) -> torch.Tensor:
                return torch.cat([x, x]).relu().reshape(2 * x.shape[0], 3, 64)[: x.shape[0]].mean(2)

        path = tmp_path / "doubled.pt2"
        torch.export.save(
            torch.export.export(Doubled(), (images(2),), dynamic_shapes=({0: Dim("images", max=64)},)), path
        )
        assert isinstance(load_classifier(str(path)), ExportedProgram)

    def test_take_no_weights_beside_their_own(self, archive: Path, tmp_path: Path) -> None:
        with pytest.raises(CaptureError, match="holds its own weights"):
            load_classifier(str(archive), tmp_path / "weights.pt")

    @pytest.mark.parametrize("content", [b"", b"text", b"PK\x03\x04"])
    def test_that_are_damaged_are_named(self, content: bytes, tmp_path: Path) -> None:
        (tmp_path / "damaged.pt2").write_bytes(content)
        with pytest.raises(CaptureError, match=r"damaged\.pt2 is not a \.pt2 archive"):
            load_classifier(str(tmp_path / "damaged.pt2"))

    def test_that_are_missing_are_named(self, tmp_path: Path) -> None:
        with pytest.raises(CaptureError, match=r"missing\.pt2"):
            load_classifier(str(tmp_path / "missing.pt2"))

    @pytest.mark.parametrize("config", ["model_weights_config.json", "model_constants_config.json"])
    @pytest.mark.parametrize(
        "change",
        [
            lambda entry: entry.update(use_pickle=True),
            lambda entry: entry.update(tensor_meta=None),
            lambda entry: entry.update(path_name="opaque_obj_0"),
            lambda entry: entry.update(path_name="custom_obj_0"),
        ],
    )
    def test_with_pickled_tensors_are_refused(
        self, config: str, change: Callable[[dict[str, Any]], Any], archive: Path
    ) -> None:
        path = changed(archive, config, lambda data: with_config(data, change))
        with pytest.raises(CaptureError, match=f"pickled objects.*{config}.*could run code"):
            load_classifier(str(path))

    def test_with_pickled_sample_inputs_are_refused_without_running_them(self, archive: Path, trace: Path) -> None:
        path = changed(archive, "sample_inputs/model.pt", saved(((RunsCode(trace),), {})))
        with pytest.raises(CaptureError, match=r"pickled objects.*sample_inputs"):
            load_classifier(str(path))

    @pytest.mark.parametrize(
        "name", ["data/weights/model.pt", "data/constants/opaque_obj_0", "data/aotinductor/model/code.so", "extra/x.py"]
    )
    def test_with_anything_but_a_program_of_tensors_are_refused(self, name: str, archive: Path, trace: Path) -> None:
        path = changed(archive, "archive_version", saved(RunsCode(trace)), name)
        with pytest.raises(CaptureError, match=f"{name}.*may be pickled objects or compiled code"):
            load_classifier(str(path))

    def test_of_the_older_format_are_refused_without_unpickling_them(self, tmp_path: Path, trace: Path) -> None:
        path = tmp_path / "older.pt2"
        with zipfile.ZipFile(path, "w") as older:
            older.writestr("version", "8.8")
            older.writestr("serialized_state_dict.pt", saved(RunsCode(trace)))
        with pytest.raises(CaptureError, match=r"serialized_state_dict\.pt"):
            load_classifier(str(path))

    def test_with_a_size_that_would_run_code_are_refused(self, archive: Path, trace: Path) -> None:
        code = f"__import__('pathlib').Path({str(trace)!r}).touch()"

        def poison(data: bytes) -> bytes:
            text = json.dumps(json.loads(data))
            start = text.index('"expr_str": "') + len('"expr_str": "')
            return (text[:start] + code + text[text.index('"', start) :]).encode()

        with pytest.raises(CaptureError, match=r"models/model\.json"):
            load_classifier(str(changed(archive, "models/model.json", poison)))

    def test_with_a_name_that_would_run_code_are_refused(self, archive: Path, trace: Path) -> None:
        def poison(data: bytes) -> bytes:
            (name,) = json.loads(data)["graph_module"]["module_call_graph"][0]["signature"]["forward_arg_names"]
            code = f"{name}=__import__('pathlib').Path({str(trace)!r}).touch()"
            return data.replace(json.dumps(name).encode(), json.dumps(code).encode())

        with pytest.raises(CaptureError, match=r"models/model\.json.*could run code"):
            load_classifier(str(changed(archive, "models/model.json", poison)))
        assert not trace.exists()

    @pytest.mark.timeout(20)
    @pytest.mark.parametrize("part", ["1", "A"])
    def test_with_a_long_size_that_is_none_are_refused_at_once(self, part: str, archive: Path) -> None:
        def poison(data: bytes) -> bytes:
            text = json.dumps(json.loads(data))
            start = text.index('"expr_str": "') + len('"expr_str": "')
            return (text[:start] + part * 100 + "!" + text[text.index('"', start) :]).encode()

        with pytest.raises(CaptureError, match=r"models/model\.json"):
            load_classifier(str(changed(archive, "models/model.json", poison)))
