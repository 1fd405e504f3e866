"""`pathlens fit`: what it says, what it refuses, and how it goes on after Ctrl-C."""

import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

from pathlens.bundle.store import load_bundle
from pathlens.cli import fit as module
from pathlens.cli import main
from pathlens.cli.progress import FitBars
from pathlens.explanation import Ablation, Granularity, PathwaySource
from pathlens.fitting import checkpoint
from pathlens.fitting.progress import Stage

MODULE = """
import torch
import torch.nn.functional as F
from torch import nn

class Colours(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.features, self.last = nn.Conv2d(3, 6, 1, bias=False), nn.Linear(6, 3, bias=False)
        with torch.no_grad():
            self.features.weight.copy_(torch.cat([torch.eye(3), torch.rand(3, 3)])[:, :, None, None])
            self.last.weight.copy_(torch.cat([20 * torch.eye(3), torch.rand(3, 3)], 1))

    def forward(self, images):
        return self.last(F.relu(self.features(images)).mean((2, 3)))
"""
FIT = (
    *("fit", "--classifier", "tiny_colours:Colours", "--images", "images.npz", "--out", "colours", "--size", "8"),
    *("--mean", "0,0,0", "--std", "1,1,1", "--minimum-images", "2", "--workers", "0"),
    *("--generator-steps", "6", "--class-steps", "6", "--training-batch", "8"),
)


@pytest.fixture(autouse=True)
def _colours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A folder with a classifier's module and images, as the current folder."""
    (tmp_path / "tiny_colours.py").write_text(MODULE)
    images = np.random.default_rng(0).integers(0, 128, (40, 8, 8, 3), dtype=np.uint8)
    images[np.arange(40), :, :, np.arange(40) % 3] += 100
    np.savez(tmp_path / "images.npz", images=images)
    monkeypatch.chdir(tmp_path)
    # The command puts the current folder there.
    monkeypatch.setattr(sys, "path", sys.path.copy())
    monkeypatch.setenv("COLUMNS", "250")
    yield
    sys.modules.pop("tiny_colours", None)


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main, [*FIT, *arguments])


def done(*arguments: str) -> Result:
    result = run(*arguments)
    assert result.exit_code == 0, result.output
    return result


def digest(result: Result) -> str:
    return result.stdout.split()[-1]


class TestHelp:
    def test_shows_examples_of_what_there_is_to_choose(self) -> None:
        shown = run("--help").output.partition("Examples")[2]
        for example in (
            "--classifier model.onnx",
            "--agreement 0.95",
            "--ablation mean",
            "--source neuron-mct",
            "torchrun --nproc-per-node 4",
        ):
            assert example in shown

    def test_names_every_choice(self) -> None:
        shown = re.sub(r"\s+", "", run("--help").output)
        for choices in ("[generated|neuron-mct]", "[frequency|two-sided]", "[zero|mean|optimal]", "[float32|bfloat16]"):
            assert choices in shown


class TestOptions:
    def test_by_default_train_a_generator_and_two_sided_class_pathways(self) -> None:
        done()
        bundle = load_bundle(Path("colours"))
        assert bundle.generator is not None
        assert bundle.source is PathwaySource.GENERATED
        assert set(bundle.bank.masks) == set(bundle.bank.counts)

    def test_may_ask_for_contributions_and_frequency(self) -> None:
        done("--source", "neuron-mct", "--class-pathways", "frequency")
        bundle = load_bundle(Path("colours"))
        assert bundle.generator is None
        assert bundle.source is PathwaySource.NEURON_MCT
        assert not bundle.bank.masks

    def test_reach_the_bundle(self) -> None:
        done("--granularity", "unit", "--ablation", "optimal", "--agreement", "0.9", "--price", "2", "--seed", "5")
        bundle = load_bundle(Path("colours"))
        assert (bundle.bank.granularity, bundle.bank.replacement.ablation) == (Granularity.UNIT, Ablation.OPTIMAL)
        recorded = bundle.fit.settings
        assert (recorded["agreement"], recorded["price"], recorded["seed"]) == (0.9, 2.0, 5)
        assert (recorded["generator_steps"], recorded["class_steps"], recorded["training_batch"]) == (6, 6, 8)

    @pytest.mark.parametrize(
        ("option", "value"),
        [
            *(("--source", "transferred"), ("--class-pathways", "best"), ("--ablation", "noise")),
            *(("--agreement", "0"), ("--agreement", "1"), ("--agreement", "nan"), ("--class-agreement", "1.5")),
            *(("--class-forcing", "0"), ("--price", "0"), ("--price", "1000"), ("--precision", "float16")),
            *(("--generator-steps", "0"), ("--class-steps", "0"), ("--training-batch", "0"), ("--workers", "-1")),
            *(("--seed", "one"), ("--seed", "-1"), ("--seed", str(10**15)), ("--others", "0"), ("--batch-size", "0")),
        ],
    )
    def test_that_are_impossible_are_usage_errors_before_any_work(self, option: str, value: str) -> None:
        result = run(option, value)
        assert result.exit_code == 2
        assert f"Invalid value for '{option}'" in result.stderr
        assert not list(Path().glob("colours*"))


class TestTheSummary:
    def test_shows_both_masks_of_each_class_beside_its_control(self) -> None:
        bundle_shown = done().stderr
        assert "3 of 3 classes have a pathway (ablation: zero)" in bundle_shown
        for heading in ("agreement", "forcing", "random", "by frequency"):
            assert heading in bundle_shown
        bundle = load_bundle(Path("colours"))
        for label, statistics in bundle.bank.statistics.items():
            (row,) = re.findall(rf"^│ {label} +│.*$", bundle_shown, re.MULTILINE)
            cells = [cell.strip() for cell in row.strip("│").split("│")]
            assert cells[1] == str(statistics.image_count)
            assert cells[2] == f"{statistics.stored.sparsity:.1%}"
            assert cells[6].startswith(f"{statistics.by_frequency.sparsity:.0%}: ")
        assert "Pathways of single images (generated):" in bundle_shown

    def test_shows_one_mask_where_there_is_one(self) -> None:
        shown = done("--source", "neuron-mct", "--class-pathways", "frequency", "--ablation", "mean").stderr
        assert "(ablation: mean)" in shown
        assert "by frequency" not in shown
        assert "Pathways of single images (neuron_mct):" in shown


class Interrupting(FitBars):
    """Bars during which Ctrl-C is pressed once."""

    where = ""

    @contextmanager
    def stage(self, name: str, total: int, done: int = 0) -> Iterator[Stage]:
        with super().stage(name, total, done) as bar:
            yield _Interrupted(bar) if name == Interrupting.where else bar


class _Interrupted:
    def __init__(self, bar: Stage) -> None:
        self._bar, self._left = bar, 4

    def advance(self, count: int, figures: Mapping[str, float] | None = None) -> None:
        self._bar.advance(count, figures)
        self._left -= 1
        if self._left == 0:
            raise KeyboardInterrupt


class TestCtrlC:
    @pytest.mark.parametrize("stage", ["Class pathways", "Generator"])
    def test_says_where_the_fit_goes_on_and_the_same_command_ends_as_an_uninterrupted_one(
        self, stage: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(checkpoint, "INTERVAL", -1.0)
        whole = digest(done("--out", "whole", "--name", "colours"))
        with monkeypatch.context() as patch:
            patch.setattr(module, "FitBars", Interrupting)
            patch.setattr(Interrupting, "where", stage)
            stopped = run()
        assert stopped.exit_code == 130
        assert "Interrupted. The same command goes on from colours.unfinished." in stopped.stderr
        assert "Traceback" not in stopped.output
        assert not Path("colours").exists()

        refused = run("--seed", "1")
        assert refused.exit_code == 1
        assert "--restart" in refused.stderr.splitlines()[-1]

        assert digest(done()) == whole
        assert not Path("colours.unfinished").exists()

    def test_may_be_followed_by_another_fit_that_discards_the_first(self, monkeypatch: pytest.MonkeyPatch) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(module, "FitBars", Interrupting)
            patch.setattr(Interrupting, "where", "Generator")
            assert run().exit_code == 130
        done("--seed", "1", "--restart")
        assert load_bundle(Path("colours")).fit.seed == 1


def test_a_finished_fit_is_replaced_by_a_new_one() -> None:
    first = digest(done())
    assert digest(done("--seed", "1")) != first
    assert digest(done()) == first
