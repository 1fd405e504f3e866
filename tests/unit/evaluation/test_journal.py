"""Long runs that end early and go on."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from pathlens.errors import EvaluationError
from pathlens.evaluation.journal import Journal, Task
from pathlens.evaluation.observation import Observation

SETTINGS = {"seed": 0}


def tasks(ran: list[str], names: str = "abc", fail: str = "") -> Iterator[Task]:
    for name in names:

        def run(name: str = name) -> list[Observation]:
            if name == fail:
                raise KeyboardInterrupt
            ran.append(name)
            return [Observation("measure", float(ord(name)), subject=name)]

        yield Task(name, "stage", run)


def test_every_task_runs_once_and_gives_its_observations_in_order(tmp_path: Path) -> None:
    ran: list[str] = []
    found = Journal(tmp_path / "journal", SETTINGS).run(tasks(ran))
    assert ran == ["a", "b", "c"]
    assert [observation.subject for observation in found] == ["a", "b", "c"]


def test_an_interrupted_run_goes_on_where_it_stopped(tmp_path: Path) -> None:
    ran: list[str] = []
    with pytest.raises(KeyboardInterrupt):
        Journal(tmp_path / "journal", SETTINGS).run(tasks(ran, fail="b"))
    again: list[str] = []
    found = Journal(tmp_path / "journal", SETTINGS).run(tasks(again))
    assert (ran, again) == (["a"], ["b", "c"])
    assert [observation.subject for observation in found] == ["a", "b", "c"]


def test_what_is_read_back_is_what_was_observed(tmp_path: Path) -> None:
    observation = Observation("leak", 0.1 + 0.2, "neuron_mct", 0.95, True, "0.05", "3 cat")
    task = Task("one", "stage", lambda: [observation])
    Journal(tmp_path / "journal", SETTINGS).run([task])
    assert Journal(tmp_path / "journal", SETTINGS).run([task]) == [observation]


@pytest.mark.parametrize("cut", [1, 5, 40])
def test_a_torn_last_line_is_a_task_that_was_not_done(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "journal"
    Journal(path, SETTINGS).run(tasks([]))
    whole = path.read_bytes()
    path.write_bytes(whole[:-cut])
    ran: list[str] = []
    found = Journal(path, SETTINGS).run(tasks(ran))
    assert ran == ["c"]
    assert len(found) == 3
    assert path.read_bytes() == whole


def test_a_journal_of_other_settings_is_refused(tmp_path: Path) -> None:
    Journal(tmp_path / "journal", SETTINGS).run(tasks([]))
    with pytest.raises(EvaluationError, match="other settings or another bundle; remove it to start anew"):
        Journal(tmp_path / "journal", {"seed": 1})


def test_two_runs_do_not_write_one_journal(tmp_path: Path) -> None:
    first = Journal(tmp_path / "journal", SETTINGS)
    with pytest.raises(EvaluationError, match=r"Another run is writing .*journal; wait for it"):
        Journal(tmp_path / "journal", SETTINGS)
    first.run(tasks([]))
    assert len(Journal(tmp_path / "journal", SETTINGS).run(tasks([]))) == 3


def test_a_journal_whose_first_line_was_torn_starts_anew(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    path.write_text('{"see')
    ran: list[str] = []
    Journal(path, SETTINGS).run(tasks(ran))
    assert ran == ["a", "b", "c"]
    assert path.read_text().startswith('{"seed": 0}\n')
