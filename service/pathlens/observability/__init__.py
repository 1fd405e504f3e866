"""What an operator sees of a running service: its log and its traces."""

from pathlens.observability.log import configure_logging, writes_json
from pathlens.observability.settings import LoggingSettings, TracingSettings
from pathlens.observability.start import start_tracing

__all__ = ["LoggingSettings", "TracingSettings", "configure_logging", "start_tracing", "writes_json"]
