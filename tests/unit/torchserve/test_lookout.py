import os
from pathlib import Path

import pytest

from pathlens.torchserve import TorchServeSettings
from pathlens.torchserve.lookout import Lookout
from pathlens.torchserve.stored_archive import Stamp


@pytest.fixture
def store(tmp_path: Path) -> Path:
    (tmp_path / "one.mar").write_bytes(b"one")
    return tmp_path


@pytest.fixture
def lookout(store: Path) -> Lookout:
    one = store / "one.mar"
    return Lookout(TorchServeSettings(model_store=store), {one: Stamp.of(one)})


def test_what_is_as_it_was_is_settled_at_once(store: Path, lookout: Lookout) -> None:
    assert lookout.look().settled == {store / "one.mar": Stamp.of(store / "one.mar")}


def test_a_new_file_settles_with_the_second_look(store: Path, lookout: Lookout) -> None:
    new = store / "new.mar"
    new.write_bytes(b"new")
    assert lookout.look().unsettled == {new}
    assert lookout.look().settled[new] == Stamp.of(new)


def test_a_file_that_grows_never_settles_until_it_is_whole(store: Path, lookout: Lookout) -> None:
    new = store / "new.mar"
    for _ in range(3):
        with new.open("ab") as file:
            file.write(b"more")
        assert new in lookout.look().unsettled
    assert new in lookout.look().settled


def test_a_file_that_was_put_in_place_of_another_is_seen_though_size_and_time_are_the_same(
    store: Path, lookout: Lookout
) -> None:
    one, other = store / "one.mar", store / "scratch"
    before = one.stat()
    other.write_bytes(b"two")
    os.utime(other, ns=(before.st_atime_ns, before.st_mtime_ns))
    other.rename(one)
    assert lookout.look().unsettled == {one}


def test_a_file_is_gone_only_when_it_was_missing_twice(store: Path, lookout: Lookout) -> None:
    (store / "one.mar").unlink()
    assert lookout.look().unsettled == {store / "one.mar"}
    sight = lookout.look()
    assert not sight.settled
    assert not sight.unsettled


def test_only_the_named_archives_are_looked_at(store: Path) -> None:
    lookout = Lookout(TorchServeSettings(archives=(store / "one.mar",)), {})
    (store / "new.mar").write_bytes(b"new")
    lookout.look()
    assert set(lookout.look().settled) == {store / "one.mar"}


def test_a_store_that_is_not_there_is_no_empty_one(store: Path, lookout: Lookout) -> None:
    store.rename(store.with_name("elsewhere"))
    with pytest.raises(FileNotFoundError):
        lookout.look()
    store.with_name("elsewhere").rename(store)
    assert set(lookout.look().settled) == {store / "one.mar"}


@pytest.mark.parametrize("name", [".hidden.mar", "digits.txt"])
def test_other_files_are_no_archives(store: Path, lookout: Lookout, name: str) -> None:
    (store / name).write_bytes(b"other")
    assert set(lookout.look().settled) == {store / "one.mar"}
