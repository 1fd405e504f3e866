"""The folder that one TorchServe lives in, and the configuration files in it."""

import re
import shutil
import socket
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from string import Template

from pathlens.errors import ServerStartError
from pathlens.torchserve.settings import TorchServeSettings
from pathlens.torchserve.stored_archive import StoredArchive

LOOPBACK = "127.0.0.1"

# The workers' UNIX sockets lie in the folder, and the system cuts such paths off near 108 characters; our own part
# of the path takes about 30.
_LONGEST_BASE = 60

# MODEL_LOG is what the workers print. Why a model does not load comes at INFO there, because TorchServe sends the
# workers' error log to their standard output; so does a line per request, which is left out. The REST interface is off
# because its errors may quote what a client sent.
_LOG4J = Template("""\
<?xml version="1.0" encoding="UTF-8"?>
<Configuration status="error" shutdownHook="disable">
  <Appenders>
    <RollingFile name="file" fileName="$log" filePattern="$log.%i">
      <PatternLayout pattern="%d{ISO8601} %p [%t] %c{1} - %m%n"/>
      <SizeBasedTriggeringPolicy size="4 MB"/>
      <DefaultRolloverStrategy max="1"/>
    </RollingFile>
  </Appenders>
  <Loggers>
    <Logger name="MODEL_LOG" level="info">
      <RegexFilter regex="Backend received inference at.*" onMatch="DENY" onMismatch="NEUTRAL"/>
    </Logger>
    <Logger name="org.pytorch.serve.wlm.WorkerThread" level="info">
      <Filters>
        <ThresholdFilter level="warn" onMatch="ACCEPT" onMismatch="NEUTRAL"/>
        <RegexFilter regex="Retry worker.*" useRawMsg="true" onMatch="ACCEPT" onMismatch="DENY"/>
      </Filters>
    </Logger>
    <Logger name="org.pytorch.serve.http" level="off"/>
    <Logger name="ACCESS_LOG" level="off"/>
    <Logger name="MODEL_METRICS" level="off"/>
    <Logger name="TS_METRICS" level="off"/>
    <Root level="warn"><AppenderRef ref="file"/></Root>
  </Loggers>
</Configuration>
""")

# The JVM's gRPC library logs through java.util.logging, whose default is the console.
_JAVA_LOGGING = Template("""\
handlers=java.util.logging.FileHandler
.level=WARNING
java.util.logging.FileHandler.pattern=$log
java.util.logging.FileHandler.limit=1048576
java.util.logging.FileHandler.count=1
java.util.logging.FileHandler.formatter=java.util.logging.SimpleFormatter
""")


@dataclass(frozen=True)
class Ports:
    """The TCP ports of one TorchServe, all on loopback.

    Args:
        inference: gRPC calls to the models.
        management: gRPC calls about the models.
        http_inference: REST calls to the models.
        http_management: REST calls about the models.
        http_metrics: REST calls for TorchServe's own metrics; configured, but not opened.
    """

    inference: int
    management: int
    http_inference: int
    http_management: int
    http_metrics: int

    @property
    def opened(self) -> frozenset[int]:
        """The ports that TorchServe listens on once it is up."""
        return frozenset((self.inference, self.management, self.http_inference, self.http_management))


def free_ports(inference: int = 0, management: int = 0) -> Ports:
    """Choose ports that nobody listens on.

    Another process may take one before TorchServe binds it, so whoever starts TorchServe must be ready to ask again.

    Args:
        inference: The port to take for gRPC calls to the models; 0 takes any.
        management: The same for gRPC calls about the models.

    Returns:
        Five different free ports.

    Raises:
        ServerStartError: A port that has to be taken is not free.
    """
    # All are held open together, so that the system cannot hand out one of them twice.
    sockets = [socket.socket(socket.AF_INET, socket.SOCK_STREAM) for _ in range(5)]
    try:
        _bind(sockets[0], inference, "torchserve.inference_port")
        _bind(sockets[1], management, "torchserve.management_port")
        for one in sockets[2:]:
            one.bind((LOOPBACK, 0))
        return Ports(*(one.getsockname()[1] for one in sockets))
    finally:
        for one in sockets:
            one.close()


def _bind(one: socket.socket, port: int, setting: str) -> None:
    if port:
        # As Java does, so that connections to a TorchServe that has just ended are no obstacle.
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        one.bind((LOOPBACK, port))
    except OSError as error:
        raise ServerStartError(
            f"TorchServe cannot listen on port {port} of {LOOPBACK} ({error.strerror}): choose another {setting}, or 0"
            " for any free one.",
            reason="PORT_UNAVAILABLE",
            metadata={"host": LOOPBACK, "port": port},
        ) from error


class InstanceFolder:
    """A new temporary folder for one TorchServe.

    Args:
        store: The folder with the archives that it may load, which stays when this one is removed.

    Raises:
        ServerStartError: No temporary folder with a short enough path can be made.
    """

    def __init__(self, store: Path) -> None:
        self.store = store
        base = Path(tempfile.gettempdir()).absolute()
        if len(str(base)) > _LONGEST_BASE:
            base = Path("/tmp")  # noqa: S108 - mkdtemp makes the folder private
        try:
            self.path = Path(tempfile.mkdtemp(prefix="pl", dir=base))
        except OSError as error:
            raise ServerStartError(
                f"No folder can be made in {base} ({error.strerror}): set TMPDIR to a writable folder whose path has "
                f"at most {_LONGEST_BASE} characters.",
                metadata={"folder": base},
            ) from error
        self.temporary = self.path / "t"
        self.log = self.path / "torchserve.log"
        self.console = self.path / "console.log"
        self.configuration = self.path / "config.properties"
        self.log4j = self.path / "log4j2.xml"
        self.java_logging = self.path / "logging.properties"

    def fill(self, settings: TorchServeSettings, archives: Sequence[StoredArchive]) -> None:
        """Write everything that does not depend on the ports.

        Args:
            settings: What the operator chose.
            archives: What is loaded by the start.
        """
        self.temporary.mkdir()
        self.log4j.write_text(_LOG4J.substitute(log=self.log))
        self.java_logging.write_text(_JAVA_LOGGING.substitute(log=self.path / "java.log"))
        self._properties = {
            "model_store": str(self.store),
            "load_models": ",".join(archive.copy.name for archive in archives),
            "allowed_urls": f"file://{re.escape(str(self.store))}/.*",
            "default_workers_per_model": str(settings.workers),
            "job_queue_size": str(settings.job_queue_size),
            "default_response_timeout": str(settings.response_timeout_seconds),
            "default_startup_timeout": str(settings.load_timeout_seconds),
            "max_request_size": str(settings.max_message_bytes),
            "max_response_size": str(settings.max_message_bytes),
            "grpc_inference_address": LOOPBACK,
            "grpc_management_address": LOOPBACK,
            # Only loopback reaches it, and the gateway in front authorises.
            "disable_token_authorization": "true",
            # New versions are registered while TorchServe runs; `allowed_urls` keeps that to its own store.
            "enable_model_api": "true",
            "enable_envvars_config": "false",
            "install_py_dep_per_model": "false",
            # The gateway counts: TorchServe leaves out gRPC calls, and would start a Python every minute to measure.
            "enable_metrics_api": "false",
            "disable_system_metrics": "true",
        }

    def assign(self, ports: Ports) -> None:
        """Write `config.properties` for these ports and empty the logs.

        Args:
            ports: Where TorchServe shall listen.
        """
        addresses = {
            "inference_address": f"http://{LOOPBACK}:{ports.http_inference}",
            "management_address": f"http://{LOOPBACK}:{ports.http_management}",
            "metrics_address": f"http://{LOOPBACK}:{ports.http_metrics}",
            "grpc_inference_port": str(ports.inference),
            "grpc_management_port": str(ports.management),
        }
        self.configuration.write_text(_properties_text({**self._properties, **addresses}), encoding="ascii")
        self.console.write_bytes(b"")
        self.log.write_bytes(b"")

    def remove(self) -> None:
        """Remove the folder and everything in it but the store; the processes that write to it must have ended."""
        shutil.rmtree(self.path, ignore_errors=True)


def _properties_text(values: Mapping[str, str]) -> str:
    """Write a Java properties file: a backslash escapes, and Java reads the file as ISO-8859-1."""

    def escaped(text: str) -> str:
        utf16 = text.replace("\\", "\\\\").encode("utf-16-be")
        units = [int.from_bytes(utf16[i : i + 2], "big") for i in range(0, len(utf16), 2)]
        return "".join(chr(unit) if 32 <= unit < 127 else f"\\u{unit:04x}" for unit in units)

    return "".join(f"{key}={escaped(value)}\n" for key, value in values.items())
