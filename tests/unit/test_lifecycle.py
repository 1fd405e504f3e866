"""What the lifecycle does when something around it fails; with a real TorchServe it is in tests/service."""

import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import pytest

from pathlens.errors import InternalError, ServerStartError
from pathlens.lifecycle import Lifecycle
from pathlens.model_version import ModelVersion
from pathlens.torchserve import StoredArchive, TorchServeSettings
from pathlens.torchserve.stored_archive import ArchiveStore
from pathlens.wire.v1 import explanation_service_pb2 as messages
from unit.torchserve.test_served_models import BAD, archive


class ScriptedTorchServe:
    """Stands in for the process, with real copies of real files; its unloads fail as they are told to."""

    def __init__(self, *archives: Path) -> None:
        self.store = ArchiveStore({})
        self.served = tuple(self.store.take(path) for path in archives)
        self.loads: list[ModelVersion] = []
        self.unloads: list[ModelVersion] = []
        self.unload_fails = False

    def load(self, copy: StoredArchive, canary: Callable[[ModelVersion], messages.Model]) -> messages.Model:
        self.loads.append(copy.version)
        return canary(copy.version)

    def adopt(self, copy: StoredArchive) -> None:
        self.served = (*self.served, copy)

    def abandon(self, copy: StoredArchive) -> None:
        self.served = tuple(one for one in self.served if one != copy)

    def unload(self, version: ModelVersion) -> None:
        self.unloads.append(version)
        if self.unload_fails:
            raise ServerStartError("TorchServe does not unload it.", reason="UNLOAD_FAILED")


class RecordingStage:
    def __init__(self) -> None:
        self.admission: Exception | None = None
        self.events: list[str] = []

    def admit(self, _model: messages.Model, version: ModelVersion) -> None:
        if self.admission is not None:
            raise self.admission
        self.events.append(f"admit {version.version}")

    def retire(self, version: ModelVersion) -> None:
        self.events.append(f"retire {version.version}")

    def count_model_change(self, result: str) -> None:
        self.events.append(result)


class World:
    """A store with one archive that is served, and everything around a lifecycle."""

    def __init__(self, store: Path) -> None:
        self.path = archive(store / "digits.mar", "digits", version="1.0")
        self.torchserve = ScriptedTorchServe(self.path)
        self.stage = RecordingStage()
        settings = TorchServeSettings(model_store=store, poll_seconds=0.001)
        self.lifecycle = Lifecycle(cast("Any", self.torchserve), settings, lambda _: messages.Model(), self.stage)

    def steps(self, count: int = 4) -> list[str]:
        """Take so many steps and return all that has happened so far."""
        for _ in range(count):
            time.sleep(0.002)
            self.lifecycle.step(lambda: False)
        return self.stage.events

    def served(self) -> list[str]:
        return [copy.version.version for copy in self.torchserve.served]


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    monkeypatch.setattr("pathlens.lifecycle._NOTICE_SECONDS", 0.01)
    made = World(tmp_path)
    yield made
    made.torchserve.store.remove()


def errors(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]


def test_nothing_happens_while_nothing_changes(world: World) -> None:
    assert world.steps() == []


def test_a_changed_archive_is_admitted_before_its_former_version_is_retired(world: World) -> None:
    archive(world.path, "digits", version="2.0")
    assert world.steps() == ["admit 2.0", "loaded", "retire 1.0", "unloaded"]
    assert world.served() == ["2.0"]
    # The copy of the former one is gone.
    assert len(list(world.torchserve.store.folder.iterdir())) == 1


def test_a_touched_archive_is_the_same_as_before(world: World) -> None:
    world.path.touch()
    assert world.steps() == []
    assert len(list(world.torchserve.store.folder.iterdir())) == 1


def test_a_store_that_cannot_be_read_takes_nothing_down_and_is_complained_of_once(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    world.path.parent.rename(world.path.parent.with_name("elsewhere"))
    assert world.steps() == []
    assert ["cannot be read" in error for error in errors(caplog)] == [True]
    world.path.parent.with_name("elsewhere").rename(world.path.parent)


def test_a_version_that_the_gateway_refuses_is_unloaded_again(world: World) -> None:
    world.stage.admission = InternalError("It calls itself something else.", reason="MODEL_NAME_MISMATCH")
    archive(world.path, "digits", version="2.0")
    assert world.steps(8) == ["unloaded", "refused"]
    assert world.torchserve.unloads == [ModelVersion("digits", "2.0")]
    assert world.served() == ["1.0"]


def test_a_refusal_by_the_gateway_leaves_the_other_new_archives_alone(world: World) -> None:
    world.stage.admission = InternalError("It calls itself something else.", reason="MODEL_NAME_MISMATCH")
    for version in ("2.0", "3.0"):
        archive(world.path.with_name(f"{version}.mar"), "digits", version=version)
    load = world.torchserve.load

    def loaded(copy: StoredArchive, canary: Callable[[ModelVersion], messages.Model]) -> messages.Model:
        if copy.version.version == "3.0":
            world.stage.admission = None
        assert copy.copy.exists()
        return load(copy, canary)

    world.torchserve.load = loaded  # type: ignore[method-assign]
    assert world.steps(8) == ["unloaded", "refused", "admit 3.0", "loaded"]


def test_a_version_that_cannot_be_unloaded_is_not_served_by_a_restart(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    world.torchserve.unload_fails = True
    archive(world.path, "digits", version="2.0")
    assert world.steps(8) == ["admit 2.0", "loaded", "retire 1.0"]
    assert world.served() == ["2.0"]
    assert errors(caplog) == ["TorchServe does not unload it. [UNLOAD_FAILED]"]


def test_a_disk_that_hangs_keeps_no_step_from_returning(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    hanging, looks = threading.Event(), []

    def look() -> None:
        looks.append(True)
        hanging.wait(20)

    # Of this one alone: a service that other tests share may look at its own archives meanwhile.
    monkeypatch.setattr(world.lifecycle._lookout, "look", look)
    started = time.monotonic()
    for _ in range(3):
        world.lifecycle.step(lambda: True)
    assert time.monotonic() - started < 5
    # Looks do not pile up.
    assert len(looks) == 1
    hanging.set()


@pytest.mark.timeout(20)
@pytest.mark.parametrize("bad", BAD)
def test_a_bad_archive_is_refused_once_and_keeps_no_good_one_away(world: World, bad: str) -> None:
    make, _ = BAD[bad]
    make(world.path.with_name("bad.mar"))
    archive(world.path.with_name("good.mar"), "digits", version="2.0")
    assert world.steps(8) == ["refused", "admit 2.0", "loaded"]
    assert world.served() == ["1.0", "2.0"]


def test_a_reader_that_fails_in_an_unknown_way_keeps_no_good_archive_away(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    take = world.torchserve.store.take

    def failing(path: Path) -> StoredArchive:
        if path.name == "bad.mar":
            raise ZeroDivisionError
        return take(path)

    monkeypatch.setattr(world.torchserve.store, "take", failing)
    archive(world.path.with_name("bad.mar"), "bad")
    archive(world.path.with_name("good.mar"), "digits", version="2.0")
    assert world.steps(8) == ["refused", "admit 2.0", "loaded"]


def test_a_copy_inherits_the_version_of_an_archive_that_was_removed(world: World) -> None:
    newer = archive(world.path.with_name("digits-2.mar"), "digits", version="2.0")
    world.steps()
    shutil.copy(newer, world.path.with_name("renamed.mar"))
    world.steps()
    newer.unlink()
    assert world.steps(8) == ["admit 2.0", "loaded", "refused"]
    assert world.served() == ["1.0", "2.0"]


def test_a_copy_inherits_the_version_of_an_archive_that_holds_another_one_now(world: World) -> None:
    shutil.copy(world.path, world.path.with_name("copy.mar"))
    world.steps()
    archive(world.path, "digits", version="2.0")
    assert world.steps(8) == ["refused", "admit 2.0", "loaded"]
    assert world.served() == ["1.0", "2.0"]
    world.path.with_name("copy.mar").unlink()
    assert world.steps(8)[3:] == ["retire 1.0", "unloaded"]


def test_a_copy_in_place_of_another_version_inherits_too(world: World) -> None:
    other = archive(world.path.with_name("digits-2.mar"), "digits", version="2.0")
    world.steps()
    shutil.copy(world.path, other)
    world.steps()
    world.path.unlink()
    assert world.steps(8) == ["admit 2.0", "loaded", "refused", "retire 2.0", "unloaded"]
    assert world.served() == ["1.0"]


def test_an_archive_that_no_pin_names_is_refused(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    pins = {"digits.mar": world.torchserve.served[0].sha256}
    monkeypatch.setattr(world.torchserve.store, "_pins", pins)
    archive(world.path.with_name("newer.mar"), "digits", version="99.0")
    assert world.steps(8) == ["refused"]


def test_without_a_period_nothing_is_looked_at(tmp_path: Path, world: World) -> None:
    settings = TorchServeSettings(model_store=tmp_path, poll_seconds=0)
    world.lifecycle = Lifecycle(cast("Any", world.torchserve), settings, lambda _: messages.Model(), world.stage)
    archive(world.path, "digits", version="2.0")
    assert world.steps() == []
