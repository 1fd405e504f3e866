"""`pathlens export` from a bundle to an ONNX file, and its errors in one line."""

import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import onnx
import pytest
from click.testing import CliRunner, Result

from exported_tiny import metadata, subject
from pathlens.bundle.store import load_bundle, save_bundle
from pathlens.cli import main
from pathlens.explanation import PathwaySource
from pathlens.onnx_export import export as room
from pathlens.onnx_export.metadata import read_metadata
from tiny_bundle import tiny_bundle


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    save_bundle(replace(tiny_bundle(), generator=None), Path("bundle"))


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main, ("export", *arguments))


def one_line(result: Result, exit_code: int = 1) -> str:
    assert result.exit_code == exit_code, result.output
    assert isinstance(result.exception, SystemExit)
    line = result.stderr.strip().splitlines()[-1]
    assert line.startswith("Error: ")
    return line


def test_a_bundle_becomes_an_explainer_that_is_described() -> None:
    result = run("bundle", "tiny.onnx", "--opset", "18")
    assert result.exit_code == 0, result.output
    said = read_metadata(Path("tiny.onnx"))
    assert said.bundle_sha256 == load_bundle("bundle").sha256
    assert said.sources == (PathwaySource.TRANSFERRED,)
    assert [entry.version for entry in onnx.load("tiny.onnx").opset_import if not entry.domain] == [18]
    for words in ("image", "transferred_map", "[batch, 3, 8, 8]", "opset 18", "float32"):
        assert words in result.stderr
    assert "pathlens verify tiny.onnx bundle --images PATH" in result.stderr
    size = Path("tiny.onnx").stat().st_size
    (line,) = result.stdout.splitlines()
    assert line.startswith(f"tiny.onnx  {size / 1e6:.1f} MB  SHA-256 ")

    # A script may take the hash from the last line; an earlier explainer is replaced by the same one.
    again = run("bundle", "tiny.onnx", "--opset", "18", "--source", "transferred")
    assert again.stdout == result.stdout


@pytest.mark.parametrize("earlier", [False, True])
def test_ctrl_c_leaves_what_was_there_before(earlier: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_arguments: object) -> None:
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(room, "explanation_graph", interrupted)
    if earlier:
        # Any explainer will do; its graph is not looked at.
        value = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1])
        node = onnx.helper.make_node("Identity", ["x"], ["y"])
        model = onnx.helper.make_model(onnx.helper.make_graph([node], "g", [value], []))
        onnx.helper.set_model_props(model, metadata(subject(), (PathwaySource.TRANSFERRED,)).to_properties())
        onnx.save(model, "tiny.onnx")
    before = {path.name: path.read_bytes() for path in Path().iterdir() if path.is_file()}
    result = run("bundle", "tiny.onnx")
    assert result.exit_code == 130
    assert "Interrupted. tiny.onnx was not written." in result.stderr
    assert {path.name: path.read_bytes() for path in Path().iterdir() if path.is_file()} == before
    assert bool(before) is earlier


def test_the_onnx_file_of_a_classifier_is_not_overwritten() -> None:
    Path("classifier.onnx").write_bytes(b"precious")
    assert "exists and is not an exported explainer" in one_line(run("bundle", "classifier.onnx"))
    assert Path("classifier.onnx").read_bytes() == b"precious"


def test_a_place_where_nothing_can_be_written_shows_before_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "explanation_graph", lambda *_: pytest.fail("the work has begun"))
    Path("file").write_bytes(b"not a folder")
    assert "file: " in one_line(run("bundle", "file/tiny.onnx"))


def test_the_hint_can_be_pasted_where_names_have_spaces(monkeypatch: pytest.MonkeyPatch) -> None:
    graph = onnx.helper.make_graph([onnx.helper.make_node("Identity", ["x"], ["y"])], "g", [], [])
    monkeypatch.setattr(room, "explanation_graph", lambda *_: onnx.helper.make_model(graph))
    Path("bundle").rename("my [red] bundle")
    result = run("my [red] bundle", "my explainer.onnx")
    assert result.exit_code == 0, result.output
    assert "pathlens verify 'my explainer.onnx' 'my [red] bundle' --images PATH" in result.stderr


@pytest.mark.parametrize("source", ["generated", "both"])
def test_a_source_that_the_bundle_lacks_is_refused(source: str) -> None:
    error = one_line(run("bundle", "tiny.onnx", "--source", source))
    assert "fit it with --source generated" in error
    assert "[EXPORT_FAILED]" in error
    assert not Path("tiny.onnx").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("bundle", "tiny.onnx", "--opset", "17"), "17"),
        (("bundle", "tiny.onnx", "--opset", "22"), "22"),
        (("bundle", "tiny.onnx", "--source", "neuron_mct"), "neuron_mct"),
        (("bundle", "bundle"), "is a directory"),
        (("bundle",), "EXPLAINER.onnx"),
    ],
)
def test_wrong_usage_is_told(arguments: tuple[str, ...], words: str) -> None:
    assert words in one_line(run(*arguments), 2)


def test_a_folder_that_is_no_bundle_is_refused() -> None:
    Path("photos").mkdir()
    assert "photos is not a bundle" in one_line(run("photos", "tiny.onnx"))


def test_the_help_shows_examples() -> None:
    assert "\n    pathlens export build/digits/bundle digits.onnx\n" in run("--help").output


@pytest.mark.parametrize(
    ("command", "package"), [("export", "onnx"), ("export", "onnxscript"), ("verify", "onnxruntime")]
)
def test_without_the_extra_it_says_what_to_install(command: str, package: str) -> None:
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            # A finder that does not know a package fails as a missing one does.
            "import sys\n"
            "missing = sys.argv.pop()\n"
            "class Missing:\n"
            "    def find_spec(self, name, path=None, target=None):\n"
            "        if name == missing: raise ModuleNotFoundError(f'No module named {name!r}', name=name)\n"
            "sys.meta_path.insert(0, Missing())\n"
            "from pathlens.cli import main\nmain([sys.argv[1], '--help'])",
            command,
            package,
        ],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 1
    assert done.stderr.strip().splitlines() == [
        f"Error: No module named '{package}'. Install what this needs: pip install 'pathlens[onnx]'"
    ]
