import hashlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pathlens.errors import BundleError
from pathlens.torchserve.stored_archive import ArchiveStore

from .test_served_models import archive


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ArchiveStore]:
    yield from stores(tmp_path, monkeypatch, {})


@pytest.fixture
def pinned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ArchiveStore]:
    yield from stores(tmp_path, monkeypatch, {"pinned": hashlib.sha256(b"another").hexdigest()})


def stores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pins: dict[str, str]) -> Iterator[ArchiveStore]:
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    made = ArchiveStore(pins)
    yield made
    made.remove()
    assert list((tmp_path / "temporary").iterdir()) == []


def test_a_copy_is_what_the_archive_was_whatever_becomes_of_it(store: ArchiveStore, tmp_path: Path) -> None:
    path = archive(tmp_path / "file.mar", "digits")
    content = path.read_bytes()
    copy = store.take(path)
    path.write_bytes(b"broken")
    assert copy.copy.read_bytes() == content
    assert copy.sha256 == hashlib.sha256(content).hexdigest()
    assert (copy.model.name, copy.model.archive) == ("digits", path)


def test_copies_of_the_same_archive_have_names_of_their_own(store: ArchiveStore, tmp_path: Path) -> None:
    path = archive(tmp_path / "file.mar", "digits")
    assert store.take(path).copy != store.take(path).copy


@pytest.mark.parametrize(
    ("name", "words"), [("broken", "is not a plain zip"), ("absent", "cannot be copied"), ("pinned", "that was pinned")]
)
def test_what_cannot_be_served_leaves_no_copy_and_is_called_by_its_own_name(
    pinned: ArchiveStore, tmp_path: Path, name: str, words: str
) -> None:
    path = tmp_path / f"{name}.mar"
    if name == "broken":
        path.write_bytes(b"no zip")
    elif name == "pinned":
        archive(path, "pinned")
    with pytest.raises(BundleError, match=words) as caught:
        pinned.take(path)
    assert str(path) in caught.value.message
    assert str(path) == caught.value.metadata["archive"]
    if name != "absent":
        assert str(pinned.folder) not in caught.value.message
    assert list(pinned.folder.iterdir()) == []


def test_where_there_are_pins_an_archive_that_none_names_is_not_copied(pinned: ArchiveStore, tmp_path: Path) -> None:
    with pytest.raises(BundleError) as caught:
        pinned.take(archive(tmp_path / "evil.mar", "evil"))
    assert caught.value.reason == "ARCHIVE_NOT_PINNED"
    assert str(pinned.folder) not in caught.value.message


@pytest.mark.timeout(20)
def test_a_fifo_is_refused_and_not_waited_for(store: ArchiveStore, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "file.mar")
    with pytest.raises(BundleError, match="is not a regular file"):
        store.take(tmp_path / "file.mar")


def test_the_folder_goes_when_our_own_process_is_killed(tmp_path: Path) -> None:
    program = """
import time
from pathlens.torchserve.stored_archive import ArchiveStore
print(ArchiveStore({}).folder, flush=True)
time.sleep(600)
"""
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, env=environment) as owner:
        try:
            assert owner.stdout is not None
            folder = Path(owner.stdout.readline().strip())
            assert folder.parent == tmp_path
            assert folder.is_dir()
        finally:
            owner.kill()
    deadline = time.monotonic() + 20
    while folder.exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.timeout(20)
def test_a_folder_that_cannot_be_removed_holds_up_no_stop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    store = ArchiveStore({})
    monkeypatch.setattr("pathlens.torchserve.stored_archive.shutil.rmtree", lambda *_, **__: None)
    store.remove()
    assert str(store.folder) in caplog.text


def test_copies_that_are_not_needed_go(store: ArchiveStore, tmp_path: Path) -> None:
    kept, gone = (store.take(archive(tmp_path / f"{name}.mar", name)) for name in ("kept", "gone"))
    store.keep([kept])
    assert kept.copy.exists()
    assert not gone.copy.exists()
