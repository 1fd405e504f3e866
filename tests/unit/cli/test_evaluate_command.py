"""`pathlens evaluate` from a bundle and images to a report, and its errors in one line."""

import csv
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from pathlens.bundle.store import save_bundle
from pathlens.cli import main
from pathlens.explanation import Ablation, Granularity
from tiny_bundle import pixels, tiny_bundle

EVALUATE = (
    *("evaluate", "bundle", "--images", "photos", "--out", "out", "--labels", "labels.csv"),
    *("--sparsity", "0.5", "--map-sparsity", "0.5", "--steps", "2", "--sample", "4", "--radius", "0.5"),
    *("--batch-size", "4", "--minimum-images", "1", "--layers", "2"),
)
COUNT = 8


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    save_bundle(tiny_bundle(), Path("bundle"))
    Path("photos").mkdir()
    lines = ["file,label,boxes"]
    for number in range(COUNT):
        Image.fromarray(pixels(number)).save(f"photos/{number}.png")
        lines.append(f'{number}.png,{number % 5},"[[1, 1, 6, 7]]"')
    Path("labels.csv").write_text("\n".join(lines))


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main, arguments)


def instead(option: str, value: str) -> list[str]:
    """The command with another value of one option."""
    arguments = list(EVALUATE)
    if option in arguments:
        arguments[arguments.index(option) + 1] = value
        return arguments
    return [*arguments, option, value]


def measures() -> set[str]:
    return {row["measure"] for row in json.loads(Path("out/report.json").read_text())["summaries"]}


def test_the_report_has_its_four_files_and_is_named_at_the_end() -> None:
    result = run(*EVALUATE)
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines()[-1] == str(Path("out/report.html"))
    assert "NeuronMCT" in Path("out/report.html").read_text()
    with Path("out/observations.csv").open() as file:
        assert sum(row["measure"] == "accuracy" for row in csv.DictReader(file)) == COUNT
    assert {"agreement", "forcing", "area between", "pointing game", "ssim", "linearity error", "cost"} <= measures()


def test_a_second_run_reads_everything_from_the_journal() -> None:
    run(*EVALUATE)
    before = Path("out/report.json").read_bytes()
    assert run(*EVALUATE).exit_code == 0
    assert Path("out/report.json").read_bytes() == before


def test_an_npz_labels_its_own_images() -> None:
    np.savez("images.npz", images=np.stack([pixels(n) for n in range(COUNT)]), labels=np.arange(COUNT) % 5)
    arguments = instead("--images", "images.npz")
    del arguments[arguments.index("--labels") : arguments.index("--labels") + 2]
    assert run(*arguments).exit_code == 0
    assert "accuracy" in measures()
    assert "pointing game" not in measures()


def test_an_unreadable_image_is_left_out_and_named() -> None:
    Path("photos/3.png").write_bytes(b"no image")
    result = run(*EVALUATE)
    assert result.exit_code == 0
    assert "Skipped" in result.stderr
    assert "3.png" in result.stderr


def test_units_of_a_bundle_of_channels_are_measured_without_its_class_pathways() -> None:
    assert run(*instead("--granularity", Granularity.UNIT.value)).exit_code == 0
    with Path("out/summaries.csv").open() as file:
        methods = {row["method"] for row in csv.DictReader(file) if row["measure"] == "agreement"}
    assert "neuron_mct" in methods
    assert methods.isdisjoint({"transferred", "generated"})
    assert "channel pathways" in json.loads(Path("out/report.json").read_text())["facts"]["GEN-CNP left out"]


def test_one_image_alone_is_enough() -> None:
    assert run(*instead("--limit", "1")).exit_code == 0


def report() -> dict[str, Any]:
    contents: dict[str, Any] = json.loads(Path("out/report.json").read_text())
    return contents


def test_the_ablation_of_the_bundle_is_the_default_and_stated_everywhere() -> None:
    shutil.rmtree("bundle")
    save_bundle(tiny_bundle(ablation=Ablation.OPTIMAL), Path("bundle"))
    result = run(*EVALUATE)
    assert result.exit_code == 0, result.output
    assert "50% sparsity, optimal ablation" in " ".join(result.stderr.split())
    assert report()["facts"]["ablation"] == "optimal"
    rows = [row for row in report()["summaries"] if row["measure"] in ("agreement", "forcing", "overlap")]
    assert {row["ablation"] for row in rows} == {"optimal"}
    for name in ("summaries", "observations"):
        with Path(f"out/{name}.csv").open() as file:
            assert {row["ablation"] for row in csv.DictReader(file) if row["measure"] == "agreement"} == {"optimal"}
    assert "optimal ablation" in Path("out/report.html").read_text()


def test_zero_can_be_asked_of_any_bundle_whose_stored_pathways_keep_their_own() -> None:
    shutil.rmtree("bundle")
    save_bundle(tiny_bundle(ablation=Ablation.MEAN), Path("bundle"))
    result = run(*EVALUATE, "--ablation", "zero")
    assert result.exit_code == 0, result.output
    assert report()["facts"]["ablation"] == "zero; mean for stored class pathways"
    found = {(row["method"], row["ablation"]) for row in report()["summaries"] if row["measure"] == "agreement"}
    assert {("neuron_mct", "zero"), ("generated", "zero"), ("transferred", "mean")} <= found


def test_a_bundle_without_a_generator_is_evaluated_without_it_and_the_report_says_why() -> None:
    shutil.rmtree("bundle")
    save_bundle(replace(tiny_bundle(), generator=None), Path("bundle"))
    result = run(*EVALUATE)
    assert result.exit_code == 0, result.output
    assert "GEN-CNP is left out: the bundle has no generator; fit it with --source generated." in (
        " ".join(result.stderr.split())
    )
    assert "has no generator" in report()["facts"]["GEN-CNP left out"]
    asked = run(*EVALUATE, "--method", "generated")
    assert asked.exit_code == 1
    assert "fit it with --source generated" in " ".join(asked.stderr.split())


def test_generated_pathways_of_another_granularity_are_refused_if_asked_for() -> None:
    result = run(*EVALUATE, "--granularity", "unit", "--method", "generated")
    assert result.exit_code == 1
    assert "generator makes channel pathways" in " ".join(result.stderr.split())


@pytest.mark.parametrize(
    ("option", "value", "words"),
    [
        ("--ablation", "mean", "no values for ablation mean, as it was fitted with zero"),
        ("--images", "nowhere", "nowhere is neither a folder nor an NPZ file"),
        ("--labels", "nowhere.csv", "nowhere.csv cannot be read"),
        ("--seed", "1", "journal of a run with other settings"),
    ],
)
def test_what_cannot_be_used_is_named_in_one_line(option: str, value: str, words: str) -> None:
    if option == "--seed":
        run(*EVALUATE)
    result = run(*instead(option, value))
    assert result.exit_code == 1
    assert words in result.stderr
    assert "Traceback" not in result.stderr


def test_labels_of_other_images_are_refused() -> None:
    Path("labels.csv").write_text("file,label\nphotos/0.png,1\n")
    result = run(*EVALUATE)
    assert result.exit_code == 1
    assert "describes no image of photos: it names 'photos/0.png', and the images have names such as '0.png'" in (
        " ".join(result.stderr.split())
    )


@pytest.mark.parametrize(("option", "value"), [("--sparsity", "1"), ("--steps", "0"), ("--radius", "0")])
def test_an_impossible_option_is_a_usage_error(option: str, value: str) -> None:
    assert run(*instead(option, value)).exit_code == 2
