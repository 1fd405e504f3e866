"""Whether there is tracing, found out without importing it."""

from typing import TYPE_CHECKING

from pathlens.errors import ServerStartError
from pathlens.observability.settings import TracingSettings

if TYPE_CHECKING:
    from pathlens.observability.tracing import Tracing


def start_tracing(settings: TracingSettings) -> "Tracing | None":
    """Begin to trace, if there is a collector.

    Args:
        settings: What the operator chose.

    Returns:
        What makes the spans; None without a collector.

    Raises:
        ServerStartError: The libraries of OpenTelemetry are not installed.
    """
    if settings.endpoint is None:
        return None
    try:
        # Nobody without a collector shall wait for this import, or need what it needs.
        from pathlens.observability.tracing import Tracing
    except ModuleNotFoundError as error:
        raise ServerStartError(
            f"tracing.endpoint is set, but {error.name} is not installed: run `pip install 'pathlens[tracing]'`, or"
            " leave the endpoint out.",
            metadata={"missing": error.name},
        ) from error
    return Tracing(settings)
