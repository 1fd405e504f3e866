"""What TorchServe is told while it runs, to load one version of a model and to unload it, and what it tells of them."""

import json
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self, TypeAlias

import grpc

from pathlens.errors import ServerStartError
from pathlens.model_version import ModelVersion
from pathlens.torchserve.stored_archive import StoredArchive
from pathlens.wire.internal.v1.torchserve_pb2 import (
    DescribeModelRequest,
    ListModelsRequest,
    ManagementResponse,
    RegisterModelRequest,
    SetDefaultRequest,
    UnregisterModelRequest,
)

_SERVICE = "/org.pytorch.serve.grpc.management.ManagementAPIsService"
_OPTIONS = (
    # TorchServe is on loopback: a proxy named in the environment has no part in this.
    ("grpc.enable_http_proxy", 0),
    # One that is started again is back within seconds; the default would by then wait for longer between attempts.
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 1000),
)
# It unpacks the archive before it answers.
_REGISTER_SECONDS = 120.0
_UNREGISTER_SECONDS = 60.0
_DEFAULT_SECONDS = 10.0

# TorchServe gives no more models in one answer.
_PAGE = 100
_ALL_VERSIONS = "all"

_Request: TypeAlias = (
    DescribeModelRequest | ListModelsRequest | RegisterModelRequest | SetDefaultRequest | UnregisterModelRequest
)


class Management:
    """A connection to TorchServe's management; a context manager that closes it.

    Args:
        address: TorchServe's gRPC management address.
    """

    def __init__(self, address: str) -> None:
        self._channel = grpc.insecure_channel(address, options=_OPTIONS)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._channel.close()

    def close(self) -> None:
        """Close the connection; calls in progress fail."""
        self._channel.close()

    def names(self, seconds: float) -> frozenset[str]:
        """Ask which models there are.

        Args:
            seconds: How long an answer may take.

        Returns:
            Their names.

        Raises:
            grpc.RpcError: TorchServe does not answer.
        """
        names: set[str] = set()
        while True:
            request = ListModelsRequest(limit=_PAGE, next_page_token=len(names))
            page = json.loads(self._call("ListModels", request, seconds))["models"]
            names.update(model["modelName"] for model in page)
            if len(page) < _PAGE:
                return frozenset(names)

    def versions(self, names: frozenset[str], seconds: float) -> Mapping[ModelVersion, bool]:
        """Ask which versions of models there are.

        Where there is a GPU, TorchServe starts a process for every worker to answer this: ask seldom.

        Args:
            names: Names of the models.
            seconds: How long an answer may take.

        Returns:
            For each version whether all its workers have loaded it.

        Raises:
            grpc.RpcError: TorchServe does not answer, or has no such model any more.
        """
        found = {}
        for name in sorted(names):
            request = DescribeModelRequest(model_name=name, model_version=_ALL_VERSIONS)
            for description in json.loads(self._call("DescribeModel", request, seconds)):
                ready, expected = _workers(description)
                found[ModelVersion(name, description["modelVersion"])] = ready >= expected
        return found

    def workers(self, version: ModelVersion, seconds: float) -> tuple[int, int]:
        """Ask how many workers of a version have loaded it.

        Args:
            version: The version.
            seconds: How long the answer may take.

        Returns:
            How many have, and how many there are to be.

        Raises:
            grpc.RpcError: TorchServe does not know it, or does not answer.
        """
        request = DescribeModelRequest(model_name=version.name, model_version=version.version)
        return _workers(json.loads(self._call("DescribeModel", request, seconds))[0])

    def register(self, archive: StoredArchive, workers: int) -> None:
        """Let TorchServe unpack an archive and start its workers, which load the model after this.

        Args:
            archive: A copy in TorchServe's model store.
            workers: How many worker processes to start.

        Raises:
            ServerStartError: TorchServe refuses it.
        """
        request = RegisterModelRequest(url=archive.copy.name, initial_workers=workers)
        try:
            self._call("RegisterModel", request, _REGISTER_SECONDS)
        except grpc.RpcError as error:
            raise ServerStartError(
                f"TorchServe refuses {archive.version} ({error.code().name}: {error.details()}): make the archive anew"
                " with `pathlens pack`.",
                reason="ARCHIVE_REFUSED",
                metadata={"model": archive.model.name, "archive": archive.model.archive},
            ) from error

    def unregister(self, version: ModelVersion, default: ModelVersion | None) -> None:
        """Let TorchServe end the workers of a version; calls that it has not answered never get an answer.

        Args:
            version: What to unload.
            default: Another version of the model, which becomes TorchServe's default, because TorchServe keeps that
                one while there are others; None if there is no other.

        Raises:
            ServerStartError: TorchServe does not do it.
        """
        try:
            if default is not None:
                self._call(
                    "SetDefault",
                    SetDefaultRequest(model_name=default.name, model_version=default.version),
                    _DEFAULT_SECONDS,
                )
            request = UnregisterModelRequest(model_name=version.name, model_version=version.version)
            self._call("UnregisterModel", request, _UNREGISTER_SECONDS)
        except grpc.RpcError as error:
            raise ServerStartError(
                f"TorchServe does not unload {version} ({error.code().name}: {error.details()}): it keeps its memory"
                " until the service is started again.",
                reason="UNLOAD_FAILED",
                metadata={"model": version.name, "version": version.version},
            ) from error

    def _call(self, name: str, request: _Request, seconds: float) -> str:
        call = self._channel.unary_unary(
            f"{_SERVICE}/{name}",
            request_serializer=type(request).SerializeToString,
            response_deserializer=ManagementResponse.FromString,
        )
        return str(call(request, timeout=seconds).msg)


def _workers(description: Mapping[str, Any]) -> tuple[int, int]:
    statuses = [worker["status"] for worker in description["workers"]]
    return statuses.count("READY"), max(1, description["minWorkers"])
