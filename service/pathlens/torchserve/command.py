"""The command line and the environment that TorchServe's JVM is started with."""

import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass

from pathlens.torchserve.installation import java_program, torchserve_home, workers_python
from pathlens.torchserve.instance import InstanceFolder
from pathlens.torchserve.processors import available_processors, threads_for
from pathlens.torchserve.relay import LOGGER
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
    java = java_program(settings.java_home)
    python = workers_python(settings.python)
    home = torchserve_home()
    arguments = (
        str(java),
        f"-Xmx{settings.heap_megabytes}m",
        "-XX:+UseSerialGC",
        # The quick compiler alone: the JVM starts with a third less computing, and only hands messages on.
        "-XX:TieredStopAtLevel=1",
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
    if "PYTHONPATH" in inherited:
        # TorchServe puts the model's folder behind it, from where a worker would take any other file of the handler's
        # name first. The model's folder is also the one that a worker starts in.
        inherited["PYTHONPATH"] = os.pathsep.join((os.curdir, inherited["PYTHONPATH"]))
    temporary = str(folder.temporary)
    threads = settings.threads or threads_for(settings.workers, available_processors())
    defaults = {
        # A worker that crashes in native code then says where.
        "PYTHONFAULTHANDLER": "1",
        # torch would start a thread for each processor of the machine, in every worker.
        "OMP_NUM_THREADS": str(threads),
        # Threads that wait for each other let others run: else one that has lost its processor stops all for seconds.
        "OMP_WAIT_POLICY": "PASSIVE",
    }
    environment = {
        **inherited,
        # Empty is as good as not set, but only for these: an empty CUDA_VISIBLE_DEVICES hides every GPU.
        **{name: inherited.get(name) or value for name, value in defaults.items()},
        "TEMP": temporary,
        "TMPDIR": temporary,
        "LOG_LOCATION": str(folder.path),
        "METRICS_LOCATION": str(folder.path),
        # The handler ends its own work before TorchServe kills the worker for it.
        "PATHLENS_RESPONSE_TIMEOUT": str(settings.response_timeout_seconds),
        "PATHLENS_DECODE_SECONDS": str(settings.decode_seconds),
        "PATHLENS_SLICE_MEBIBYTES": str(settings.slice_mebibytes),
        # What would not be logged here need not be written there.
        "PATHLENS_LOG_LEVEL": str(logging.getLogger(LOGGER).getEffectiveLevel()),
    }
    return Command(arguments, environment)
