"""A gRPC server on loopback that answers as it is told and remembers what it was asked.

It stands for the gateway where a test needs answers that a healthy gateway does not give, in an order that it chooses.
The client against the real gateway is tested in tests/service.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import grpc
from google.protobuf.message import Message
from grpc_status import rpc_status

from pathlens.errors import PathlensError
from pathlens.wire.status import status_from_error
from pathlens.wire.v1 import explanation_service_pb2 as pb
from pathlens.wire.v1.explanation_service_pb2_grpc import (
    ExplanationServiceServicer,
    add_ExplanationServiceServicer_to_server,
)

Response = TypeVar("Response", bound=Message)
Turn = PathlensError | grpc.StatusCode | tuple[grpc.StatusCode, str] | threading.Event | None
"""How one call is answered: with an error of the service, with a bare status as proxies send it, or with certain words
in it, not before an event, or well."""


@dataclass(frozen=True)
class Seen:
    """A call as it arrived."""

    method: str
    request: Message | None
    metadata: dict[str, str]
    time_remaining: float | None
    moment: float


class ScriptedService(ExplanationServiceServicer):
    """Answers each unary call with the next turn of its script, and well once the script is over.

    Attributes:
        script: Turns to come.
        seen: Calls that came.
        stream: Answers a stream; by default every item is answered as it comes.
        streamed: Items of streams that were read.
        ended: Is set when a stream is over, for whatever reason.
        address: host:port, once it is served.
    """

    def __init__(self, *script: Turn) -> None:
        self.script = deque(script)
        self.seen: list[Seen] = []
        self.stream: Callable[[Iterator[pb.StreamExplainRequest]], Iterator[pb.StreamExplainResponse]] = echoed
        self.streamed: list[pb.StreamExplainRequest] = []
        self.ended = threading.Event()
        self.address = ""

    def Predict(self, request: pb.PredictRequest, context: Any) -> pb.PredictResponse:  # noqa: N802
        return self._turn("Predict", request, context, pb.PredictResponse(predictions=[prediction(request.image)]))

    def Explain(self, request: pb.ExplainRequest, context: Any) -> pb.ExplainResponse:  # noqa: N802
        return self._turn("Explain", request, context, pb.ExplainResponse(predictions=[prediction(request.image)]))

    def BatchExplain(self, request: pb.BatchExplainRequest, context: Any) -> pb.BatchExplainResponse:  # noqa: N802
        results = [result(item.image) for item in request.items]
        return self._turn("BatchExplain", request, context, pb.BatchExplainResponse(results=results))

    def StreamExplain(  # noqa: N802
        self, request_iterator: Any, context: Any
    ) -> Iterator[pb.StreamExplainResponse]:
        self._see("StreamExplain", None, context)
        context.add_callback(self.ended.set)
        if self.script:
            self._play(self.script.popleft(), context)

        def read() -> Iterator[pb.StreamExplainRequest]:
            for request in request_iterator:
                self.streamed.append(request)
                yield request

        yield from self.stream(read())

    def GetClassPathway(  # noqa: N802
        self, request: pb.GetClassPathwayRequest, context: Any
    ) -> pb.GetClassPathwayResponse:
        stored = pb.ClassPathway(
            class_index=request.class_index,
            label=request.label,
            granularity=pb.GRANULARITY_CHANNEL,
            ablation=pb.ABLATION_ZERO,
            statistics=pb.ClassPathwayStatistics(
                source=pb.PATHWAY_SOURCE_NEURON_MCT, selection=pb.CLASS_PATHWAY_SELECTION_FREQUENCY
            ),
        )
        return self._turn("GetClassPathway", request, context, pb.GetClassPathwayResponse(class_pathway=stored))

    def ListModels(self, request: pb.ListModelsRequest, context: Any) -> pb.ListModelsResponse:  # noqa: N802
        return self._turn("ListModels", request, context, pb.ListModelsResponse(models=[model("digits")]))

    def GetModel(self, request: pb.GetModelRequest, context: Any) -> pb.GetModelResponse:  # noqa: N802
        return self._turn("GetModel", request, context, pb.GetModelResponse(model=model(request.model.name)))

    def _turn(self, method: str, request: Message, context: Any, response: Response) -> Response:
        self._see(method, request, context)
        self._play(self.script.popleft() if self.script else None, context)
        return response

    def _see(self, method: str, request: Message | None, context: Any) -> None:
        metadata = dict(context.invocation_metadata())
        self.seen.append(Seen(method, request, metadata, context.time_remaining(), time.monotonic()))

    def _play(self, turn: Turn, context: Any) -> None:
        if isinstance(turn, PathlensError):
            context.abort_with_status(rpc_status.to_status(status_from_error(turn)))
        if isinstance(turn, grpc.StatusCode):
            context.abort(turn, "said by the transport")
        if isinstance(turn, tuple):
            context.abort(*turn)
        if isinstance(turn, threading.Event):
            # Whoever waits for the answer may leave; a server stops only after its last call.
            while context.is_active() and not turn.wait(0.05):
                pass


def prediction(image: pb.Image) -> pb.Prediction:
    """Answer with the bytes of the image as the label."""
    return pb.Prediction(label=image.encoded[:40].decode(), probability=1.0)


def result(image: pb.Image) -> pb.ExplainResult:
    return pb.ExplainResult(response=pb.ExplainResponse(predictions=[prediction(image)]))


def model(name: str) -> pb.Model:
    return pb.Model(
        model=pb.ServedModel(name=name, version="1"),
        input_shape=[3, 8, 8],
        granularity=pb.GRANULARITY_CHANNEL,
        ablation=pb.ABLATION_ZERO,
        sources=[pb.PATHWAY_SOURCE_TRANSFERRED],
    )


def answer(request: pb.StreamExplainRequest) -> pb.StreamExplainResponse:
    return pb.StreamExplainResponse(id=request.id, result=result(request.request.image))


def echoed(requests: Iterator[pb.StreamExplainRequest]) -> Iterator[pb.StreamExplainResponse]:
    return map(answer, requests)


@contextmanager
def serving(
    service: ScriptedService,
    credentials: grpc.ServerCredentials | None = None,
    port: int = 0,
    threads: int = 8,
    options: Sequence[tuple[str, int]] = (),
) -> Iterator[ScriptedService]:
    """Serve on loopback."""
    with ThreadPoolExecutor(threads) as pool:
        server = grpc.server(pool, options=[("grpc.so_reuseport", 0), *options])
        add_ExplanationServiceServicer_to_server(service, server)
        place = f"127.0.0.1:{port}"
        bound = server.add_insecure_port(place) if credentials is None else server.add_secure_port(place, credentials)
        server.start()
        service.address = f"127.0.0.1:{bound}"
        try:
            yield service
        finally:
            server.stop(None).wait()
