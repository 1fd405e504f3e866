"""The benchmark: what it times is right, and it tells of all that it was to time. How long it took is no matter."""

import json
import signal
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

from benchmarks.bench import memory
from benchmarks.bench.__main__ import main
from benchmarks.bench.agreement import disagreements
from benchmarks.bench.captum_explanations import TORCHSERVE
from benchmarks.bench.class_masks import KINDS, class_bank, make_bundle
from benchmarks.bench.growth import CLASSES as CLASS_COUNTS
from benchmarks.bench.growth import IMAGES, SIDES
from benchmarks.bench.in_process import BARE, CLASSES, ONE_CLASS, ONE_IMAGE, WHOLE, slices_of
from benchmarks.bench.report import markdown
from benchmarks.bench.routes import MASKED, PREDICT, ROUTES, SLICED, Route
from benchmarks.bench.settings import BATCH, Settings
from benchmarks.bench.subjects import DIGITS, Subject, make_subject
from benchmarks.bench.timing import interleave
from pathlens.classifier.captured import CapturedClassifier

PARTS = ("in-process", "handler", "growth")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("bench")


@pytest.fixture(scope="module")
def report(folder: Path) -> Mapping[str, Any]:
    arguments = [word for part in PARTS for word in ("--part", part)]
    result = CliRunner().invoke(main, ["--quick", "--network", DIGITS, *arguments, "--out", str(folder)])
    assert result.exit_code == 0, result.output
    written: dict[str, Any] = json.loads((folder / "bench.json").read_text())
    return written


@pytest.fixture(scope="module")
def subject(report: Mapping[str, Any], folder: Path) -> Subject:
    return make_subject(DIGITS, folder / DIGITS, quick=True)


def test_a_quick_run_finds_nothing_wrong_and_says_that_it_was_quick(report: Mapping[str, Any]) -> None:
    assert report["wrong"] == []
    assert report["finished"]
    assert report["quick"]
    assert set(report["networks"][DIGITS]) == set(PARTS)


def test_the_machine_is_told(report: Mapping[str, Any]) -> None:
    wanted = {"processor", "cores", "memory_gib", "threads", "torch", "onnxruntime", "commit", "changed_since_commit"}
    assert wanted <= set(report["machine"])
    assert report["machine"]["threads"] == 1


@pytest.mark.parametrize("backend", ["torch", "onnxruntime"])
@pytest.mark.parametrize("batch", [ONE_CLASS, CLASSES, ONE_IMAGE])
def test_every_route_is_timed_on_both_levels(report: Mapping[str, Any], backend: str, batch: str) -> None:
    rows = [
        row
        for row in report["networks"][DIGITS]["in-process"]
        if (row["backend"], row["batch"]) == (backend, batch) and row["level"] in (BARE, WHOLE)
    ]
    routes = [route for route in ROUTES if batch != CLASSES or route.is_transferred]
    assert {(row["name"], row["level"]) for row in rows} == {
        (route.name, level) for route in routes for level in (BARE, WHOLE)
    }
    assert all(0 < row["lower"] <= row["ratio"] <= row["upper"] for row in rows)
    judged = {row["name"] for row in rows if row["meets"] is not None}
    assert judged == {route.name for route in routes if route.target is not None and batch != ONE_IMAGE}


def test_rows_tell_whether_slices_were_used(report: Mapping[str, Any]) -> None:
    rows = [row for row in report["networks"][DIGITS]["in-process"] if row["batch"] == CLASSES]
    slices = {row["name"]: row["slices"] for row in rows if row["backend"] == "torch"}
    assert slices[SLICED.name]["sliced"] == slices[SLICED.name]["classes"] == BATCH
    assert slices[MASKED.name]["sliced"] == 0


def test_every_size_of_growth_has_its_rows(report: Mapping[str, Any]) -> None:
    rows = report["networks"][DIGITS]["growth"]
    sizes = {of: {row["size"] for row in rows if row["of"] == of} for of in {row["of"] for row in rows}}
    assert sizes["images in a batch"] == set(IMAGES)
    assert sizes[f"classes in a batch of {BATCH}"] == set(CLASS_COUNTS)
    assert len(sizes["side of the image"]) == len(SIDES)
    kept = [row["kept_bytes"] for row in rows if row["of"] == "slices kept"]
    assert kept == sorted(kept)
    assert kept[0] > 0


def test_the_tables_name_every_row(report: Mapping[str, Any], folder: Path) -> None:
    text = (folder / "bench.md").read_text()
    assert all(row["name"] in text for rows in report["networks"][DIGITS].values() for row in rows)
    assert TORCHSERVE in text


def test_there_are_plots(report: Mapping[str, Any], folder: Path) -> None:
    for name in ("costs.png", f"growth-{DIGITS}.png"):
        assert (folder / name).read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("route", [PREDICT, SLICED, MASKED, *ROUTES[-2:]], ids=lambda route: route.name)
def test_another_classifier_in_the_place_of_the_right_one_is_noticed(subject: Subject, route: Route) -> None:
    right = subject.classifier
    wrong = CapturedClassifier(right.program, {name: 1.01 * weight for name, weight in right.weights.items()})
    bundle = make_bundle(subject, route.masks, None, wrong)
    explainer = bundle.explainer() if route.is_sliced else bundle.explainer(slice_bytes=0)
    images, target = subject.images[:2], subject.predicted[:2]
    if route.is_transferred and route.is_sliced:
        assert slices_of(explainer, target)["sliced"]
    found = disagreements(route, explainer, right, images, target)
    assert any(line.startswith("bare") for line in found)
    assert any(line.startswith("whole") for line in found)


@pytest.mark.parametrize("kind", KINDS[1:])
def test_masks_are_exactly_as_sparse_as_they_say(subject: Subject, kind: str) -> None:
    bank = class_bank(subject, kind)
    kept = bank.transfer(list(bank.counts)).kept
    neurons = sum(tap.channels for tap in subject.classifier.taps)
    share = 0.2 if "80" in kind else 0.5
    assert len(bank) > 1
    assert kept.tolist() == [round(share * neurons)] * len(bank)


def test_every_round_runs_every_work_once_between_forward_passes() -> None:
    ran: list[str] = []
    works = {name: lambda name=name: ran.append(name) for name in ("one", "two", "three")}
    timings = interleave(works, lambda: ran.append("forward"), torch.device("cpu"), 3, 60.0, seed=0)
    warm_up, rounds = ran[:9], ran[9:]
    assert warm_up == ["forward", "forward", "one", "forward", "forward", "two", "forward", "forward", "three"]
    assert rounds[::2] != []
    for number in range(3):
        of_round = rounds[7 * number : 7 * number + 7]
        assert of_round[::2] == ["forward"] * 4
        assert sorted(of_round[1::2]) == ["one", "three", "two"]
    assert {name: timing.runs for name, timing in timings.items()} == dict.fromkeys(works, 3)


def test_works_without_time_run_once() -> None:
    ran: list[str] = []
    timings = interleave(
        {"slow": lambda: ran.append("slow")}, lambda: None, torch.device("cpu"), rounds=5, seconds=0.0, seed=0
    )
    assert ran == ["slow"]
    assert timings["slow"].runs == 1


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_device_that_is_not_there_is_refused_with_a_remedy(tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["--device", "cuda", "--out", str(tmp_path)])
    assert result.exit_code == 2
    assert "'cuda'" in result.output
    assert "Leave it out to measure the CPU" in result.output
    assert not list(tmp_path.iterdir())


def test_a_route_that_the_system_ends_for_memory_is_told_and_not_called_wrong(
    report: Mapping[str, Any], subject: Subject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ended(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess(command, -signal.SIGKILL, "", "")

    monkeypatch.setattr(subprocess, "run", ended)
    told: list[str] = []
    (rows, *_) = memory.measure(subject, Settings(tmp_path, quick=True), told.append)
    assert not isinstance(rows, str)
    assert any("more memory than there is" in words for words in told)
    written = markdown({**report, "networks": {DIGITS: {"memory": rows}}})
    assert f"| {SLICED.name} | {BATCH} | more than there is |" in written
