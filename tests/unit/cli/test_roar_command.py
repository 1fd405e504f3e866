"""`pathlens roar` from a bundle and images to a report, with interruptions, and its errors in one line."""

import dataclasses
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from pathlens.bundle.store import save_bundle
from pathlens.classifier.preprocessing import Preprocessing
from pathlens.cli import main
from tiny_bundle import LABELS, pixels, tiny_bundle

MODULE = """
from pathlib import Path
import torch
from torch import nn

def linear(features=3 * 8 * 8, classes=5):
    with open("made.txt", "a") as file:
        file.write("x")
    return nn.Sequential(nn.Flatten(), nn.Linear(features, classes))

def interrupted():
    if len(Path("made.txt").read_text()) == 6:
        raise KeyboardInterrupt
    return linear()

def grey(): return linear(features=8 * 8)
def many(): return linear(classes=7)
def broken(): raise OSError("no such file")
"""
MAPS = ("neuron_mct", "gradient", "gradient_times_input", "integrated_gradients", "random")
ROAR = (
    *("roar", "bundle", "--classifier", "tiny_roar:linear", "--images", "photos", "--out", "out"),
    *("--fractions", "0.5,0.25", "--seeds", "2", "--epochs", "1", "--batch-size", "4"),
)
TASKS = 2 + len(MAPS) * 2 * 2


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main, arguments)


def instead(**options: str) -> list[str]:
    """The command with other values of some options."""
    arguments = list(ROAR)
    for name, value in options.items():
        option = f"--{name.replace('_', '-')}"
        if option in arguments:
            arguments[arguments.index(option) + 1] = value
        else:
            arguments += [option, value]
    return arguments


def one_line(result: Result, exit_code: int = 1) -> str:
    assert result.exit_code == exit_code, result.output
    assert isinstance(result.exception, SystemExit)
    line = result.stderr.strip().splitlines()[-1]
    assert line.startswith("Error: ")
    return line


def observations() -> str:
    return Path("out/observations.csv").read_text()


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with a bundle, a module and labelled photographs, as the current folder."""
    save_bundle(tiny_bundle(), tmp_path / "bundle")
    (tmp_path / "tiny_roar.py").write_text(MODULE)
    (tmp_path / "made.txt").touch()
    for number in range(12):
        path = tmp_path / "photos" / ("left" if number % 2 else "right") / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels(number)).save(path)
    monkeypatch.chdir(tmp_path)
    # The command puts the current folder there.
    monkeypatch.setattr(sys, "path", sys.path.copy())
    monkeypatch.setenv("COLUMNS", "200")
    yield tmp_path
    sys.modules.pop("tiny_roar", None)


def made() -> int:
    """Networks that the factory made so far."""
    return len(Path("made.txt").read_text())


class TestReport:
    def test_a_run_writes_a_report_and_prints_its_path_last(self) -> None:
        result = run(*ROAR)
        assert result.exit_code == 0, result.output
        assert result.stdout == "out/report.html\n"
        assert {path.name for path in Path("out").iterdir()} == {
            *("report.html", "report.json", "summaries.csv", "observations.csv", "journal.jsonl"),
        }
        summaries = json.loads(Path("out/report.json").read_text())["summaries"]
        assert [(each["method"], each["detail"], each["count"]) for each in summaries] == [
            ("", "0", 2),
            *((name, fraction, 2) for name in MAPS for fraction in ("0.25", "0.5")),
        ]

    def test_the_table_shows_the_mean_accuracy_by_map_and_fraction(self) -> None:
        result = run(*ROAR)
        means = {
            (each["method"], each["detail"]): f"{each['mean']:.1%}"
            for each in json.loads(Path("out/report.json").read_text())["summaries"]
        }
        rows = [line.strip("│ ").split("│") for line in result.stderr.splitlines() if line.startswith("│")]
        assert [[cell.strip() for cell in row] for row in rows] == [
            [name, means["", "0"], means[name, "0.25"], means[name, "0.5"]] for name in MAPS
        ]

    def test_the_same_seed_gives_the_same_figures(self, folder: Path) -> None:
        run(*ROAR)
        first = observations()
        (folder / "out" / "journal.jsonl").unlink()
        run(*ROAR)
        assert observations() == first

    def test_help_shows_an_example(self) -> None:
        result = run("roar", "--help")
        assert result.exit_code == 0
        assert "\n    pathlens roar" in result.output.partition("Example")[2]


class TestInterruption:
    def test_the_same_command_goes_on_and_ends_as_an_uninterrupted_one(self) -> None:
        stopped = run(*instead(classifier="tiny_roar:interrupted"))
        assert stopped.exit_code == 130
        # Beside the retrainings that were done, two networks were made for checks.
        assert f"Stopped after 4 of {TASKS} retrainings. The same command goes on from there." in stopped.stderr
        assert not Path("out/report.html").exists()
        Path("made.txt").write_text("")
        Path("tiny_roar.py").write_text(MODULE.replace("== 6", "== -1"))
        sys.modules.pop("tiny_roar")
        gone_on = run(*instead(classifier="tiny_roar:interrupted"))
        assert gone_on.exit_code == 0, gone_on.output
        assert made() == TASKS - 4 + 2
        continued = observations()
        run(*instead(out="anew"))
        assert continued == Path("anew/observations.csv").read_text()

    def test_a_finished_run_trains_nothing_again(self) -> None:
        run(*ROAR)
        before = made()
        assert run(*ROAR).exit_code == 0
        assert made() == before + 2

    @pytest.mark.parametrize("option", [{"seeds": "1"}, {"epochs": "2"}, {"seed": "1"}, {"learning_rate": "0.1"}])
    def test_other_settings_do_not_go_on_with_it(self, option: dict[str, str]) -> None:
        run(*instead(seeds="1", fractions="0.5"))
        before = Path("out/journal.jsonl").read_text()
        assert "other settings" in one_line(run(*instead(**option)))
        assert Path("out/journal.jsonl").read_text() == before

    def test_other_images_do_not_go_on_with_it(self) -> None:
        run(*instead(seeds="1", fractions="0.5"))
        Image.fromarray(pixels(99)).save("photos/left/1.png")
        assert "other settings" in one_line(run(*instead(seeds="1", fractions="0.5")))


class TestLabels:
    def test_those_of_an_npz_file_count(self) -> None:
        images = np.stack([pixels(number) for number in range(12)])
        np.savez("photos.npz", images=images, labels=np.arange(12) % 5)
        assert run(*instead(images="photos.npz", seeds="1", fractions="0.5")).exit_code == 0

    def test_those_of_a_csv_file_come_before_the_folders(self) -> None:
        names = sorted(path.relative_to("photos").as_posix() for path in Path("photos").rglob("*.png"))
        Path("labels.csv").write_text("file,label\n" + "".join(f"{name},{LABELS[0]}\n" for name in names))
        assert "of one class" in one_line(run(*instead(labels="labels.csv")))

    def test_an_unreadable_image_is_left_out_and_named(self) -> None:
        Path("photos/left/1.png").write_bytes(b"nothing")
        result = run(*instead(seeds="1", fractions="0.5"))
        assert result.exit_code == 0, result.output
        assert "Skipped photos/left/1.png" in result.stderr
        assert "9 to train on and 2 held out" in Path("out/report.json").read_text()


class TestRefuses:
    @pytest.mark.parametrize(
        "option",
        [
            *({"fractions": value} for value in ("0", "0.5,1", "-0.1", "nan", "half", "")),
            {"seeds": "0"},
            {"epochs": "0"},
            {"batch_size": "0"},
            {"learning_rate": "0"},
            {"held_out": "1"},
            {"held_out": "nan"},
            {"device": "toaster"},
        ],
    )
    def test_an_impossible_option(self, option: dict[str, str]) -> None:
        assert f"--{next(iter(option)).replace('_', '-')}" in one_line(run(*instead(**option)), 2)
        assert not Path("out").exists()

    @pytest.mark.parametrize(
        ("factory", "words"),
        [
            ("tiny_roar:missing", "cannot be imported"),
            ("tiny_roar:broken", "failed with OSError"),
            ("tiny_roar:grey", "does not take images"),
            ("tiny_roar:many", "returns [2, 7] for 2 images; expected [2, 5]"),
            ("program.pt2", "program.pt2"),
        ],
    )
    def test_a_factory_that_makes_no_such_classifier(self, factory: str, words: str) -> None:
        assert words in one_line(run(*instead(classifier=factory)))
        assert not Path("out").exists()

    def test_a_bundle_that_is_none(self) -> None:
        assert "is not a bundle" in one_line(run("roar", "photos", *ROAR[2:]))

    def test_one_class_only(self) -> None:
        for path in Path("photos/right").iterdir():
            path.unlink()
        assert "All 6 images are of one class" in one_line(run(*ROAR))

    def test_images_without_labels(self) -> None:
        line = one_line(run(*instead(images="photos/left")))
        assert "6 of 6 images have no label, such as 1.png" in line
        np.savez("photos.npz", images=np.stack([pixels(number) for number in range(12)]))
        assert "12 of 12 images have no label, such as images[0]" in one_line(run(*instead(images="photos.npz")))

    def test_an_image_beside_the_class_folders(self) -> None:
        Image.fromarray(pixels(99)).save("photos/99.png")
        assert "1 of 13 images have no label, such as 99.png" in one_line(run(*ROAR))

    def test_more_class_folders_than_classes(self) -> None:
        for number in range(5):
            path = Path("photos", str(number), "image.png")
            path.parent.mkdir()
            Image.fromarray(pixels(number)).save(path)
        assert "7 class folders" in one_line(run(*ROAR))

    def test_images_that_do_not_fit_into_memory(self) -> None:
        huge = Preprocessing(8000, 8000, mean=(0.0,) * 3, std=(1.0,) * 3)
        save_bundle(dataclasses.replace(tiny_bundle(), preprocessing=huge), Path("bundle"))
        assert "12 images of 3 x 8000 x 8000 need 8.6 GiB of memory" in one_line(run(*ROAR))

    def test_images_of_which_none_can_be_read(self) -> None:
        for path in Path("photos").rglob("*.png"):
            path.write_bytes(b"nothing")
        assert "None of the 12 images could be read" in one_line(run(*ROAR))
