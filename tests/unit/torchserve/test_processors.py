"""How many processors there are, and how many threads the workers get."""

import os
from collections.abc import Mapping
from pathlib import Path

import pytest

from pathlens.torchserve import TorchServeSettings
from pathlens.torchserve.command import java_command
from pathlens.torchserve.instance import InstanceFolder
from pathlens.torchserve.processors import available_processors, threads_for

ALLOWED = len(os.sched_getaffinity(0))


def processors(folder: Path, own: str, quotas: Mapping[str, str]) -> int:
    """Count processors where files tell quotas of control groups."""
    for name, quota in quotas.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(quota)
    (folder / "own").write_text(own)
    return available_processors(folder, folder / "own")


@pytest.mark.parametrize(
    ("workers", "available", "threads"), [(1, 1, 1), (1, 2, 1), (1, 3, 3), (1, 8, 8), (2, 8, 4), (3, 8, 2), (16, 8, 1)]
)
def test_workers_share_what_there_is_and_leave_one_of_two_processors(
    workers: int, available: int, threads: int
) -> None:
    assert threads_for(workers, available) == threads


@pytest.mark.parametrize(
    ("own", "quotas", "expected"),
    [
        ("0::/\n", {}, ALLOWED),
        ("0::/\n", {"cpu.max": "max 100000\n"}, ALLOWED),
        ("0::/\n", {"cpu.max": "50000 100000\n"}, 1),
        ("0::/\n", {"cpu.max": "100000 100000\n"}, 1),
        ("0::/\n", {"cpu.max": "1000000000 100000\n"}, ALLOWED),
        ("0::/a/b\n", {"a/b/cpu.max": "max 100000\n", "a/cpu.max": "100000 100000\n"}, 1),
        ("0::/a/b\n", {"other/cpu.max": "100000 100000\n"}, ALLOWED),
        ("1:cpu:/x\n", {"cpu/cpu.cfs_quota_us": "100000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 1),
        ("1:cpu:/x\n", {"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, ALLOWED),
        ("0::/\n", {"cpu.max": "nonsense"}, ALLOWED),
    ],
)
def test_the_quota_of_every_control_group_around_counts(
    tmp_path: Path, own: str, quotas: Mapping[str, str], expected: int
) -> None:
    assert processors(tmp_path, own, quotas) == expected


def test_a_part_of_a_processor_counts_as_a_whole_one(tmp_path: Path) -> None:
    assert processors(tmp_path, "0::/\n", {"cpu.max": "110000 100000\n"}) == min(2, ALLOWED)


def test_a_system_without_control_groups_has_what_the_process_may_run_on(tmp_path: Path) -> None:
    assert available_processors(tmp_path / "none", tmp_path / "none") == ALLOWED


class TestTheWorkersEnvironment:
    @staticmethod
    def variable(name: str, **settings: int) -> str:
        chosen = TorchServeSettings(**settings)  # type: ignore[arg-type]
        folder = InstanceFolder(Path())
        try:
            return java_command(chosen, folder).environment[name]
        finally:
            folder.remove()

    def test_has_the_threads_that_follow_from_the_processors(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
        assert self.variable("OMP_NUM_THREADS", workers=2) == str(threads_for(2, available_processors()))

    def test_has_the_threads_that_were_chosen(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
        assert self.variable("OMP_NUM_THREADS", threads=7, workers=2) == "7"

    def test_lets_threads_wait_without_computing(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
        assert self.variable("OMP_WAIT_POLICY") == "PASSIVE"

    @pytest.mark.parametrize(("name", "value"), [("OMP_NUM_THREADS", "5"), ("OMP_WAIT_POLICY", "ACTIVE")])
    def test_has_what_the_operator_s_has(self, monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
        monkeypatch.setenv(name, value)
        assert self.variable(name, threads=7) == value
