from collections.abc import Mapping
from pathlib import Path

import pytest
import torch

from pathlens.errors import FitError
from pathlens.fitting.checkpoint import INTERVAL, Checkpoint

SETTINGS: Mapping[str, object] = {"steps": 3, "name": "tiny", "price": 0.1}
STATE = {"scores": [torch.arange(3.0), torch.ones(2, 2)], "steps": 7, "nested": {1: "reason"}}


def opened(folder: Path, settings: Mapping[str, object] = SETTINGS, restart: bool = False) -> Checkpoint:
    return Checkpoint(folder, settings, writes=True, restart=restart)


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a checkpoint of the stage "training"."""
    path = tmp_path / "new" / "tiny.unfinished"
    with opened(path) as checkpoint:
        checkpoint.save("training", STATE)
    return path


class TestStates:
    def test_are_loaded_as_they_were_saved(self, folder: Path) -> None:
        with opened(folder) as checkpoint:
            loaded = checkpoint.load("training")
        assert all(torch.equal(one, other) for one, other in zip(loaded["scores"], STATE["scores"], strict=True))  # type: ignore[call-overload]
        assert (loaded["steps"], loaded["nested"]) == (7, {1: "reason"})

    def test_of_a_stage_that_was_not_begun_are_none(self, folder: Path) -> None:
        with opened(folder) as checkpoint:
            assert checkpoint.load("survey") is None

    def test_are_read_by_processes_that_do_not_write(self, folder: Path) -> None:
        with opened(folder), Checkpoint(folder, SETTINGS, writes=False) as reader:
            assert reader.load("training")["steps"] == 7
            reader.save("training", {"steps": 8})
            assert reader.load("training")["steps"] == 7

    @pytest.mark.parametrize("damage", [b"", b"not a state", b"PK\x03\x04"])
    def test_that_are_damaged_are_refused_with_the_remedy(self, folder: Path, damage: bytes) -> None:
        (folder / "training.pt").write_bytes(damage)
        with opened(folder) as checkpoint, pytest.raises(FitError, match=r"training\.pt is damaged.*--restart"):
            checkpoint.load("training")

    def test_that_run_code_are_not_loaded(self, folder: Path) -> None:
        torch.save({"path": Path("elsewhere")}, folder / "training.pt")
        with opened(folder) as checkpoint, pytest.raises(FitError, match="damaged"):
            checkpoint.load("training")

    def test_survive_an_interruption_while_the_next_is_written(
        self, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def interrupted(state: object, file: object) -> None:
            file.write(b"half")  # type: ignore[attr-defined]
            raise KeyboardInterrupt

        before = names(folder)
        with opened(folder) as checkpoint:
            with monkeypatch.context() as patch:
                patch.setattr(torch, "save", interrupted)
                with pytest.raises(KeyboardInterrupt):
                    checkpoint.save("training", {"steps": 8})
            assert checkpoint.load("training")["steps"] == 7
        assert names(folder) == before


class TestSettings:
    def test_that_are_others_are_refused_with_the_remedy(self, folder: Path) -> None:
        with pytest.raises(FitError, match=r"unfinished fit with other settings.*--restart"):
            opened(folder, {**SETTINGS, "steps": 4})
        # Nothing is lost, and nothing is locked.
        with opened(folder) as checkpoint:
            assert checkpoint.load("training")["steps"] == 7

    def test_may_come_in_another_order(self, folder: Path) -> None:
        with opened(folder, {name: SETTINGS[name] for name in reversed(list(SETTINGS))}) as checkpoint:
            assert checkpoint.load("training") is not None

    @pytest.mark.parametrize("settings", [SETTINGS, {**SETTINGS, "steps": 4}])
    def test_do_not_matter_for_a_restart_which_discards_everything(
        self, folder: Path, settings: Mapping[str, object]
    ) -> None:
        with opened(folder, settings, restart=True) as checkpoint:
            assert checkpoint.load("training") is None
        with opened(folder, settings) as checkpoint:
            assert checkpoint.load("training") is None

    def test_that_a_restart_replaced_are_refused_from_then_on(self, folder: Path) -> None:
        with opened(folder, {**SETTINGS, "steps": 4}, restart=True):
            pass
        with pytest.raises(FitError, match="other settings"):
            opened(folder)


class TestAWriter:
    @pytest.mark.parametrize("restart", [False, True])
    def test_keeps_a_second_one_out(self, folder: Path, restart: bool) -> None:
        with opened(folder) as checkpoint:
            with pytest.raises(FitError, match=r"Another fit is writing .*--out"):
                opened(folder, restart=restart)
            assert checkpoint.load("training")["steps"] == 7

    def test_lets_others_write_when_it_ends_or_fails(self, folder: Path) -> None:
        with pytest.raises(ZeroDivisionError), opened(folder):
            raise ZeroDivisionError
        with opened(folder):
            pass


class TestTheNextOne:
    def test_is_due_after_a_while_and_no_more_once_it_is_saved(
        self, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        now = [1000.0]
        monkeypatch.setattr("pathlens.fitting.checkpoint.time.monotonic", lambda: now[0])
        with opened(folder) as checkpoint:
            assert not checkpoint.is_due
            now[0] += INTERVAL + 1
            assert checkpoint.is_due
            checkpoint.save("training", STATE)
            assert not checkpoint.is_due
