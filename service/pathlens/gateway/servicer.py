"""The seven calls of ExplanationService."""

import asyncio
import itertools
import logging
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import aclosing, contextmanager
from typing import Any, ParamSpec

import grpc.aio
from google.protobuf.message import DecodeError
from google.rpc import status_pb2

from pathlens.errors import InternalError, InvalidRequestError, PathlensError
from pathlens.gateway import batch, validation
from pathlens.gateway.bulk_calls import BulkCalls
from pathlens.gateway.call import current_call, stream_item
from pathlens.gateway.metrics import Metrics
from pathlens.gateway.models import ModelDirectory, no_models
from pathlens.gateway.quoting import shortened
from pathlens.gateway.settings import GatewaySettings
from pathlens.gateway.stream import answered
from pathlens.gateway.upstream import Upstream
from pathlens.gateway.upstream_errors import response_malformed
from pathlens.model_version import ModelVersion
from pathlens.wire.internal.v1 import worker_pb2
from pathlens.wire.status import OK, error_from_status, response_too_large, status_from_error
from pathlens.wire.v1 import explanation_service_pb2 as messages
from pathlens.wire.v1 import explanation_service_pb2_grpc

Context = grpc.aio.ServicerContext[Any, Any]
Parameters = ParamSpec("Parameters")

_logger = logging.getLogger(__name__)


class ExplanationServicer(explanation_service_pb2_grpc.ExplanationServiceServicer):
    """Answers applications with what the handlers compute.

    Every call raises `PathlensError`; the interceptor turns it into the status that the caller sees.

    Args:
        settings: Limits.
        upstream: The way to the handlers.
        models: What is served.
        metrics: Where stages and pathways are observed.
    """

    def __init__(self, settings: GatewaySettings, upstream: Upstream, models: ModelDirectory, metrics: Metrics) -> None:
        self._settings = settings
        self._upstream = upstream
        self._models = models
        self._metrics = metrics
        self._bulk_calls = BulkCalls(settings, metrics)

    async def Predict(self, request: messages.PredictRequest, context: Context) -> messages.PredictResponse:  # noqa: N802
        """Predict the class of one image."""
        with self._use(request.model) as model:
            pixels = validation.check_image(request.image, self._settings)
            call = worker_pb2.WorkerCall(predict=request)
            reply = await self._ask_one(model, call, context.time_remaining(), pixels=pixels)
        return reply.predict

    async def Explain(self, request: messages.ExplainRequest, context: Context) -> messages.ExplainResponse:  # noqa: N802
        """Predict the class of one image and explain each requested target."""
        answer = await self._explain(request, context.time_remaining(), bulk=False)
        if (call := current_call()) is not None:
            call.explains(answer)
        return answer

    async def BatchExplain(  # noqa: N802
        self, request: messages.BatchExplainRequest, context: Context
    ) -> messages.BatchExplainResponse:
        """Explain many images, as many together as a chunk holds; every item has its own status."""
        # All items by one version, although a newer one may come meanwhile.
        with self._use(request.model) as model:
            return await self._explain_batch(request, model, context)

    async def StreamExplain(  # noqa: N802
        self, request_iterator: AsyncIterator[messages.StreamExplainRequest], context: Context
    ) -> AsyncIterator[messages.StreamExplainResponse]:
        """Explain images as they come, a window of them at a time, each result when it is ready."""
        numbers = itertools.count(1)
        with self._bulk_calls.stream() as stream:

            async def answer(read: tuple[messages.StreamExplainRequest, int]) -> messages.StreamExplainResponse:
                item, size = read
                with stream_item(next(numbers)), stream.answering(size):
                    return await self._explain_item(item, context.time_remaining())

            async with (
                aclosing(stream.items(request_iterator)) as items,
                aclosing(answered(items, answer, self._settings.stream_window)) as responses,
            ):
                async for response in responses:
                    yield response

    async def GetClassPathway(  # noqa: N802
        self, request: messages.GetClassPathwayRequest, context: Context
    ) -> messages.GetClassPathwayResponse:
        """Return the stored pathway of a class."""
        with self._use(request.model) as model:
            validation.check_class_pathway(request, model)
            call = worker_pb2.WorkerCall(get_class_pathway=request)
            reply = await self._ask_one(model, call, context.time_remaining())
        return reply.get_class_pathway

    async def ListModels(  # noqa: N802
        self,
        request: messages.ListModelsRequest,  # noqa: ARG002
        context: Context,  # noqa: ARG002
    ) -> messages.ListModelsResponse:
        """List the models that are served, the newest version of each first."""
        if not self._models.served:
            # An empty list would tell that there will be none.
            raise no_models()
        return messages.ListModelsResponse(models=self._models.models)

    async def GetModel(  # noqa: N802
        self,
        request: messages.GetModelRequest,
        context: Context,  # noqa: ARG002
    ) -> messages.GetModelResponse:
        """Describe one model."""
        with self._use(request.model) as model:
            return messages.GetModelResponse(model=model)

    @contextmanager
    def _use(self, reference: messages.ModelReference) -> Iterator[messages.Model]:
        with self._models.use(reference) as model:
            if (call := current_call()) is not None:
                call.asks(model)
            yield model

    async def _explain_batch(
        self, request: messages.BatchExplainRequest, model: messages.Model, context: Context
    ) -> messages.BatchExplainResponse:
        limit = self._settings.max_batch_items
        if len(request.items) > limit:
            raise InvalidRequestError(
                f"The batch has {len(request.items)} items: send at most {limit}, or use StreamExplain.",
                reason="BATCH_TOO_LARGE",
                field="items",
                metadata={"items": len(request.items), "limit": limit},
            )
        # Admitted first: also what is refused has to be looked at.
        with self._bulk_calls.batch(request.ByteSize()):
            return await self._explain_items(request, model, context)

    async def _explain_items(
        self, request: messages.BatchExplainRequest, model: messages.Model, context: Context
    ) -> messages.BatchExplainResponse:
        results = await self._refused_items(request, model)
        # Items take the options of the batch with them.
        shared = request.options.ByteSize()
        sizes = [(i, item.ByteSize() + shared) for i, item in enumerate(request.items) if i not in results]

        async def compute(chunk: Sequence[int], max_bytes: int) -> list[messages.ExplainResult]:
            calls = [worker_pb2.WorkerCall(explain=_item_request(request, i)) for i in chunk]
            return await self._explain_chunk(model, calls, context.time_remaining(), max_bytes)

        chunks = list(batch.chunks(sizes, self._settings.batch_chunk, self._settings.max_chunk_bytes))
        room = batch.Room(self._settings.max_message_bytes, self._settings.stream_window, len(chunks))
        results |= await batch.computed(chunks, compute, room)
        return batch.fitted([results[i] for i in range(len(request.items))], self._settings.max_message_bytes)

    async def _explain(
        self, request: messages.ExplainRequest, remaining: float | None, *, bulk: bool
    ) -> messages.ExplainResponse:
        with self._use(request.model) as model:
            pixels = validation.check_explain(request, model, self._settings)
            call = worker_pb2.WorkerCall(explain=request)
            reply = await self._ask_one(model, call, remaining, bulk=bulk, pixels=pixels)
        return reply.explain

    async def _explain_item(
        self, item: messages.StreamExplainRequest, remaining: float | None
    ) -> messages.StreamExplainResponse:
        try:
            validation.check_stream_id(item)
        except InvalidRequestError as error:
            return _stream_response(shortened(item.id), messages.ExplainResult(status=status_from_error(error)))
        try:
            explained = await self._explain(item.request, remaining, bulk=True)
        except Exception as error:
            return _stream_response(item.id, messages.ExplainResult(status=_item_status(error)))
        response = _stream_response(item.id, messages.ExplainResult(status=OK, response=explained))
        size, limit = response.ByteSize(), self._settings.max_message_bytes
        if size <= limit:
            return response
        refusal = status_from_error(response_too_large(size, limit, "ask for fewer outputs or targets"))
        return _stream_response(item.id, messages.ExplainResult(status=refusal))

    async def _explain_chunk(
        self, model: messages.Model, calls: Sequence[worker_pb2.WorkerCall], remaining: float | None, max_bytes: int
    ) -> list[messages.ExplainResult]:
        try:
            replies = await self._ask(model, calls, remaining, bulk=True, max_response_bytes=max_bytes)
        except Exception as error:
            return [messages.ExplainResult(status=_item_status(error))] * len(calls)
        return [
            messages.ExplainResult(status=reply.status, response=reply.explain if reply.HasField("explain") else None)
            for reply in replies
        ]

    async def _refused_items(
        self, request: messages.BatchExplainRequest, model: messages.Model
    ) -> dict[int, messages.ExplainResult]:
        # The options of the batch are checked once and not once per item that takes them over.
        shared_failure = _failure(validation.check_options, request.options, model)
        refused = {}
        for position, item in enumerate(request.items):
            # Headers of many parts take their time, and others have to be answered meanwhile.
            await asyncio.sleep(0)
            failure = _failure(validation.check_image, item.image, self._settings)
            if failure is None and item.HasField("options"):
                failure = _failure(validation.check_options, item.options, model)
            elif failure is None:
                failure = shared_failure
            if failure is not None:
                refused[position] = messages.ExplainResult(status=status_from_error(failure))
        return refused

    async def _ask_one(
        self,
        model: messages.Model,
        call: worker_pb2.WorkerCall,
        remaining: float | None,
        *,
        bulk: bool = False,
        pixels: int | None = None,
    ) -> worker_pb2.WorkerReply:
        (reply,) = await self._ask(model, [call], remaining, bulk=bulk, pixels=pixels)
        if reply.status.code != OK.code:
            raise error_from_status(reply.status)
        return reply

    async def _ask(
        self,
        model: messages.Model,
        calls: Sequence[worker_pb2.WorkerCall],
        remaining: float | None,
        *,
        bulk: bool,
        max_response_bytes: int | None = None,
        pixels: int | None = None,
    ) -> Sequence[worker_pb2.WorkerReply]:
        name, version = model.model.name, model.model.version
        answer = await self._upstream.ask(
            name, version, calls, remaining, bulk=bulk, max_response_bytes=max_response_bytes, pixels=pixels
        )
        for call, reply in zip(calls, answer.replies, strict=True):
            kind = call.WhichOneof("call")
            if reply.status.code == OK.code and reply.WhichOneof("reply") != kind:
                raise InternalError(
                    f"The handler of model {name!r} answered another call than {kind}; its log has the details.",
                    metadata={"model": name, "call": kind},
                )
            if kind in ("predict", "explain") and reply.HasField(kind):
                getattr(reply, kind).timings.queue.FromNanoseconds(round(answer.queue_seconds * 1e9))
        try:
            # Every status is read here, so that nobody after this has to expect one that cannot be.
            for reply in answer.replies:
                if reply.status.code != OK.code:
                    error_from_status(reply.status)
            self._metrics.answer_received(ModelVersion(name, version), answer)
        except (ValueError, DecodeError) as error:
            raise response_malformed(name) from error
        return answer.replies


def _item_request(request: messages.BatchExplainRequest, position: int) -> messages.ExplainRequest:
    item = request.items[position]
    options = item.options if item.HasField("options") else request.options
    return messages.ExplainRequest(model=request.model, image=item.image, options=options)


def _stream_response(item_id: str, result: messages.ExplainResult) -> messages.StreamExplainResponse:
    return messages.StreamExplainResponse(id=item_id, result=result)


def _failure(
    check: Callable[Parameters, object], *args: Parameters.args, **kwargs: Parameters.kwargs
) -> PathlensError | None:
    try:
        check(*args, **kwargs)
    except PathlensError as error:
        return error
    return None


def _item_status(error: Exception) -> status_pb2.Status:
    if not isinstance(error, PathlensError):
        _logger.error("An image could not be explained", exc_info=error)
    return status_from_error(error)
