"""Programs that these tests need and that a machine may lack."""

import os
import shutil
import sys
from pathlib import Path

import pytest

_PACKAGES = {
    "prometheus": "prometheus",
    "promtool": "prometheus",
    "prometheus-alertmanager": "prometheus-alertmanager",
    "amtool": "prometheus-alertmanager",
    "node": "nodejs",
    "npm": "npm",
}
"""Debian's packages. kubectl comes with the extra `dev`: that of Debian 12 is too old to read our manifests."""


def need(program: str) -> str:
    """Find a program.

    Looks beside Python first, where pip puts programs. Skips the test if the program is not installed. In continuous
    integration, where nobody reads of skipped tests, that is a failure.

    Args:
        program: Its name.

    Returns:
        Its path.
    """
    found = shutil.which(program, path=Path(sys.executable).parent) or shutil.which(program)
    if found is None:
        package = _PACKAGES.get(program)
        reason = f"{program} is not installed: " + (f"apt-get install {package}" if package else "make install")
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    return found
