"""`make monitor`: the command as it is used."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from deploy.programs import need
from local.breakage import Breakage
from local.child import Child
from local.prometheus import DEBIAN_PACKAGES, ROOT, rule_files
from pathlens.bundle.archive import pack
from pathlens.bundle.store import save_bundle
from pathlens.errors import ServerStartError
from tiny_bundle import pixels, png, tiny_bundle

PATIENCE_SECONDS = 60.0


def run(*arguments: object, **variables: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "local", *map(str, arguments)],
        cwd=ROOT / "deploy",
        env=os.environ | variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> tuple[object, ...]:
    """The arguments that name a model and images."""
    folder = tmp_path_factory.mktemp("watched")
    save_bundle(tiny_bundle(), folder / "bundle")
    archive = pack(folder / "bundle", folder / "store")
    (folder / "image.png").write_bytes(png(pixels()))
    return "--archive", archive, "--images", folder


def test_whoever_interrupts_it_leaves_nothing_behind(watched: tuple[object, ...], tmp_path: Path) -> None:
    for program in ("prometheus", "promtool", "prometheus-alertmanager", "amtool"):
        need(program)
    monitor = run(*watched, TMPDIR=str(tmp_path))
    end = time.monotonic() + PATIENCE_SECONDS
    assert monitor.stdout is not None
    shown = ""
    while "calls per second" not in shown and time.monotonic() < end:
        shown += monitor.stdout.readline()
    family = psutil.Process(monitor.pid).children(recursive=True)
    assert {Path(process.exe()).name for process in family} >= {"prometheus", "prometheus-alertmanager", "java"}
    monitor.send_signal(signal.SIGINT)
    # The impatient press twice.
    time.sleep(0.5)
    monitor.send_signal(signal.SIGINT)
    rest, _ = monitor.communicate(timeout=PATIENCE_SECONDS)
    assert monitor.returncode == 0, rest
    assert not [process for process in family if process.is_running()]
    assert list(tmp_path.iterdir()) == []


def test_without_prometheus_it_names_the_packages_to_install(watched: tuple[object, ...], tmp_path: Path) -> None:
    monitor = run(*watched, PATH=str(tmp_path))
    told, _ = monitor.communicate(timeout=PATIENCE_SECONDS)
    assert monitor.returncode == 1
    assert DEBIAN_PACKAGES in " ".join(told.split())


def test_a_program_that_ends_at_once_is_an_error_with_what_it_wrote(tmp_path: Path) -> None:
    child = Child(["sh", "-c", "echo no such luck >&2; exit 3"], tmp_path)
    with pytest.raises(ServerStartError, match="no such luck"):
        child.listening()


def test_a_folder_without_rules_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ServerStartError, match="no rules"):
        rule_files(tmp_path)


def test_only_drift_changes_the_pictures() -> None:
    picture = png(pixels())
    changed = {breakage: breakage.spoil(picture) for breakage in Breakage}
    assert changed.pop(Breakage.DRIFT) != picture
    assert set(changed.values()) == {picture}
