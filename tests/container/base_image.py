"""An image to build on, made of Debian's packages: no registry of images is needed."""

import shutil
import subprocess
from pathlib import Path

SUITE = "bookworm"
# Python 3.11 is the one of this suite.
_PACKAGES = "ca-certificates,python3,python3-pip,python3-venv"
_DISPENSABLE = ("var/cache/apt", "var/lib/apt/lists", "usr/share/doc", "usr/share/man", "usr/share/locale")


def base_archive(archive: Path, scratch: Path) -> None:
    """Make the root of a small Debian with Python, unless it is there already.

    Args:
        archive: The tar file to write.
        scratch: A folder for the files on their way.

    Raises:
        subprocess.CalledProcessError: debootstrap failed; it has said why.
    """
    if archive.is_file():
        return
    root, unfinished = scratch / "base", archive.with_suffix(".part")
    archive.parent.mkdir(parents=True, exist_ok=True)
    try:
        command = ["debootstrap", "--variant=minbase", f"--include={_PACKAGES}", SUITE, str(root), *_mirror()]
        # In a mount namespace of its own, debootstrap's mounts end with it, also when it is interrupted.
        subprocess.run(["unshare", "--mount", *command], check=True)
        for folder in _DISPENSABLE:
            shutil.rmtree(root / folder, ignore_errors=True)
        subprocess.run(["tar", "--create", "--file", unfinished, "--directory", root, "."], check=True)
        unfinished.rename(archive)
    finally:
        unfinished.unlink(missing_ok=True)
        shutil.rmtree(root, ignore_errors=True)


def _mirror() -> list[str]:
    """Find the place that apt takes this suite from; without one, debootstrap has its own."""
    wanted = ["Created-By: Packages", f"Codename: {SUITE}", "Component: main"]
    command = ["apt-get", "indextargets", "--format", "$(REPO_URI)", *wanted]
    try:
        listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    except (OSError, subprocess.CalledProcessError):
        return []
    return listed[:1]
