"""Telling whether TorchServe serves: its own Ping says healthy while nothing works, so the models are asked."""

import json
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

import grpc

from pathlens.errors import ServerStartError
from pathlens.torchserve.archive import ArchivedModel
from pathlens.torchserve.journal import Journal
from pathlens.wire.internal.v1.torchserve_pb2 import DescribeModelRequest, ManagementResponse

_DESCRIBE_MODEL = "/org.pytorch.serve.grpc.management.ManagementAPIsService/DescribeModel"
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
    """Waits until models have loaded and answer; a context manager that holds a connection to TorchServe.

    Args:
        address: TorchServe's gRPC management address.
        journal: TorchServe's log.
        is_running: Tells whether the JVM is alive.
        timeout: Seconds for everything that is waited for.
    """

    def __init__(self, address: str, journal: Journal, is_running: Callable[[], bool], timeout: float) -> None:
        self._journal = journal
        self._is_running = is_running
        self._timeout = timeout
        self._deadline = time.monotonic() + timeout
        # What a worker suffered before now has been seen by an earlier wait, or is seen again within seconds.
        self._begin = journal.size()
        # TorchServe is on loopback: a proxy named in the environment has no part in this.
        self._channel = grpc.insecure_channel(address, options=[("grpc.enable_http_proxy", 0)])
        self._describe = self._channel.unary_unary(
            _DESCRIBE_MODEL,
            request_serializer=DescribeModelRequest.SerializeToString,
            response_deserializer=ManagementResponse.FromString,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._channel.close()

    def wait_for(self, model: ArchivedModel, canary: Callable[[str], None]) -> None:
        """Wait until all workers of a model have loaded it and a canary prediction succeeds.

        Args:
            model: The model.
            canary: Makes one prediction with the model of that name; raises when it fails.

        Raises:
            ServerStartError: The JVM ended, the model cannot be loaded, the canary keeps failing, or the time is up.
        """
        # TorchServe reads the archives before it listens, so whatever it refuses is in the log by now.
        if rejection := self._journal.rejection(model):
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
                canary(model.name)
            except Exception as error:
                canary_failures += 1
                state = f"has loaded, but a prediction failed: {error}"
                if canary_failures == _CANARY_FAILURES:
                    raise self._failure(model, state, "CANARY_FAILED", self._journal.last_words(model)) from error
                time.sleep(_CANARY_PAUSE_SECONDS)
            else:
                return

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
        request = DescribeModelRequest(model_name=model.name, model_version=model.version)
        seconds = min(_CALL_SECONDS, max(self._deadline - time.monotonic(), _POLL_SECONDS))
        try:
            reply = self._describe(request, timeout=seconds)
        except grpc.RpcError as error:
            return False, f"cannot be described by TorchServe ({error.code().name}: {error.details()})"
        description = json.loads(reply.msg)[0]
        statuses = [worker["status"] for worker in description["workers"]]
        ready = statuses.count("READY")
        expected = max(1, description["minWorkers"])
        return ready >= expected, f"has {ready} of {expected} workers ready"

    @staticmethod
    def _failure(model: ArchivedModel, what: str, reason: str, quoted: str) -> ServerStartError:
        return ServerStartError(
            f"The model {model.name} {what}. TorchServe's log says:\n{quoted}",
            reason=reason,
            metadata={"model": model.name, "archive": model.archive},
        )
