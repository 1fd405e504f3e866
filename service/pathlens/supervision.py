"""Restarts TorchServe when it has ended by itself or answers nothing any more."""

import contextlib
import logging
import threading
import time
from collections.abc import Callable
from typing import Protocol

import psutil

from pathlens.errors import PathlensError, ServerStartError
from pathlens.model_version import ModelVersion
from pathlens.torchserve import TorchServe

_logger = logging.getLogger(__name__)
_POLL_SECONDS = 0.1
_INTERRUPT_SECONDS = 0.1
_FIRST_PAUSE_SECONDS = 0.5
_LONGEST_PAUSE_SECONDS = 30.0
# How long TorchServe has to be well for its earlier restarts to be forgotten.
_HEALTHY_SECONDS = 60.0


class Entrance(Protocol):
    """The gateway, as seen from another thread than its own."""

    @property
    def unready_seconds(self) -> float:
        """For how long the models have answered nothing."""

    def suspend(self, reason: str, retry_after: float) -> None:
        """Refuse calls: there is no TorchServe for a while."""

    def resume(self) -> None:
        """Take calls again, with the TorchServe that runs now."""

    def give_up(self) -> None:
        """Tell that there will be no TorchServe any more."""


class Supervisor:
    """Watches a TorchServe that has started, in a thread of its own, from `start` to `stop`.

    TorchServe is restarted when its JVM has ended, and when it has left the canaries unanswered for `deaf_seconds`. The
    first restart follows at once; the pauses before the next ones are 0.5 s, 1 s, 2 s and so on up to 30 s. All of that
    is forgotten after a minute of health.

    Args:
        torchserve: What is watched; nobody else starts or stops it meanwhile.
        check: Makes one prediction with that version; raises when it fails.
        entrance: The gateway.
        deaf_seconds: How long the models may answer nothing.
        max_restarts: How many restarts may follow each other without a minute of health.
        start_seconds: How long the first start took. Callers are told to come back after a pause and the last start.
        meanwhile: Is called again and again while TorchServe is well, to load and unload models. It is given a function
            that tells when to return at once, because TorchServe is not well any more or the watch is to end.
    """

    def __init__(
        self,
        torchserve: TorchServe,
        check: Callable[[ModelVersion], object],
        entrance: Entrance,
        deaf_seconds: float,
        max_restarts: int,
        start_seconds: float,
        meanwhile: Callable[[Callable[[], bool]], None] = lambda _interrupted: None,
    ) -> None:
        self._torchserve = torchserve
        self._check = check
        self._entrance = entrance
        self._deaf_seconds = deaf_seconds
        self._max_restarts = max_restarts
        self._start_seconds = start_seconds
        self._meanwhile = meanwhile
        self._stopping = threading.Event()
        self._restarting = False
        self._restarts = 0
        self._failure: ServerStartError | None = None
        self._thread = threading.Thread(target=self._supervise, name="supervisor", daemon=True)

    @property
    def failure(self) -> ServerStartError | None:
        """Why it has given up; None while it has not."""
        return self._failure

    def start(self) -> None:
        """Begin to watch."""
        self._thread.start()

    def stop(self) -> None:
        """Watch no more. A restart that is going on is broken off, and TorchServe left as it is then."""
        self._stopping.set()
        while self._thread.is_alive():
            self._thread.join(_INTERRUPT_SECONDS)
            if self._restarting:
                self._interrupt()

    def _supervise(self) -> None:
        try:
            self._watch()
        except Exception as error:
            # A service without its supervisor must not pass for alive.
            _logger.critical("The supervisor has failed", exc_info=True)
            self._failure = ServerStartError(
                f"The supervisor has failed ({type(error).__name__}); see the log, and start the service again.",
                reason="TORCHSERVE_DIED",
            )
            self._entrance.give_up()

    def _watch(self) -> None:
        healthy_since = time.monotonic()
        while not self._stopping.wait(_POLL_SECONDS):
            reason = self._loss()
            if reason is None:
                if self._entrance.unready_seconds:
                    healthy_since = time.monotonic()
                elif time.monotonic() - healthy_since > _HEALTHY_SECONDS:
                    self._restarts = 0
                self._meanwhile(lambda: self._stopping.is_set() or self._loss() is not None)
                continue
            self._restarting = True
            try:
                self._restart(reason)
            finally:
                self._restarting = False
            if self._failure is not None:
                return
            healthy_since = time.monotonic()

    def _loss(self) -> str | None:
        """Tell why TorchServe has to be restarted, if it has to be."""
        if not self._torchserve.is_running:
            return "ended"
        return "deaf" if self._entrance.unready_seconds > self._deaf_seconds else None

    def _restart(self, reason: str) -> None:
        """Restart TorchServe, again and again until it serves, or until there is a failure or a stop."""
        while not self._stopping.is_set():
            if self._restarts == self._max_restarts:
                self._give_up(reason)
                return
            pause = _pause(self._restarts)
            self._restarts += 1
            _logger.error(
                "TorchServe is restarted in %g s, for the %d. time of at most %d: %s",
                *(pause, self._restarts, self._max_restarts, reason),
            )
            self._entrance.suspend(reason, round(pause + self._start_seconds, 1))
            # Before the pause: nobody is answered by a deaf TorchServe, which holds memory and a device.
            self._torchserve.end(drain_seconds=0)
            if self._stopping.wait(pause) or self._starts():
                return
            reason = "start_failed"

    def _starts(self) -> bool:
        began = time.monotonic()
        try:
            self._torchserve.start()
            self._torchserve.wait_until_ready(self._check)
            self._entrance.resume()
        except PathlensError as error:
            if not self._stopping.is_set():
                _logger.error("TorchServe could not be restarted: %s", error.message)
            return False
        except Exception:
            # Nobody else would ever restart it.
            _logger.exception("TorchServe could not be restarted")
            return False
        self._start_seconds = time.monotonic() - began
        _logger.warning("TorchServe serves again")
        return True

    def _give_up(self, reason: str) -> None:
        _logger.critical("TorchServe is not restarted any more, after %d times: %s", self._max_restarts, reason)
        self._entrance.give_up()
        self._torchserve.end(drain_seconds=0)
        self._failure = ServerStartError(
            f"TorchServe failed again after {self._max_restarts} restarts; see the log for the reason of each, and"
            " start the service again.",
            reason="TORCHSERVE_DIED",
            metadata={"restarts": self._max_restarts},
        )

    def _interrupt(self) -> None:
        # Whoever starts this JVM, or waits for it, then gets an error.
        with contextlib.suppress(ServerStartError, psutil.Error):
            psutil.Process(self._torchserve.pid).kill()


def _pause(restarts: int) -> float:
    """Tell how long to wait before the next restart, in seconds, when so many have gone before."""
    if not restarts:
        return 0.0
    # A power of a larger number is of no use, and may be too large for a float.
    return min(_LONGEST_PAUSE_SECONDS, _FIRST_PAUSE_SECONDS * 2.0 ** min(restarts - 1, 10))
