"""A gRPC peer that speaks TorchServe's `Predictions` and fails on demand.

It creates the faults that a real TorchServe cannot be asked for: answers that stay out for as long as a test wants,
answers of any size, and each of its error texts. The gateway against the real TorchServe is tested in tests/service.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any, Self

import grpc
import grpc.aio
from google.protobuf import duration_pb2

from pathlens.errors import InvalidRequestError
from pathlens.gateway.metrics import Metrics
from pathlens.gateway.server import Gateway
from pathlens.gateway.settings import GatewaySettings
from pathlens.gateway.upstream import Upstream
from pathlens.model_version import ModelVersion
from pathlens.observability import TracingSettings
from pathlens.wire.internal.v1 import torchserve_pb2, worker_pb2
from pathlens.wire.status import OK, response_too_large, status_from_error
from pathlens.wire.v1 import explanation_service_pb2 as messages

LABELS = ("zero", "one", "two", "three")
SETTINGS = GatewaySettings(port=0, metrics_port=0, upstream_timeout_seconds=20.0)
UNDECODABLE = b"not an image"
GREY = b"\x80" * 4
"""A canary's image of the size of the input."""


class FaultInjector:
    """Answers every call with the image's own bytes as the predicted label, unless it is told to fail.

    Attributes:
        open: While cleared, predictions and explanations are held back.
        held: Images whose answer is held back until the event is set.
        failure: Code and text that every call fails with.
        failing: Names of models whose calls all fail.
        misnamed: Names of models that call themselves something else.
        describing: While cleared, descriptions of models and answers to canaries are held back.
        described: Descriptions of models that were asked for.
        canaries: Predictions of a grey image that were asked for.
        broken: Whether all predictions and explanations of images end with INTERNAL, as after a sticky error of CUDA.
        padding: Bytes of heatmap in every explanation.
        paddings: The same for single images.
        keeps_limit: Whether explanations without room in `max_response_bytes` are refused, as our handler does.
        prediction: Raw bytes to answer with in place of a WorkerResponse.
        probability: Of every prediction.
        requests: What came in, descriptions of models and canaries left out.
        in_progress: Requests that came in and are not answered.
        peak: The most there ever were in progress.
        cancelled: Requests that were taken back.
        finished: Requests that were answered.
    """

    def __init__(self) -> None:
        self.open = asyncio.Event()
        self.open.set()
        self.held: dict[bytes, asyncio.Event] = {}
        self.failure: tuple[grpc.StatusCode, str] | None = None
        self.failing: set[str] = set()
        self.misnamed: set[str] = set()
        self.describing = asyncio.Event()
        self.describing.set()
        self.described = 0
        self.canaries: list[worker_pb2.WorkerCall] = []
        self.broken = False
        self.padding = 0
        self.paddings: dict[bytes, int] = {}
        self.keeps_limit = False
        self.prediction: bytes | None = None
        self.probability = 0.75
        self.handler_seconds = 0.0
        self.model_name_prefix = ""
        self.requests: list[tuple[str, str, worker_pb2.WorkerRequest]] = []
        self.in_progress = 0
        self.peak = 0
        self.cancelled = 0
        self.finished = 0
        self.address = ""

    async def __aenter__(self) -> Self:
        self._server = grpc.aio.server(options=[("grpc.max_receive_message_length", -1)])
        handler = grpc.unary_unary_rpc_method_handler(
            self._predictions,
            torchserve_pb2.PredictionsRequest.FromString,
            torchserve_pb2.PredictionResponse.SerializeToString,
        )
        service = "org.pytorch.serve.grpc.inference.InferenceAPIsService"
        self._server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler(service, {"Predictions": handler}),)
        )
        self.address = f"127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"
        await self._server.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._server.stop(None)

    async def until(self, in_progress: int) -> None:
        """Wait for a number of requests in progress."""
        async with asyncio.timeout(5):
            while self.in_progress != in_progress:
                await asyncio.sleep(0.005)

    async def _predictions(
        self, request: torchserve_pb2.PredictionsRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> torchserve_pb2.PredictionResponse:
        worker_request = worker_pb2.WorkerRequest.FromString(request.input["pathlens"])
        if self.failure is not None:
            await context.abort(*self.failure)
        if request.model_name in self.failing:
            await context.abort(grpc.StatusCode.INTERNAL, "Worker died.")
        if worker_request.calls[0].HasField("get_model"):
            self.described += 1
            await self.describing.wait()
            return self._response(request, worker_request)
        if worker_request.calls[0].predict.image.tensor.data == GREY:
            self.canaries.append(worker_request.calls[0])
            await self.describing.wait()
            return self._response(request, worker_request)
        self.requests.append((request.model_name, request.model_version, worker_request))
        self.in_progress += 1
        self.peak = max(self.peak, self.in_progress)
        try:
            await self.open.wait()
            for call in worker_request.calls:
                if call.explain.image.encoded in self.held:
                    await self.held[call.explain.image.encoded].wait()
            self.finished += 1
            return self._response(request, worker_request)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            self.in_progress -= 1

    def _response(
        self, request: torchserve_pb2.PredictionsRequest, worker_request: worker_pb2.WorkerRequest
    ) -> torchserve_pb2.PredictionResponse:
        if self.prediction is not None:
            return torchserve_pb2.PredictionResponse(prediction=self.prediction)
        handler_time = duration_pb2.Duration()
        handler_time.FromNanoseconds(round(self.handler_seconds * 1e9))
        # As TorchServe does, whose default is the first version.
        version = ModelVersion(request.model_name, request.model_version or "1.0")
        response = worker_pb2.WorkerResponse(
            replies=[self._reply(version, call) for call in worker_request.calls], handler_time=handler_time
        )
        response.handler_start.GetCurrentTime()
        room = worker_request.max_response_bytes
        for reply in response.replies if self.keeps_limit else ():
            if (size := reply.ByteSize()) > room:
                refusal = response_too_large(size, room, "ask for less")
                reply.CopyFrom(worker_pb2.WorkerReply(status=status_from_error(refusal)))
            else:
                room -= size
        return torchserve_pb2.PredictionResponse(prediction=response.SerializeToString())

    def _reply(self, version: ModelVersion, call: worker_pb2.WorkerCall) -> worker_pb2.WorkerReply:
        prefix = "other " if version.name in self.misnamed else self.model_name_prefix
        served = messages.ServedModel(name=prefix + version.name, version=version.version)
        if (
            self.broken
            and call.explain.image.encoded != UNDECODABLE
            and call.WhichOneof("call") in ("predict", "explain")
        ):
            return worker_pb2.WorkerReply(status=status_from_error(RuntimeError("CUDA error: device-side assert")))
        timings = messages.StageTimings(predict=duration_pb2.Duration(nanos=2_000_000))
        match call.WhichOneof("call"):
            case "get_model":
                model = messages.Model(model=served, labels=LABELS, input_shape=[1, 2, 2])
                return worker_pb2.WorkerReply(status=OK, get_model=messages.GetModelResponse(model=model))
            case "get_class_pathway":
                wanted = call.get_class_pathway
                frequencies = [messages.TapFrequency(tap="relu#1")] if wanted.include_frequencies else []
                pathway = messages.ClassPathway(class_index=wanted.class_index, frequencies=frequencies)
                return worker_pb2.WorkerReply(
                    status=OK, get_class_pathway=messages.GetClassPathwayResponse(class_pathway=pathway, model=served)
                )
            case "predict":
                return worker_pb2.WorkerReply(
                    status=OK,
                    predict=messages.PredictResponse(
                        predictions=[self._prediction(call.predict.image)], model=served, timings=timings
                    ),
                )
        if call.explain.image.encoded == UNDECODABLE:
            error = InvalidRequestError("This is not an image.", reason="IMAGE_UNDECODABLE", field="image")
            return worker_pb2.WorkerReply(status=status_from_error(error))
        explanation = messages.Explanation(
            source=messages.PATHWAY_SOURCE_TRANSFERRED,
            sparsity=0.9,
            class_pathway_iou=0.5,
            faithfulness=messages.Faithfulness(confidence_drop=0.25),
            heatmap_png=bytes(self.paddings.get(call.explain.image.encoded, self.padding)),
        )
        response = messages.ExplainResponse(
            predictions=[self._prediction(call.explain.image)],
            explanations=[explanation],
            model=served,
            timings=timings,
        )
        return worker_pb2.WorkerReply(status=OK, explain=response)

    def _prediction(self, image: messages.Image) -> messages.Prediction:
        label = image.encoded.decode(errors="replace")[:100]
        return messages.Prediction(label=label, probability=self.probability)


@asynccontextmanager
async def running_gateway(
    injector: FaultInjector,
    models: tuple[str, ...] = ("digits",),
    tracing: TracingSettings = TracingSettings(),
    **limits: Any,
) -> AsyncIterator[tuple[Gateway, grpc.aio.Channel]]:
    """Run a gateway in front of the injector, with a channel to it."""
    served = [ModelVersion(name, "1.0") for name in models]
    gateway = Gateway(replace(SETTINGS, **limits), injector.address, served, tracing=tracing)
    await gateway.start()
    try:
        async with grpc.aio.insecure_channel(
            gateway.address, options=[("grpc.max_receive_message_length", -1)]
        ) as channel:
            yield gateway, channel
    finally:
        injector.open.set()
        injector.describing.set()
        for event in injector.held.values():
            event.set()
        await gateway.stop(5.0)


@asynccontextmanager
async def running_upstream(injector: FaultInjector, **limits: Any) -> AsyncIterator[tuple[Upstream, Metrics]]:
    """Connect an Upstream to the injector."""
    metrics = Metrics()
    settings = replace(SETTINGS, **limits)
    metrics.serve(ModelVersion("digits", "1.0"), settings.requests_in_flight())
    upstream = Upstream(injector.address, settings, metrics)
    try:
        yield upstream, metrics
    finally:
        injector.open.set()
        injector.describing.set()
        await upstream.drain(5.0)
        await upstream.close()


async def until(condition: Callable[[], bool]) -> None:
    """Wait until something is so."""
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0.005)


async def until_queued(upstream: Upstream, kind: str, count: int) -> None:
    """Wait until so many calls of a kind wait for room."""
    registry = upstream._metrics.registry
    await until(lambda: registry.get_sample_value("pathlens_queued", {"kind": kind}) == count)


async def begun_stop(gateway: Gateway, seconds: float) -> asyncio.Task[None]:
    """Begin to stop a gateway, and return when it refuses calls."""
    interceptor = gateway._running.interceptor
    stopping = asyncio.create_task(gateway.stop(seconds))
    await until(lambda: interceptor._refusing)
    return stopping


def description(name: str = "digits", version: str = "1.0") -> messages.Model:
    """Return what the injector's model of this name and version says about itself."""
    served = messages.ServedModel(name=name, version=version)
    return messages.Model(model=served, labels=LABELS, input_shape=[1, 2, 2])


def predict_call(encoded: bytes = b"image") -> worker_pb2.WorkerCall:
    """Ask for a prediction."""
    return worker_pb2.WorkerCall(predict=messages.PredictRequest(image=messages.Image(encoded=encoded)))
