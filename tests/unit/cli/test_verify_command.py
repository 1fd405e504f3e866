"""`pathlens verify`: what it says of an explainer that is equal, of one that is not, and of what is no explainer."""

import json
import signal
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from exported_tiny import constant
from exported_tiny import replace as put
from pathlens.bundle.store import load_bundle, save_bundle
from pathlens.cli import main
from pathlens.cli import verify as module
from pathlens.explanation import PathwaySource
from pathlens.onnx_export.kinks import MapBeyond
from pathlens.onnx_export.verification import Verification, verify
from tiny_bundle import pixels, tiny_bundle

COUNT = 12
VERIFY = ("explainer.onnx", "bundle", "--images", "photos", "--batch-size", "4", "--threads", "1")


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    folder = tmp_path_factory.mktemp("exported")
    save_bundle(tiny_bundle(), folder / "bundle")
    path = folder / "explainer.onnx"
    result = CliRunner().invoke(main, ("export", str(folder / "bundle"), str(path)))
    assert result.exit_code == 0, result.output
    return path.read_bytes()


@pytest.fixture(autouse=True)
def folder(exported: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    save_bundle(tiny_bundle(), Path("bundle"))
    Path("explainer.onnx").write_bytes(exported)
    for number in range(COUNT):
        path = Path("photos", "left" if number % 2 else "right", f"{number}.png")
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels(number)).save(path)


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main, ("verify", *(arguments or VERIFY)))


def one_line(result: Result, exit_code: int = 1) -> str:
    assert result.exit_code == exit_code, result.output
    assert isinstance(result.exception, SystemExit)
    line = result.stderr.strip().splitlines()[-1]
    assert line.startswith("Error: ")
    return line


def damage() -> None:
    model = onnx.load("explainer.onnx")
    weights = load_bundle("bundle").classifier.weights["first.bias"].numpy()
    put(constant(model, weights), weights + np.float32(0.05))
    onnx.save(model, "explainer.onnx")


def test_an_explainer_that_equals_its_bundle_ends_with_0_and_says_how_fast_it_is() -> None:
    result = run(*VERIFY, "--json", "figures.json")
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines()[-1] == f"explainer.onnx equals bundle on {COUNT} images"
    assert "At kinks" not in result.stderr
    for words in (
        "12 images in batches of 1, 3, 4",
        "generated_map",
        "0.001",
        "equal",
        "1 thread each",
        "PyTorch / ONNX",
    ):
        assert words in result.stderr
    assert "differs" not in result.stderr
    figures = json.loads(Path("figures.json").read_text())
    assert figures["verdict"] == "equal"
    assert figures["images"] == COUNT
    assert figures["bundle_sha256"] == figures["explainer"]["bundle_sha256"] == load_bundle("bundle").sha256
    assert {each["output"] for each in figures["outputs"] if each["equal"]} >= {"logits", "top_class", "generated_map"}
    assert [each["batch_size"] for each in figures["speed"]["batches"]] == [1, 4]
    assert all(each["torch"] > 0 and each["onnx_runtime"] > 0 for each in figures["speed"]["batches"])


def test_a_damaged_graph_ends_with_1_and_says_where_it_differs() -> None:
    damage()
    result = run(*VERIFY, "--json", "figures.json")
    assert result.exit_code == 1
    assert result.stdout.splitlines()[-1] == f"explainer.onnx differs from bundle on {COUNT} images"
    differing = [line for line in result.stderr.splitlines() if "differs" in line]
    assert any(line.startswith("│ logits ") for line in differing)
    figures = json.loads(Path("figures.json").read_text())
    assert figures["verdict"] == "differs"
    # The maps that differ are compared once more, and named by their files.
    assert figures["maps_beyond"]
    for each in figures["maps_beyond"]:
        assert Path("photos", each["image"]).is_file()
        assert each["image"] in result.stderr
        assert each["torch_from_float64"] < 1e-5 < each["onnx_from_float64"]
    assert "float64" in result.stderr
    assert "At kinks: " in result.stderr


def test_maps_at_kinks_end_with_0_and_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    # What is real of this verdict is in the tests of `verify`; here is how it is told.
    map_at_kink = MapBeyond("left/1.png", PathwaySource.GENERATED, 0.1, 0.1, 0.0, True, 1e-7)

    def with_a_map_at_a_kink(*arguments: Any) -> Verification:
        found = verify(*arguments)
        outputs = [
            replace(each, largest=0.1, images_beyond=1) if each.output == "generated_map" else each
            for each in found.outputs
        ]
        return replace(found, outputs=tuple(outputs), maps_beyond=(map_at_kink,))

    monkeypatch.setattr(module, "verify", with_a_map_at_a_kink)
    result = run(*VERIFY, "--json", "figures.json")
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines()[-1] == f"explainer.onnx equals bundle on {COUNT} images, but for 1 map at kinks"
    assert "At kinks: 1 of 1." in result.stderr
    assert "left/1.png" in result.stderr
    assert "in 0 of 1." in result.stderr
    figures = json.loads(Path("figures.json").read_text())
    assert figures["verdict"] == "equal_but_at_kinks"
    assert figures["maps_beyond"][0]["at_kink"] is True


def test_a_value_that_is_not_finite_is_null_in_json() -> None:
    model = onnx.load("explainer.onnx")
    weights = load_bundle("bundle").classifier.weights["first.bias"].numpy()
    put(constant(model, weights), np.full_like(weights, np.inf))
    onnx.save(model, "explainer.onnx")
    assert run(*VERIFY, "--json", "figures.json").exit_code == 1
    outputs = json.loads(Path("figures.json").read_text(), parse_constant=pytest.fail)["outputs"]
    assert next(each for each in outputs if each["output"] == "logits")["largest"] is None


def test_the_bundle_fitted_anew_on_the_same_classifier_is_warned_of() -> None:
    bundle = tiny_bundle()
    save_bundle(replace(bundle, fit=bundle.fit.model_copy(update={"seed": 77})), Path("bundle"))
    result = run()
    assert result.exit_code == 0, result.output
    assert "was exported from bundle" in result.stderr
    assert load_bundle("bundle").sha256 in result.stderr


def test_no_more_images_than_the_limit_and_unreadable_ones_are_named() -> None:
    Path("photos", "broken.png").write_bytes(b"not an image")
    result = run(*VERIFY, "--limit", "100")
    assert result.stdout.splitlines()[-1] == f"explainer.onnx equals bundle on {COUNT} images"
    assert "Skipped photos/broken.png" in result.stderr
    for path in Path("photos").rglob("broken.png"):
        path.unlink()
    assert run(*VERIFY, "--limit", "3").stdout.splitlines()[-1] == "explainer.onnx equals bundle on 3 images"


def test_ctrl_c_does_not_look_like_a_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "measure_speed", lambda *_: signal.raise_signal(signal.SIGINT))
    result = run()
    assert result.exit_code == 130
    assert "Interrupted." in result.stderr
    assert "Traceback" not in result.output


def test_ctrl_c_while_the_command_is_imported_does_not_either(monkeypatch: pytest.MonkeyPatch) -> None:
    # By its name, because the package calls the function of the module `main`.
    group = sys.modules["pathlens.cli.main"]
    monkeypatch.setattr(group, "import_module", lambda _: signal.raise_signal(signal.SIGINT))
    result = run()
    assert result.exit_code == 130
    assert result.stderr.splitlines() == ["Interrupted."]


class TestRefuses:
    def test_a_place_for_the_figures_where_nothing_can_be_written_before_the_work(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(module, "verify", lambda *_: pytest.fail("the work has begun"))
        assert "explainer.onnx: " in one_line(run(*VERIFY, "--json", "explainer.onnx/figures.json"))

    def test_a_file_that_is_no_onnx_file(self) -> None:
        Path("explainer.onnx").write_bytes(b"no graph at all")
        error = one_line(run())
        assert "explainer.onnx is not an ONNX file" in error
        assert "[EXPLAINER_INVALID]" in error

    def test_an_onnx_file_that_is_no_explainer(self) -> None:
        model = onnx.load("explainer.onnx")
        del model.metadata_props[:]
        onnx.save(model, "explainer.onnx")
        assert "but no explainer" in one_line(run())

    def test_the_bundle_of_another_classifier_with_both_hashes(self) -> None:
        ours = load_bundle("bundle").classifier.fingerprint
        save_bundle(tiny_bundle(seed=1), Path("bundle"))
        error = one_line(run())
        assert ours in error
        assert load_bundle("bundle").classifier.fingerprint in error

    def test_a_file_that_is_newer_than_this_onnx_runtime(self) -> None:
        model = onnx.load("explainer.onnx")
        model.ir_version = 99
        onnx.save(model, "explainer.onnx")
        assert "IR version 99" in one_line(run())

    @pytest.mark.parametrize(
        ("images", "words"),
        [("nowhere", "nowhere"), ("empty", "holds no images"), ("bad", "None of the images can be read")],
    )
    def test_images_that_are_none(self, images: str, words: str) -> None:
        Path("empty").mkdir()
        Path("bad").mkdir()
        Path("bad", "broken.png").write_bytes(b"not an image")
        assert words in one_line(run("explainer.onnx", "bundle", "--images", images))

    def test_the_arguments_the_wrong_way_round(self) -> None:
        assert "bundle cannot be read" in one_line(run("bundle", "explainer.onnx", "--images", "photos"))

    @pytest.mark.parametrize("option", ["--limit", "--batch-size", "--threads"])
    def test_a_number_that_is_none(self, option: str) -> None:
        assert option in one_line(run(*VERIFY, option, "0"), 2)


def test_the_help_shows_examples() -> None:
    assert (
        "\n    pathlens verify digits.onnx build/digits/bundle --images build/digits/images\n" in run("--help").output
    )
