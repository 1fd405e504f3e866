"""Archives before TorchServe sees them: readable, of names of their own, and those that were pinned."""

import hashlib
import json
import os
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from pathlens.errors import BundleError, PathlensError, ServerStartError
from pathlens.torchserve import ServedModels, TorchServe, TorchServeSettings


def archive(path: Path, name: str, padding: str = "", version: str = "1.0") -> Path:
    manifest = {"model": {"modelName": name, "modelVersion": version, "handler": "handler.py"}}
    with zipfile.ZipFile(path, "w") as content:
        content.writestr("MAR-INF/MANIFEST.json", json.dumps(manifest))
        content.writestr("padding", padding)
    return path


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def problem(*archives: Path, **pins: str) -> PathlensError:
    settings = TorchServeSettings(archives=archives, archive_sha256=pins)
    (found,) = ServedModels.of(settings).problems
    # Nor does TorchServe take them.
    with pytest.raises(type(found)) as caught:
        TorchServe(settings)
    assert caught.value.message == found.message
    return found


def test_several_versions_of_one_model_are_served_side_by_side(tmp_path: Path) -> None:
    paths = tuple(archive(tmp_path / f"{version}.mar", "digits", version=version) for version in ("1.0", "2.0"))
    settings = TorchServeSettings(archives=paths)
    assert [str(model.served_as) for model in ServedModels.of(settings).all()] == ["digits 1.0", "digits 2.0"]
    assert TorchServe(settings).models == ("digits",)


@pytest.mark.parametrize("name", ["digits", "file.mar"])
@pytest.mark.parametrize("case", [str.lower, str.upper])
def test_an_archive_may_be_pinned_by_its_model_or_its_file_name(name: str, case: object, tmp_path: Path) -> None:
    path = archive(tmp_path / "file.mar", "digits")
    digest = sha256(path).upper() if case is str.upper else sha256(path)
    settings = TorchServeSettings(archives=(path,), archive_sha256={name: digest})
    assert [model.name for model in ServedModels.of(settings).all()] == ["digits"]
    assert TorchServe(settings).models == ("digits",)


@pytest.mark.parametrize("name", ["digits", "file.mar"])
def test_another_archive_than_the_pinned_one_is_refused_with_both_hashes(name: str, tmp_path: Path) -> None:
    pinned = sha256(archive(tmp_path / "file.mar", "digits"))
    path = archive(tmp_path / "file.mar", "digits", "something else")
    error = problem(path, **{name: pinned})
    assert isinstance(error, BundleError)
    assert error.reason == "ARCHIVE_CHANGED"
    assert error.metadata == {"archive": str(path), "sha256": sha256(path), "pinned": pinned}
    assert all(value in error.message for value in error.metadata.values())


def test_where_there_are_pins_an_archive_that_none_names_is_refused(tmp_path: Path) -> None:
    one, other = archive(tmp_path / "one.mar", "one"), archive(tmp_path / "other.mar", "other")
    error = problem(one, other, one=sha256(one))
    assert error.reason == "ARCHIVE_NOT_PINNED"
    assert error.metadata == {"archive": str(other), "model": "other", "sha256": sha256(other)}
    assert all(value in error.message for value in error.metadata.values())


def test_the_pin_of_a_file_holds_for_no_other_file_of_the_same_model(tmp_path: Path) -> None:
    one = archive(tmp_path / "one.mar", "digits")
    newer = archive(tmp_path / "newer.mar", "digits", version="99.0")
    error = problem(one, newer, **{"one.mar": sha256(one)})
    assert error.reason == "ARCHIVE_NOT_PINNED"
    assert error.metadata["archive"] == str(newer)


def test_without_pins_any_archive_is_served(tmp_path: Path) -> None:
    assert ServedModels.of(TorchServeSettings(archives=(archive(tmp_path / "one.mar", "one"),))).all()


def test_a_pin_of_nothing_that_is_served_is_refused_with_the_nearest_name(tmp_path: Path) -> None:
    path = archive(tmp_path / "file.mar", "digits")
    error = problem(path, digits=sha256(path), digts=sha256(path))
    assert isinstance(error, ServerStartError)
    assert "'digts'" in error.message
    assert "did you mean 'digits'?" in error.message


def test_an_archive_that_was_exchanged_before_the_start_is_refused_by_the_start(tmp_path: Path) -> None:
    path = archive(tmp_path / "file.mar", "digits")
    server = TorchServe(TorchServeSettings(archives=(path,), archive_sha256={"digits": sha256(path)}))
    archive(path, "digits", "exchanged")
    with pytest.raises(BundleError, match="it is not the archive that was pinned"):
        server.start()
    assert not server.is_running


def corrupt(path: Path) -> None:
    """Make an archive whose manifest is LZMA, and damaged."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_LZMA) as content:
        content.writestr("MAR-INF/MANIFEST.json", "x" * 2000)
    data = bytearray(path.read_bytes())
    begin = 30 + len("MAR-INF/MANIFEST.json")
    data[begin + 9 : begin + 30] = b"\xff" * 21
    path.write_bytes(data)


def truncated(path: Path) -> None:
    """Make an archive whose manifest is said to be longer than the file."""
    with zipfile.ZipFile(path, "w") as content:
        content.writestr("MAR-INF/MANIFEST.json", os.urandom(3000))
    data = bytearray(path.read_bytes())
    struct.pack_into("<II", data, data.index(b"PK\x01\x02") + 20, 2**20, 2**20)
    path.write_bytes(data)


BAD: dict[str, tuple[Callable[[Path], object], str]] = {
    "corrupt": (corrupt, "is damaged"),
    "truncated": (truncated, "is damaged"),
    "name of 300 letters": (lambda path: archive(path, "m" * 300), "use at most 128 letters"),
    "version of 5,000 digits": (
        lambda path: archive(path, "digits", version="9" * 5000),
        "a version of 5000 characters",
    ),
    "FIFO": (os.mkfifo, "is not a regular file"),
}


@pytest.mark.timeout(20)
@pytest.mark.parametrize("bad", BAD)
def test_a_bad_archive_is_refused_with_what_is_bad_about_it(tmp_path: Path, bad: str) -> None:
    make, words = BAD[bad]
    make(tmp_path / "bad.mar")
    error = problem(tmp_path / "bad.mar")
    assert isinstance(error, BundleError)
    assert words in error.message
    assert error.metadata == {"archive": str(tmp_path / "bad.mar")}


def test_every_problem_of_every_archive_is_found(tmp_path: Path) -> None:
    twins = archive(tmp_path / "a.mar", "twin"), archive(tmp_path / "b.mar", "twin")
    (tmp_path / "broken.mar").write_bytes(b"no zip")
    settings = TorchServeSettings(
        archives=(*twins, tmp_path / "broken.mar", tmp_path / "missing.mar"),
        archive_sha256={"twin": sha256(twins[0]), "b.mar": "0" * 64},
    )
    found = ServedModels.of(settings)
    assert [model.name for model in found.models] == ["twin", "twin"]
    words = ("broken.mar is not a plain zip", "no model archive", "2 archives hold a model named 'twin'", "b.mar has")
    assert all(any(word in error.message for error in found.problems) for word in words)
    assert len(found.problems) == 4
