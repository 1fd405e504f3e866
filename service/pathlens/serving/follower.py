"""Lets a gateway serve what a TorchServe serves that others start, and that comes and goes."""

import logging
import threading
import time
from collections.abc import Mapping

import grpc

from pathlens.errors import PathlensError
from pathlens.gateway import Backend, canary
from pathlens.model_version import ModelVersion
from pathlens.serving.loop_thread import LoopThread
from pathlens.serving.serving import Report
from pathlens.torchserve.management import Management
from pathlens.wire.v1 import explanation_service_pb2 as messages

_logger = logging.getLogger(__name__)
# TorchServe takes longer than this from its end to where it listens again, so no end is overlooked.
_POLL_SECONDS = 0.5
# The versions are asked for less often, because TorchServe may start a process to tell them.
_VERSIONS_SECONDS = 5.0
_CALL_SECONDS = 10.0
# What callers are told until it is known for how long TorchServe stays away.
_AWAY_SECONDS = 5.0
# As long as the longest pause of the supervisor: later, a caller would miss a TorchServe that is back early.
_LONGEST_AWAY_SECONDS = 30.0
# From then on waiting is worth a line in the log, which may be all that an operator sees.
_LONG_SECONDS = 5.0
_JOIN_SECONDS = 1.0


class Follower:
    """Follows TorchServe's management, in a thread of its own, from `start` to `stop`.

    A TorchServe that appears is taken up when all its versions are loaded and have answered a canary; what the one
    before had and this one has not is dropped. Meanwhile, a version that appears is admitted after its canary, and one
    that has gone is dropped. When TorchServe does not answer, or serves nothing, the backend is suspended.

    Args:
        backend: Of the gateway; suspended at the beginning.
        loop: The loop that it lives in.
        inference_address: host:port of TorchServe's gRPC inference endpoint.
        management_address: host:port of TorchServe's gRPC management endpoint.
        report: Is told in words what is waited for.
    """

    def __init__(
        self,
        backend: Backend,
        loop: LoopThread,
        inference_address: str,
        management_address: str,
        report: Report,
    ) -> None:
        self._backend = backend
        self._loop = loop
        self._inference_address = inference_address
        self._management_address = management_address
        self._management = Management(management_address)
        self._report = report
        self._served: frozenset[ModelVersion] = frozenset()
        self._names: frozenset[str] = frozenset()
        self._next_versions = 0.0
        self._connected = False
        self._lost_at = time.monotonic()
        self._away_seconds = _AWAY_SECONDS
        self._told = ""
        self._logged: set[str] = set()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="follower", daemon=True)

    @property
    def served(self) -> frozenset[ModelVersion]:
        """The versions that applications can use; may be read from any thread."""
        return self._served

    @property
    def connected(self) -> bool:
        """Whether there is a TorchServe, and the gateway serves what it serves; may be read from any thread."""
        return self._connected

    def start(self) -> None:
        """Begin to follow."""
        self._thread.start()

    def stop(self) -> None:
        """Follow no more. A canary that is out is not waited for."""
        self._stopping.set()
        self._thread.join(_JOIN_SECONDS)
        self._management.close()

    def _follow(self) -> None:
        while not self._stopping.is_set():
            try:
                self._look()
            except Exception as error:
                if self._stopping.is_set():
                    return
                self._complain(error)
            self._stopping.wait(_POLL_SECONDS)

    def _look(self) -> None:
        try:
            names = self._management.names(_CALL_SECONDS)
            if names == self._names and self._connected and time.monotonic() < self._next_versions:
                return
            versions = self._management.versions(names, _CALL_SECONDS)
        except grpc.RpcError as error:
            # Whether one that is only slow is well is for the canaries to say.
            if error.code() is grpc.StatusCode.UNAVAILABLE:
                self._lose("does not answer")
            elif not self._connected and not self._stopping.is_set():
                self._log_once(
                    logging.ERROR,
                    f"What TorchServe serves cannot be asked for: {self._management_address} answers"
                    f" {error.code().name}. Set torchserve.management_port to the port of TorchServe's management.",
                )
            return
        if not versions:
            self._lose("serves no model")
            return
        if self._connected:
            self._take_up_changes(versions)
        else:
            self._connect(versions)
        self._names = names
        self._next_versions = time.monotonic() + _VERSIONS_SECONDS

    def _lose(self, what: str) -> None:
        if self._connected:
            _logger.warning("TorchServe %s: calls are refused until it serves again", what)
            self._connected = False
            self._lost_at = time.monotonic()
            self._loop.run(self._backend.suspend(round(self._away_seconds, 1)))
        waiting = f"Waiting for TorchServe, which {what} at {self._management_address}"
        self._tell(waiting)
        if time.monotonic() - self._lost_at > _LONG_SECONDS:
            self._log_once(logging.INFO, f"{waiting} (torchserve.management_port)")

    def _connect(self, versions: Mapping[ModelVersion, bool]) -> None:
        loading = [version for version, is_ready in versions.items() if not is_ready]
        if loading:
            self._tell(f"TorchServe loads {', '.join(map(str, sorted(loading)))}")
            return
        models = {version: self._canary(version) for version in sorted(versions)}
        for version, model in models.items():
            self._loop.run(self._backend.admit(model, version))
        # What an attempt before this one has admitted was never served.
        for version in set(self._backend.directory.served) - versions.keys():
            self._loop.run(self._backend.drop(version))
        self._served = frozenset(versions)
        try:
            self._loop.run(self._backend.resume(self._inference_address))
        except BaseException:
            self._loop.run(self._backend.suspend(round(self._away_seconds, 1)))
            raise
        self._connected = True
        self._told = ""
        self._logged.clear()
        self._away_seconds = min(max(1.0, time.monotonic() - self._lost_at), _LONGEST_AWAY_SECONDS)
        _logger.info("TorchServe serves %s", ", ".join(map(str, sorted(versions))))

    def _take_up_changes(self, versions: Mapping[ModelVersion, bool]) -> None:
        # First what comes: it may be all that is left.
        for version in sorted(versions.keys() - self._served):
            if versions[version]:
                self._admit(version)
        for version in self._served - versions.keys():
            self._loop.run(self._backend.drop(version))
            self._served -= {version}
            self._backend.count_model_change("unloaded")
            _logger.info("TorchServe has unloaded %s", version)
        if not self._served:
            self._lose("serves none of its models yet")

    def _admit(self, version: ModelVersion) -> None:
        try:
            self._loop.run(self._backend.admit(self._canary(version), version))
        except PathlensError as error:
            # Another one may be well.
            self._complain(error)
            return
        self._served |= {version}
        self._backend.count_model_change("loaded")
        _logger.info("TorchServe has loaded %s, which serves now", version)

    def _canary(self, version: ModelVersion) -> messages.Model:
        return canary(self._inference_address, version)

    def _tell(self, words: str) -> None:
        if words != self._told:
            self._told = words
            self._report(words)

    def _complain(self, error: Exception) -> None:
        """Log what keeps a version from being served."""
        complaint = error.message if isinstance(error, PathlensError) else repr(error)
        trace = None if isinstance(error, PathlensError) else error
        self._log_once(logging.ERROR, f"What TorchServe serves cannot be taken up yet: {complaint}", trace)

    def _log_once(self, level: int, words: str, trace: Exception | None = None) -> None:
        """Log what is found again and again until it is connected."""
        if words not in self._logged:
            self._logged.add(words)
            _logger.log(level, "%s", words, exc_info=trace)
