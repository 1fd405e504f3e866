"""How long models are waited for; with a real TorchServe it is in tests/service."""

import time
from pathlib import Path
from typing import Any, cast

import pytest

from pathlens.errors import ServerStartError
from pathlens.model_version import ModelVersion
from pathlens.torchserve import StoredArchive
from pathlens.torchserve.archive import read_archive
from pathlens.torchserve.journal import Journal
from pathlens.torchserve.readiness import Readiness
from pathlens.torchserve.stored_archive import Stamp

from .test_served_models import archive

TIMEOUT_SECONDS = 1.0


class SlowManagement:
    """Stands in for TorchServe, whose models load one after the other.

    Attributes:
        load_seconds: How long each takes, from when it is asked for first.
    """

    def __init__(self) -> None:
        self.load_seconds = 0.0
        self._asked: dict[ModelVersion, float] = {}

    def workers(self, version: ModelVersion, _seconds: float) -> tuple[int, int]:
        asked = self._asked.setdefault(version, time.monotonic())
        return int(time.monotonic() - asked > self.load_seconds), 1


@pytest.fixture
def archives(tmp_path: Path) -> list[StoredArchive]:
    paths = [archive(tmp_path / f"{name}.mar", name) for name in ("one", "other")]
    return [StoredArchive(read_archive(path), path, "", Stamp.of(path)) for path in paths]


@pytest.fixture
def management() -> SlowManagement:
    return SlowManagement()


@pytest.fixture
def readiness(management: SlowManagement, tmp_path: Path) -> Readiness:
    journal = Journal(tmp_path / "log", tmp_path / "console")
    return Readiness(cast("Any", management), journal, lambda: True, TIMEOUT_SECONDS)


def test_every_model_has_the_whole_time(
    readiness: Readiness, management: SlowManagement, archives: list[StoredArchive]
) -> None:
    management.load_seconds = 0.6 * TIMEOUT_SECONDS
    assert [readiness.wait_for(one, str) for one in archives] == ["one 1.0", "other 1.0"]


def test_a_model_that_takes_longer_ends_the_wait(
    readiness: Readiness, management: SlowManagement, archives: list[StoredArchive]
) -> None:
    management.load_seconds = 20.0
    with pytest.raises(ServerStartError, match="is not ready after 1 s") as caught:
        readiness.wait_for(archives[0], str)
    assert caught.value.reason == "START_TIMEOUT"
