"""What the supervisor and the lifecycle tell those in front of TorchServe."""

from pathlens.gateway import Backend
from pathlens.model_version import ModelVersion
from pathlens.serving.loop_thread import LoopThread
from pathlens.torchserve import TorchServe, TorchServeCollector
from pathlens.wire.v1 import explanation_service_pb2 as messages


class BackendEntrance:
    """The backend of a gateway, or of what stands in its place, for the supervisor's thread and those of the lifecycle.

    Args:
        backend: The backend.
        loop: The loop that it lives in.
        torchserve: What is behind it.
        collector: Counts the restarts.
    """

    def __init__(
        self, backend: Backend, loop: LoopThread, torchserve: TorchServe, collector: TorchServeCollector
    ) -> None:
        self._backend = backend
        self._loop = loop
        self._torchserve = torchserve
        self._collector = collector

    @property
    def unready_seconds(self) -> float:
        """For how long the models have answered nothing."""
        return self._backend.unready_seconds

    def suspend(self, reason: str, retry_after: float) -> None:
        """Refuse calls: there is no TorchServe for a while."""
        self._collector.restarted(reason)
        self._loop.run(self._backend.suspend(retry_after))

    def resume(self) -> None:
        """Take calls again, with the TorchServe that runs now."""
        self._loop.run(self._backend.resume(self._torchserve.inference_address))

    def give_up(self) -> None:
        """Tell that there will be no TorchServe any more."""
        self._loop.run(self._backend.give_up())

    def admit(self, model: messages.Model, version: ModelVersion) -> None:
        """Let applications use a version."""
        self._loop.run(self._backend.admit(model, version))

    def retire(self, version: ModelVersion) -> None:
        """Let no further call use a version, and return when no call does."""
        self._loop.run(self._backend.retire(version))

    def count_model_change(self, result: str) -> None:
        """Count that a version was loaded, refused or unloaded."""
        self._backend.count_model_change(result)
