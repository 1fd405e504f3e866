"""What an operator may choose about the log and the traces."""

from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field

from pathlens.settings import Number, settings


@settings
class LoggingSettings:
    """The log, which goes to standard error.

    Raises:
        ServerStartError: A value is none of those that there are.
    """

    format: Literal["auto", "json", "text"] = "auto"
    """One JSON object a line, or text for people; `auto` writes text to a terminal and JSON to anything else."""
    level: Literal["debug", "info", "warning", "error", "critical"] = "info"
    """What is less important is left out, of TorchServe and its workers too."""


def _url(text: str) -> str:
    parts = urlsplit(text)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"is {text!r}: give the URL of an OTLP/gRPC collector, such as http://collector:4317")
    if parts.username is not None or parts.password is not None:
        # Not quoted: the endpoint stands in logs, and this must not.
        raise ValueError("holds a user or a password: give them as OTEL_EXPORTER_OTLP_HEADERS in the environment")
    return text


@settings
class TracingSettings:
    """Spans for an OpenTelemetry collector.

    Raises:
        ServerStartError: The endpoint is no URL, or the ratio out of range.
    """

    endpoint: Annotated[str, AfterValidator(_url)] | None = None
    """URL of the collector's OTLP/gRPC port, such as `http://collector:4317`; without it, nothing is traced."""
    sample_ratio: Annotated[Number, Field(ge=0, le=1)] = 1.0
    """Part of the calls that are traced, of those whose callers have not decided it by their `traceparent`."""
