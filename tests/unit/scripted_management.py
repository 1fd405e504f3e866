"""A gRPC peer that tells, as TorchServe's management does, which versions of models there are."""

import json
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Any, Self

import grpc

from pathlens.wire.internal.v1 import torchserve_pb2

_SERVICE = "org.pytorch.serve.grpc.management.ManagementAPIsService"


class ScriptedManagement:
    """Tells of what it is told to.

    Attributes:
        models: Versions of each model, and whether their workers have loaded them.
        port: Where it listens.
    """

    def __init__(self) -> None:
        self.models: dict[str, dict[str, bool]] = {}

    def __enter__(self) -> Self:
        self._server = grpc.server(ThreadPoolExecutor(2))
        calls: dict[str, tuple[Any, Any]] = {
            "ListModels": (self._list, torchserve_pb2.ListModelsRequest),
            "DescribeModel": (self._describe, torchserve_pb2.DescribeModelRequest),
        }
        handlers = {
            name: grpc.unary_unary_rpc_method_handler(
                answer, request.FromString, torchserve_pb2.ManagementResponse.SerializeToString
            )
            for name, (answer, request) in calls.items()
        }
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(_SERVICE, handlers),))
        self.port = self._server.add_insecure_port("127.0.0.1:0")
        self._server.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.stop(None).wait()

    def _list(self, request: Any, _context: grpc.ServicerContext) -> torchserve_pb2.ManagementResponse:
        # As TorchServe does: none for 0, and 100 at most.
        names = sorted(self.models)[request.next_page_token :][: min(request.limit, 100)]
        return torchserve_pb2.ManagementResponse(msg=json.dumps({"models": [{"modelName": name} for name in names]}))

    def _describe(self, request: Any, context: grpc.ServicerContext) -> torchserve_pb2.ManagementResponse:
        if request.model_name not in self.models:
            context.abort(grpc.StatusCode.NOT_FOUND, "Model not found")
        found = [
            {
                "modelVersion": version,
                "minWorkers": 1,
                "workers": [{"status": "READY" if is_ready else "LOADING"}],
            }
            for version, is_ready in self.models[request.model_name].items()
            if request.model_version in (version, "all")
        ]
        return torchserve_pb2.ManagementResponse(msg=json.dumps(found))
