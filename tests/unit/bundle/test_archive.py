"""Model archives: the same bundle gives the same bytes, and TorchServe finds what it needs in them."""

import json
import os
import shutil
import time
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

import pathlens_handler
from pathlens.bundle import archive
from pathlens.bundle.archive import pack
from pathlens.bundle.store import BANK, FILES, GENERATOR, MANIFEST, PROGRAM, REFERENCE, load_bundle, save_bundle
from pathlens.errors import BundleError
from pathlens.torchserve.archive import read_archive
from tiny_bundle import tiny_bundle


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("archive") / "bundle"
    save_bundle(tiny_bundle(), folder)
    return folder


def test_the_same_bundle_gives_the_same_bytes(bundle: Path, tmp_path: Path) -> None:
    elsewhere = Path(shutil.copytree(bundle, tmp_path / "other name"))
    for number, file in enumerate(sorted(elsewhere.iterdir())):
        os.utime(file, (1_000_000_000 + number, time.time()))
        file.chmod(0o600)
    first, second = pack(bundle, tmp_path / "one"), pack(elsewhere, tmp_path / "two" / "deeper")
    assert first.read_bytes() == second.read_bytes()


def test_another_version_gives_other_bytes(bundle: Path, tmp_path: Path) -> None:
    first = pack(bundle, tmp_path, "1.0").read_bytes()
    assert pack(bundle, tmp_path, "1.1").read_bytes() != first


def test_the_archive_is_named_after_the_model(bundle: Path, tmp_path: Path) -> None:
    save_bundle(replace(tiny_bundle(), name="renamed"), tmp_path / "bundle")
    assert pack(tmp_path / "bundle", tmp_path / "store") == tmp_path / "store" / "renamed.mar"


def test_an_archive_of_another_file_name_leaves_the_one_of_the_model_alone(bundle: Path, tmp_path: Path) -> None:
    first = pack(bundle, tmp_path)
    second = pack(bundle, tmp_path, "2.0", "tiny-2.0.mar")
    assert second == tmp_path / "tiny-2.0.mar"
    assert (read_archive(first).version, read_archive(second).version) == ("1.0", "2.0")


@pytest.mark.parametrize("name", ["tiny", "", ".tiny.mar", "../tiny.mar", "deeper/tiny.mar", "tiny.zip"])
def test_a_file_name_that_is_none_of_an_archive_is_refused(bundle: Path, tmp_path: Path, name: str) -> None:
    with pytest.raises(BundleError, match=r"tiny-2\.0\.mar"):
        pack(bundle, tmp_path / "store", "2.0", name)
    assert not (tmp_path / "store").exists()


def test_the_archive_holds_manifest_handler_and_bundle(bundle: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(pack(bundle, tmp_path)) as content:
        assert content.testzip() is None
        assert set(content.namelist()) == {
            "MAR-INF/MANIFEST.json",
            "pathlens_handler.py",
            *(f"bundle/{name}" for name in (MANIFEST, *FILES, GENERATOR, REFERENCE)),
        }
        for name in (MANIFEST, *FILES, GENERATOR, REFERENCE):
            assert content.read(f"bundle/{name}") == (bundle / name).read_bytes()
        assert content.read("pathlens_handler.py") == Path(pathlens_handler.__file__).read_bytes()


def test_a_bundle_without_generator_is_packed_without(tmp_path: Path) -> None:
    save_bundle(replace(tiny_bundle(), generator=None), tmp_path / "bundle")
    with zipfile.ZipFile(pack(tmp_path / "bundle", tmp_path)) as content:
        assert f"bundle/{GENERATOR}" not in content.namelist()
        content.extractall(tmp_path / "model")
    assert load_bundle(tmp_path / "model" / "bundle").generator is None


def test_the_bundle_in_the_archive_loads(bundle: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(pack(bundle, tmp_path)) as content:
        content.extractall(tmp_path / "model")
    assert load_bundle(tmp_path / "model" / "bundle").sha256 == load_bundle(bundle).sha256


def test_the_manifest_tells_torchserve_what_to_load(bundle: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(pack(bundle, tmp_path, "2.5")) as content:
        manifest = json.loads(content.read("MAR-INF/MANIFEST.json"))
    assert manifest == {
        "archiverVersion": "0.12.0",
        "runtime": "python",
        "model": {"modelName": "tiny", "handler": "pathlens_handler.py", "modelVersion": "2.5"},
    }


def test_what_is_packed_is_what_the_server_reads(bundle: Path, tmp_path: Path) -> None:
    served = read_archive(pack(bundle, tmp_path, "7"))
    assert (served.name, served.version) == ("tiny", "7")


@pytest.mark.parametrize("version", ["", "1.0.0", "v1", "1.", ".5", "-1", "1e3", " 1", "1\n", "٣", "../1"])
def test_a_version_that_torchserve_would_refuse_is_refused(version: str, bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="version is"):
        pack(bundle, tmp_path, version)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("version", ["1", "1.0", "10.25", "0.1"])
def test_a_usual_version_is_taken(version: str, bundle: Path, tmp_path: Path) -> None:
    assert read_archive(pack(bundle, tmp_path, version)).version == version


def test_a_folder_that_is_not_a_bundle_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="is not a bundle"):
        pack(tmp_path, tmp_path / "store")
    assert not (tmp_path / "store").exists()


def test_a_bundle_that_was_changed_is_refused(bundle: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(bundle, tmp_path / "bundle"))
    (copy / BANK).write_bytes((copy / BANK).read_bytes() + b" ")
    with pytest.raises(BundleError, match="was changed"):
        pack(copy, tmp_path / "store")


def test_a_bundle_that_lacks_a_file_is_refused(bundle: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(bundle, tmp_path / "bundle"))
    (copy / PROGRAM).unlink()
    with pytest.raises(BundleError, match="lacks the file"):
        pack(copy, tmp_path / "store")


def test_a_manifest_cannot_put_other_files_into_the_archive(bundle: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(bundle, tmp_path / "bundle"))
    (tmp_path / "secret").write_bytes(b"secret")
    values = json.loads((copy / MANIFEST).read_text())
    values["files"]["../secret"] = "2bb80d537b1da3e38bd30361aa855686bde0eacd7162fef6a25fe97bf527a25b"
    (copy / MANIFEST).write_text(json.dumps(values))
    with pytest.raises(BundleError, match="names the files"):
        pack(copy, tmp_path / "store")


def test_a_failure_half_way_leaves_the_old_archive_and_no_scratch(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = pack(bundle, tmp_path).read_bytes()
    written: list[object] = []

    def failing(self: zipfile.ZipFile, entry: object, data: bytes) -> None:
        written.append(entry)
        if len(written) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(zipfile.ZipFile, "writestr", failing)
    with pytest.raises(KeyboardInterrupt):
        pack(bundle, tmp_path, "2.0")
    assert [file.name for file in tmp_path.iterdir()] == ["tiny.mar"]
    assert (tmp_path / "tiny.mar").read_bytes() == before


def test_the_archive_is_readable_by_the_user_that_serves_it(bundle: Path, tmp_path: Path) -> None:
    packed = pack(bundle, tmp_path)
    assert packed.stat().st_mode & 0o777 == 0o644
    with zipfile.ZipFile(packed) as content:
        assert {entry.external_attr >> 16 for entry in content.infolist()} == {0o644}


def test_a_missing_handler_is_named(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive, "HANDLER", "no_such_handler.py")
    with pytest.raises(BundleError, match=r"no_such_handler\.py is not installed"):
        pack(bundle, tmp_path)
