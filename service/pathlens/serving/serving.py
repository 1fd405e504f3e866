"""What all that is served has in common."""

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Self

from pathlens.errors import ServerStartError
from pathlens.gateway import Gateway

Report = Callable[[str], None]
"""Is told in words how far a start is."""

_POLL_SECONDS = 0.2


class Serving(ABC):
    """Something that is started, serves, and is stopped; a context manager that does so."""

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    @abstractmethod
    def endpoints(self) -> Sequence[tuple[str, str]]:
        """What it listens on: a word and an address each, while it runs."""

    @property
    @abstractmethod
    def models(self) -> Sequence[str]:
        """Names of the models that are served."""

    def start(self) -> None:
        """Start everything.

        Raises:
            ServerStartError: Something does not come up; nothing is left running then.
        """
        try:
            self._start()
        except KeyboardInterrupt:
            self._break_off_start()
            raise
        except BaseException:
            self.stop(drain_seconds=0)
            raise

    def wait(self, stopped: Callable[[], bool]) -> None:
        """Serve until told to stop.

        Args:
            stopped: Tells whether to stop. No `threading.Event`: a signal handler that sets the one that its own thread
                waits for may find its lock taken, for ever.

        Raises:
            ServerStartError: It cannot go on.
        """
        while not stopped():
            time.sleep(_POLL_SECONDS)
            if self._failure is not None:
                raise self._failure

    @abstractmethod
    def stop(self, drain_seconds: float | None = None) -> None:
        """Finish what was accepted, and end every process; may be repeated.

        Who interrupts it ends everything at once.

        Args:
            drain_seconds: How long all of this may take, but for a second that TorchServe always has; 0 ends everything
                at once. None means the settings.
        """

    def _break_off_start(self) -> None:
        """Put away what has begun to start: nobody is served yet."""
        self.stop(drain_seconds=0)

    @abstractmethod
    def _start(self) -> None:
        """Start; `stop` follows if it fails."""

    @property
    def _failure(self) -> ServerStartError | None:
        """Why it cannot go on; None while it can."""
        return None


def gateway_endpoints(gateway: Gateway) -> Sequence[tuple[str, str]]:
    """Tell what a gateway listens on.

    Args:
        gateway: One that runs.

    Returns:
        A word and an address each.
    """
    endpoints = [("gRPC", gateway.address), ("metrics", f"http://{gateway.metrics_address}/metrics")]
    return endpoints if gateway.health_address is None else [*endpoints, ("health", gateway.health_address)]
