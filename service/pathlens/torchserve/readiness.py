"""Telling whether TorchServe serves: its own Ping says healthy while nothing works, so the models are asked."""

import time
from collections.abc import Callable
from typing import TypeVar

import grpc

from pathlens.errors import ServerStartError
from pathlens.model_version import ModelVersion
from pathlens.torchserve.archive import ArchivedModel
from pathlens.torchserve.journal import Journal
from pathlens.torchserve.management import Management
from pathlens.torchserve.stored_archive import StoredArchive

_Answer = TypeVar("_Answer")

_POLL_SECONDS = 0.1
_CALL_SECONDS = 10.0
# TorchServe goes on restarting a worker that cannot load its model for minutes; what failed twice will fail again.
_LOAD_FAILURES = 2
# What a worker prints at its end may be lost, so that one failing in silence is given more tries to say why.
_SILENT_LOAD_FAILURES = 4
_SILENT_END = "(nothing: it was ended from outside, as the system does when memory runs out)"
_CANARY_FAILURES = 3
_CANARY_PAUSE_SECONDS = 1.0


class Readiness:
    """Waits until models have loaded and answer.

    Args:
        management: The connection to TorchServe's management.
        journal: TorchServe's log.
        is_running: Tells whether the JVM is alive.
        timeout: Seconds for each model that is waited for.
    """

    def __init__(
        self, management: Management, journal: Journal, is_running: Callable[[], bool], timeout: float
    ) -> None:
        self._management = management
        self._journal = journal
        self._is_running = is_running
        self._timeout = timeout
        self._deadline = 0.0
        # What a worker suffered before now has been seen by an earlier wait, or is seen again within seconds.
        self._begin = journal.size()

    def wait_for(self, archive: StoredArchive, canary: Callable[[ModelVersion], _Answer]) -> _Answer:
        """Wait until all workers of a model have loaded it and a canary prediction succeeds.

        Args:
            archive: What is loaded.
            canary: Makes one prediction with this version; raises when it fails.

        Returns:
            What the canary returned.

        Raises:
            ServerStartError: The JVM ended, the model cannot be loaded, the canary keeps failing, or the time is up.
        """
        model = archive.model
        self._deadline = time.monotonic() + self._timeout
        # TorchServe reads the archives before it listens, so whatever it refuses is in the log by now.
        if rejection := self._journal.rejection(archive.copy.name):
            raise self._failure(model, "was refused by TorchServe", "ARCHIVE_REFUSED", rejection)
        state = "has not been asked"
        canary_failures = 0
        while True:
            self._check(model, state)
            loaded, state = self._state(model)
            if not loaded:
                time.sleep(_POLL_SECONDS)
                continue
            try:
                return canary(model.served_as)
            except Exception as error:
                canary_failures += 1
                state = f"has loaded, but a prediction failed: {error}"
                if canary_failures == _CANARY_FAILURES:
                    raise self._failure(model, state, "CANARY_FAILED", self._journal.last_words(model)) from error
                time.sleep(_CANARY_PAUSE_SECONDS)

    def _check(self, model: ArchivedModel, state: str) -> None:
        """Raise if waiting has become pointless."""
        if not self._is_running():
            raise self._failure(model, "cannot be served: TorchServe has ended", "JVM_ENDED", self._journal.tail())
        failures = self._journal.load_failures(model, since=self._begin)
        if failures.count >= (_LOAD_FAILURES if failures.words else _SILENT_LOAD_FAILURES):
            what = f"cannot be loaded: its worker has ended {failures.count} times"
            raise self._failure(model, what, "MODEL_LOAD_FAILED", failures.words or _SILENT_END)
        if time.monotonic() > self._deadline:
            what = f"is not ready after {self._timeout:g} s; it {state}"
            raise self._failure(model, what, "START_TIMEOUT", self._journal.last_words(model))

    def _state(self, model: ArchivedModel) -> tuple[bool, str]:
        """Ask TorchServe whether a model's workers are ready, and put the answer in words."""
        seconds = min(_CALL_SECONDS, max(self._deadline - time.monotonic(), _POLL_SECONDS))
        try:
            ready, expected = self._management.workers(model.served_as, seconds)
        except grpc.RpcError as error:
            return False, f"cannot be described by TorchServe ({error.code().name}: {error.details()})"
        return ready >= expected, f"has {ready} of {expected} workers ready"

    @staticmethod
    def _failure(model: ArchivedModel, what: str, reason: str, quoted: str) -> ServerStartError:
        return ServerStartError(
            f"The model {model.served_as} {what}. TorchServe's log says:\n{quoted}",
            reason=reason,
            metadata={"model": model.name, "version": model.version, "archive": model.archive},
        )
