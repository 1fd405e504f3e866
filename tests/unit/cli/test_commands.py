"""The `pathlens` command: help that shows an example, errors in one line, and fit and pack from end to end."""

import hashlib
import json
import socket
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from PIL import Image

from pathlens.bundle.store import MANIFEST, load_bundle, save_bundle
from pathlens.cli import main
from pathlens.cli.explain import explanation_table
from pathlens.explanation import Ablation
from pathlens.version import __version__
from tiny_bundle import pixels, png, tiny_bundle

MODULE = """
import torch
import torch.nn.functional as F
from torch import nn

class Shop(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.features, self.last = nn.Conv2d(3, 4, 3), nn.Linear(4, 2)
        with torch.no_grad():
            self.last.weight.mul_(10)

    def forward(self, images):
        return self.last(F.relu(self.features(images)).mean((2, 3)))

def two_arguments(first, second): ...
not_a_network = dict
"""
FIT = [
    *("fit", "--classifier", "tiny_shop:Shop", "--images", "photos", "--out", "shop", "--size", "8"),
    *("--mean", "0.5,0.5,0.5", "--std", "0.2,0.2,0.2", "--workers", "0"),
    *("--generator-steps", "4", "--class-steps", "4", "--training-batch", "8"),
]


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main, arguments)


def one_line(result: Result, exit_code: int = 1) -> str:
    """Return the error that a command ended with, which must be the last line and not a traceback."""
    assert result.exit_code == exit_code, result.output
    # Anything but SystemExit is an exception that went through: the user would see a traceback.
    assert isinstance(result.exception, SystemExit)
    assert "Traceback" not in result.output
    line = result.stderr.strip().splitlines()[-1]
    assert line.startswith("Error: ")
    return line


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with a classifier's module and photographs, as the current folder."""
    (tmp_path / "tiny_shop.py").write_text(MODULE)
    for number in range(20):
        path = tmp_path / "photos" / ("left" if number % 2 else "right") / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels(number) // (1 + number % 3)).save(path)
    monkeypatch.chdir(tmp_path)
    # The command puts the current folder there.
    monkeypatch.setattr(sys, "path", sys.path.copy())
    monkeypatch.setenv("COLUMNS", "200")
    yield tmp_path
    sys.modules.pop("tiny_shop", None)


@pytest.fixture
def nobody() -> Iterator[str]:
    """An address where nobody listens."""
    with socket.socket() as taken:
        # Bound but not listening: no other process can open it either.
        taken.bind(("127.0.0.1", 0))
        yield f"127.0.0.1:{taken.getsockname()[1]}"


class TestHelp:
    @pytest.mark.parametrize("command", ["backend", "evaluate", "explain", "fit", "models", "pack", "roar", "serve"])
    def test_every_command_shows_an_example(self, command: str) -> None:
        result = run(command, "--help")
        assert result.exit_code == 0
        example = result.output.partition("Example")[2]
        assert f"\n  pathlens {command}" in example or f"\n    pathlens {command}" in example

    def test_the_command_lists_its_commands_and_three_to_begin_with(self) -> None:
        result = run("--help")
        assert result.exit_code == 0
        for command in ("fit", "pack", "serve"):
            assert f"pathlens {command}" in result.output
        for command in ("backend", "evaluate", "explain", "fit", "models", "pack", "roar", "serve"):
            assert f"\n  {command} " in result.output

    @pytest.mark.parametrize("flag", ["-h", "--help"])
    def test_help_has_a_short_name(self, flag: str) -> None:
        assert run("pack", flag).exit_code == 0

    def test_the_version_is_told(self) -> None:
        assert run("--version").output == f"pathlens, version {__version__}\n"

    def test_an_unknown_command_is_refused(self) -> None:
        assert "nonsense" in one_line(run("nonsense"), 2)


class TestFitAndPack:
    def test_a_classifier_becomes_an_archive(self, shop: Path) -> None:
        fitted = run(*FIT, "--minimum-images", "2")
        assert fitted.exit_code == 0, fitted.output
        bundle = load_bundle(shop / "shop")
        assert (bundle.name, bundle.labels) == ("shop", ("left", "right"))
        assert bundle.preprocessing.mean == (0.5, 0.5, 0.5)
        assert bundle.fit.images + bundle.fit.held_out_images == 20
        assert len(bundle.bank) >= 1
        # A script may take the hash from the last line of the output.
        assert fitted.stdout.splitlines()[-1] == f"shop  SHA-256 {bundle.sha256}"

        packed = run("pack", "shop", "--model-store", "store", "--version", "2.0")
        assert packed.exit_code == 0, packed.output
        archive = shop / "store" / "shop.mar"
        assert packed.stdout.endswith(f"SHA-256 {hashlib.sha256(archive.read_bytes()).hexdigest()}\n")
        with zipfile.ZipFile(archive) as content:
            assert json.loads(content.read("MAR-INF/MANIFEST.json"))["model"]["modelVersion"] == "2.0"

        (result,) = bundle.explainer().explain([png(pixels(50))])
        assert result.explanations or result.predictions

    @pytest.mark.usefixtures("shop")
    def test_the_same_seed_gives_the_same_bundle(self) -> None:
        digests = []
        for _ in range(2):
            result = run(*FIT, "--minimum-images", "2", "--seed", "3")
            assert result.exit_code == 0, result.output
            digests.append(result.stdout.splitlines()[-1])
        assert digests[0] == digests[1]

    def test_unreadable_images_are_skipped_and_named(self, shop: Path) -> None:
        (shop / "photos" / "left" / "broken.png").write_bytes(b"not an image")
        result = run(*FIT, "--minimum-images", "2")
        assert result.exit_code == 0, result.output
        assert "broken.png" in result.stderr
        assert load_bundle(shop / "shop").fit.skipped_images == 1

    def test_held_out_images_of_their_own_leave_all_others_to_build(self, shop: Path) -> None:
        for number in range(6):
            path = shop / "others" / f"{number}.png"
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(png(pixels(100 + number)) if number else b"not an image")
        result = run(*FIT, "--minimum-images", "2", "--held-out-images", "others")
        assert result.exit_code == 0, result.output
        fit = load_bundle(shop / "shop").fit
        assert (fit.images, fit.held_out_images, fit.skipped_images) == (20, 5, 1)
        assert "others/0.png" in result.stderr

    def test_labels_may_come_from_a_file(self, shop: Path) -> None:
        (shop / "labels.txt").write_text("nah\nfar\n")
        assert run(*FIT, "--minimum-images", "2", "--labels", "labels.txt").exit_code == 0
        assert load_bundle(shop / "shop").labels == ("nah", "far")


class TestFitRefuses:
    @pytest.mark.parametrize(
        ("options", "words"),
        [
            (("--size", "big"), "'big' is not a size"),
            (("--size", "8x8x8"), "is not a size"),
            (("--size", "-8"), "is not a size"),
            (("--size", ""), "is not a size"),
            (("--size", "0"), "height is 0"),
            (("--mean", "0.5,0.5"), "give 3 finite numbers"),
            (("--mean", "a,b,c"), "is not a list of numbers"),
            (("--mean", "nan,0,0"), "give 3 finite numbers"),
            (("--std", "0,1,1"), "must be above 0"),
            (("--colour", "grey", "--std", "1,1,1"), "give 1 finite numbers"),
            (("--resize", "7"), "too small to cut"),
            (("--sparsity", "1"), "1"),
            (("--sparsity", "nan"), "nan"),
            (("--threshold", "0"), "0"),
            (("--threshold", "nan"), "nan"),
            (("--granularity", "pixel"), "pixel"),
            (("--minimum-images", "0"), "0"),
            (("--device", "toaster"), "toaster"),
        ],
    )
    def test_an_impossible_option(self, options: tuple[str, ...], words: str, shop: Path) -> None:
        assert words in one_line(run(*FIT, *options), 2)
        assert not (shop / "shop").exists()

    @pytest.mark.parametrize(
        ("source", "words"),
        [
            ("tiny_shop:Missing", "Missing"),
            ("no_such_module:Shop", "no_such_module"),
            ("tiny_shop", "neither package.module:factory"),
            ("tiny_shop:not_a_network", "expected a torch.nn.Module"),
            ("missing.pt2", "missing.pt2"),
            ("model.onnx", "ONNX"),
        ],
    )
    @pytest.mark.usefixtures("shop")
    def test_a_classifier_that_is_none(self, source: str, words: str) -> None:
        assert words in one_line(run(*FIT, "--classifier", source))

    @pytest.mark.parametrize("missing", ["--classifier", "--images", "--out"])
    @pytest.mark.usefixtures("shop")
    def test_a_missing_option(self, missing: str) -> None:
        place = FIT.index(missing)
        assert missing in one_line(run(*FIT[:place], *FIT[place + 2 :]), 2)

    @pytest.mark.parametrize("count", [1, 3])
    def test_labels_that_do_not_fit_the_classes(self, count: int, shop: Path) -> None:
        (shop / "labels.txt").write_text("label\n" * count)
        assert f"{count} labels were given for 2 classes" in one_line(run(*FIT, "--labels", "labels.txt"))

    @pytest.mark.usefixtures("shop")
    def test_labels_that_cannot_be_read(self) -> None:
        assert "nowhere.txt cannot be read" in one_line(run(*FIT, "--labels", "nowhere.txt"))

    @pytest.mark.usefixtures("shop")
    def test_images_that_do_not_exist(self) -> None:
        assert "nowhere" in one_line(run(*FIT, "--images", "nowhere"))

    @pytest.mark.usefixtures("shop")
    def test_held_out_images_that_do_not_exist(self) -> None:
        assert "nowhere" in one_line(run(*FIT, "--held-out-images", "nowhere"))

    @pytest.mark.parametrize("shared", ["photos", "photos/left", "."])
    def test_held_out_images_that_also_build(self, shared: str, shop: Path) -> None:
        assert "share images" in one_line(run(*FIT, "--held-out-images", shared), 2)
        assert not (shop / "shop.unfinished").exists()

    def test_a_folder_without_images(self, shop: Path) -> None:
        (shop / "empty").mkdir()
        assert "holds no images" in one_line(run(*FIT, "--images", "empty"))

    @pytest.mark.usefixtures("shop")
    def test_too_few_images_of_every_class(self) -> None:
        assert "No classes of 2 got 1000 images" in one_line(run(*FIT, "--minimum-images", "1000"))

    def test_a_folder_that_is_not_a_bundle_before_any_work(self, shop: Path) -> None:
        error = one_line(run(*FIT, "--out", "photos", "--classifier", "no_such_module:Shop"))
        assert "photos exists and is not a bundle" in error
        assert len(list((shop / "photos").rglob("*.png"))) == 20

    @pytest.mark.parametrize("options", [("--name", "my model"), ("--out", "my folder"), ("--out", ".hidden")])
    @pytest.mark.usefixtures("shop")
    def test_a_name_that_a_model_cannot_have_before_any_work(self, options: tuple[str, str]) -> None:
        assert "The name is" in one_line(run(*FIT, *options, "--classifier", "no_such_module:Shop"))


class TestPackRefuses:
    def test_a_folder_that_is_not_a_bundle(self, tmp_path: Path) -> None:
        error = one_line(run("pack", str(tmp_path), "--model-store", str(tmp_path / "store")))
        assert "is not a bundle" in error
        assert "[BUNDLE_INVALID]" in error
        assert not (tmp_path / "store").exists()

    def test_a_bundle_that_lost_a_file(self, tmp_path: Path) -> None:
        save_bundle(tiny_bundle(), tmp_path / "bundle")
        (tmp_path / "bundle" / "bank.safetensors").unlink()
        assert "lacks the file bank.safetensors" in one_line(run("pack", str(tmp_path / "bundle")))

    def test_a_manifest_that_is_none(self, tmp_path: Path) -> None:
        (tmp_path / MANIFEST).write_bytes(b"\xff\xfe")
        assert "is damaged" in one_line(run("pack", str(tmp_path)))

    def test_a_version_that_is_none(self, tmp_path: Path) -> None:
        save_bundle(tiny_bundle(), tmp_path / "bundle")
        assert "version is 'latest'" in one_line(run("pack", str(tmp_path / "bundle"), "--version", "latest"))


class TestWithoutServer:
    @pytest.mark.parametrize("form", ["table", "json"])
    def test_explain_says_in_one_line_that_nobody_answers(self, form: str, nobody: str, tmp_path: Path) -> None:
        image = tmp_path / "cat.png"
        image.write_bytes(png(pixels(0)))
        result = run("explain", str(image), "--address", nobody, "--format", form)
        assert "[UNAVAILABLE]" in one_line(result)
        assert len(result.stderr.strip().splitlines()) == 1
        assert result.stdout == ""

    def test_models_says_in_one_line_that_nobody_answers(self, nobody: str) -> None:
        result = run("models", "--address", nobody)
        assert "[UNAVAILABLE]" in one_line(result)
        assert len(result.output.strip().splitlines()) == 1

    def test_an_image_that_does_not_exist_is_named(self, nobody: str) -> None:
        assert "nowhere.png" in one_line(run("explain", "nowhere.png", "--address", nobody), 2)

    @pytest.mark.parametrize(
        "option",
        [
            ("--class-index", str(2**31)),
            ("--class-index", "one"),
            ("--top-k", str(2**32)),
            ("--top-k", "-1"),
            ("--top-neurons", str(2**32)),
            ("--source", "guess"),
            ("--output", "poem"),
            ("--timeout", "0"),
            ("--timeout", "nan"),
        ],
    )
    def test_an_option_that_no_message_can_hold_is_refused(
        self, option: tuple[str, str], nobody: str, tmp_path: Path
    ) -> None:
        image = tmp_path / "cat.png"
        image.write_bytes(png(pixels(0)))
        assert option[0] in one_line(run("explain", str(image), "--address", nobody, *option), 2)

    def test_serve_without_archives_says_how_to_make_one(self, tmp_path: Path) -> None:
        assert "pathlens pack" in one_line(run("serve", "--model-store", str(tmp_path)))


class TestExplanationTable:
    @pytest.mark.parametrize(
        ("ablation", "words"),
        [(Ablation.ZERO, "zero"), (Ablation.MEAN, "their mean"), (Ablation.OPTIMAL, "constants learned")],
    )
    def test_it_says_what_removed_neurons_put_out(self, ablation: Ablation, words: str) -> None:
        assert f"Removed neurons put out {words}" in str(explanation_table(ablation=ablation).caption)

    def test_rows_of_several_ablations_share_no_such_word(self) -> None:
        assert "Removed neurons" not in str(explanation_table().caption)

    def test_every_source_can_be_asked_for(self) -> None:
        assert "[transferred|generated|neuron_mct|neuron_intgrad]" in run("explain", "--help").output.replace("\n", "")


class TestPorts:
    @pytest.mark.parametrize("option", ["--port", "--metrics-port"])
    @pytest.mark.parametrize("port", ["99999", "-1"])
    def test_a_port_that_cannot_be_is_a_usage_error(self, option: str, port: str) -> None:
        assert option in one_line(run("serve", f"{option}={port}"), 2)

    @pytest.mark.parametrize("option", ["--port", "--metrics-port"])
    def test_a_taken_port_names_its_option_before_anything_starts(self, option: str, tmp_path: Path) -> None:
        (tmp_path / "any.mar").touch()
        with socket.create_server(("127.0.0.1", 0)) as taken:
            ports = {"--port": "0", "--metrics-port": "0", option: str(taken.getsockname()[1])}
            arguments = [f"{name}={port}" for name, port in ports.items()]
            # To what is no terminal, `auto` would write JSON.
            said = one_line(run("serve", str(tmp_path / "any.mar"), "--log-format=text", *arguments))
        assert f"with {option}" in said
        assert "[PORT_UNAVAILABLE]" in said


class TestMistakes:
    def test_pictures_need_a_place_to_go(self, nobody: str, tmp_path: Path) -> None:
        image = tmp_path / "cat.png"
        image.write_bytes(png(pixels(0)))
        said = one_line(run("explain", str(image), "--address", nobody, "--output", "heatmap"), 2)
        assert "--out" in said

    def test_a_folder_that_cannot_be_made_is_named(self, nobody: str, tmp_path: Path) -> None:
        image = tmp_path / "cat.png"
        image.write_bytes(png(pixels(0)))
        assert "/proc/" in one_line(run("explain", str(image), "--address", nobody, "--out", "/proc/nope"))

    def test_a_factory_that_fails_is_named(self, tmp_path: Path) -> None:
        (tmp_path / "image.png").write_bytes(png(pixels(0)))
        said = one_line(
            run("fit", "--classifier", "json:loads", "--images", str(tmp_path), "--out", str(tmp_path / "b"))
        )
        assert "json:loads() failed with TypeError" in said

    def test_a_missing_service_names_the_remedy(self, nobody: str) -> None:
        assert "pathlens serve" in one_line(run("models", "--address", nobody))
