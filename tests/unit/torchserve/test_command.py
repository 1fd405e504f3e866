"""What the workers are told through the environment that TorchServe is started with."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from pathlens.torchserve.command import java_command
from pathlens.torchserve.instance import InstanceFolder
from pathlens.torchserve.settings import TorchServeSettings


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[InstanceFolder]:
    made = InstanceFolder(tmp_path)
    yield made
    made.remove()


def test_the_memory_for_slices_is_told(folder: InstanceFolder) -> None:
    environment = java_command(TorchServeSettings(slice_mebibytes=7), folder).environment
    assert environment["PATHLENS_SLICE_MEBIBYTES"] == "7"


def test_an_empty_variable_of_ours_is_as_good_as_none(folder: InstanceFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "")
    environment = java_command(TorchServeSettings(threads=3), folder).environment
    assert environment["OMP_NUM_THREADS"] == "3"
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    assert java_command(TorchServeSettings(threads=3), folder).environment["OMP_NUM_THREADS"] == "2"


def test_other_variables_are_inherited_although_they_are_empty(
    folder: InstanceFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Not the same as none: it hides every GPU.
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert java_command(TorchServeSettings(), folder).environment["CUDA_VISIBLE_DEVICES"] == ""
