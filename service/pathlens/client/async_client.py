"""The client of the explanation service for asyncio."""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterable, Iterable, Sequence
from contextlib import aclosing
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import grpc.aio
from tenacity import AsyncRetrying

from pathlens.client import calls
from pathlens.client.base import BaseClient
from pathlens.client.calls import Answer, Call, Image, read_image
from pathlens.client.stream_status import responses
from pathlens.description import ClassPathway, ModelDescription
from pathlens.errors import InvalidRequestError, PathlensError
from pathlens.explanation import ExplanationOptions, ExplanationResult, ImageInput
from pathlens.wire.requests import options_to_message
from pathlens.wire.v1.explanation_service_pb2_grpc import ExplanationServiceStub

if TYPE_CHECKING:
    from pathlens.wire.v1.explanation_service_pb2_grpc import ExplanationServiceAsyncStub


class AsyncClient(BaseClient):
    """Calls a pathlens gateway from asyncio; one channel serves all calls, any number at a time.

        async with AsyncClient("localhost:8080") as client:
            results = await asyncio.gather(*map(client.explain, images))

    As `Client`, method for method, with the same keywords, repetitions and errors. It may be made anywhere; from its
    first call on it belongs to the event loop that makes this call.

    Args:
        address: Host and port of the gateway; or a `Connection`, for TLS, a token, load balancing or larger messages.
        model: Name of the model to ask; empty where only one is served.
        version: Its version; empty for the newest.
        timeout: Seconds after which a call, with all its attempts, fails with `DeadlineExceededError`. A stream may
            take any time unless it is given a timeout of its own.
        retries: How calls are repeated; None for never.

    Raises:
        InvalidRequestError: A setting is out of range.
        OSError: A certificate cannot be read.
    """

    _opened: "tuple[grpc.aio.Channel, ExplanationServiceAsyncStub] | None" = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the channel; calls in progress are cancelled."""
        channel, _ = self._open()
        await channel.close()

    async def predict(
        self, image: Image, predictions: int = 5, *, timeout: float | None = None, request_id: str | None = None
    ) -> ExplanationResult:
        """Predict the class of one image; see `Client.predict`."""
        return await self._ask(calls.predict(self._model, await _read(image), predictions), timeout, request_id)

    async def explain(
        self,
        image: Image,
        options: ExplanationOptions = ExplanationOptions(),
        *,
        timeout: float | None = None,
        request_id: str | None = None,
    ) -> ExplanationResult:
        """Predict the class of one image and explain the targets that the options name; see `Client.explain`."""
        return await self._ask(calls.explain(self._model, await _read(image), options), timeout, request_id)

    async def batch_explain(
        self,
        images: Sequence[Image],
        options: ExplanationOptions = ExplanationOptions(),
        *,
        timeout: float | None = None,
        request_id: str | None = None,
    ) -> list[ExplanationResult | PathlensError]:
        """Explain images in one message; see `Client.batch_explain`."""
        contents = [await _read(image) for image in images]
        return await self._ask(calls.batch_explain(self._model, contents, options), timeout, request_id)

    async def stream_explain(
        self,
        images: Iterable[Image] | AsyncIterable[Image],
        options: ExplanationOptions = ExplanationOptions(),
        *,
        timeout: float | None = None,
        request_id: str | None = None,
    ) -> AsyncGenerator[tuple[int, ExplanationResult | PathlensError], None]:
        """Explain a long sequence of images, sending no faster than the service reads.

        A stream that breaks is not repeated, because the images are gone: explain those again whose position has not
        come. An image that cannot be read or sent gets an `InvalidRequestError` for its answer, and the stream goes on.
        If `images` itself raises an error, it is raised here after the answers to the images before it. Leaving early
        ends the call; `contextlib.aclosing` does so at once.

        Args:
            images: The images; asked for only as far as they are sent. What takes time to make them should be an
                asynchronous iterable, or the event loop waits for it.
            options: What to explain and how.
            timeout: Seconds for the whole stream; None for any time.
            request_id: As for all calls.

        Yields:
            (position of the image, its result or its error), in the order in which they are ready.
        """
        message = options_to_message(options)
        failures: list[Exception] = []
        unsent: deque[tuple[int, PathlensError]] = deque()

        async def write(stream: Any) -> None:
            position = -1
            try:
                async with aclosing(_each(images)) as sources:
                    async for image in sources:
                        position += 1
                        try:
                            request = calls.stream_request(position, self._model, await _read(image), message)
                        except (OSError, InvalidRequestError) as failure:
                            unsent.append((position, invocation.named(calls.unsent_error(failure))))
                            continue
                        await stream.write(request)
            except Exception as failure:
                # If the call is over, its reader knows why. Else it just ends here, and what was sent is answered.
                if not stream.done():
                    failures.append(failure)
            await stream.done_writing()

        invocation = self._stream_invocation(timeout, request_id)
        with invocation.errors():
            _, stub = self._open()
            stream = stub.StreamExplain(**invocation.attempt())
            answers, writing = responses(stream), asyncio.create_task(write(stream))
            try:
                async with aclosing(answers):
                    async for response in answers:
                        while unsent:
                            yield unsent.popleft()
                        yield invocation.stream_answer(response)
            finally:
                # Of a caller who has seen enough.
                stream.cancel()
                writing.cancel()
                await asyncio.gather(writing, return_exceptions=True)
        for answer in unsent:
            yield answer
        if failures:
            raise failures[0]

    async def get_class_pathway(
        self,
        selector: int | str,
        frequencies: bool = False,
        *,
        timeout: float | None = None,
        request_id: str | None = None,
    ) -> ClassPathway:
        """Return the stored pathway of a class; see `Client.get_class_pathway`."""
        return await self._ask(calls.get_class_pathway(self._model, selector, frequencies), timeout, request_id)

    async def list_models(
        self, *, timeout: float | None = None, request_id: str | None = None
    ) -> list[ModelDescription]:
        """Describe the served models."""
        return await self._ask(calls.list_models(), timeout, request_id)

    async def get_model(self, *, timeout: float | None = None, request_id: str | None = None) -> ModelDescription:
        """Describe the model of this client."""
        return await self._ask(calls.get_model(self._model), timeout, request_id)

    async def _ask(self, call: Call[Answer], timeout: float | None, request_id: str | None) -> Answer:
        invocation = self._invocation(timeout, request_id)
        _, stub = self._open()
        method = getattr(stub, call.method)

        async def attempt() -> Any:
            with invocation.errors():
                return await method(call.request, **invocation.attempt())

        response: Any = await AsyncRetrying(**invocation.repetition())(attempt)
        with invocation.errors():
            return invocation.answer(call, response)

    def _open(self) -> "tuple[grpc.aio.Channel, ExplanationServiceAsyncStub]":
        # Not in the constructor: a channel belongs to the event loop that runs when it is opened.
        if self._opened is None:
            target, options = self._connection.address, self._connection.channel_options()
            channel = (
                grpc.aio.insecure_channel(target, options)
                if self._credentials is None
                else grpc.aio.secure_channel(target, self._credentials, options)
            )
            self._opened = channel, ExplanationServiceStub(channel)
        return self._opened


async def _read(image: Image) -> ImageInput:
    # Files are read by threads, so that the event loop does not wait for a disk.
    return await asyncio.to_thread(read_image, image) if isinstance(image, Path) else image


async def _each(images: Iterable[Image] | AsyncIterable[Image]) -> AsyncGenerator[Image, None]:
    if isinstance(images, AsyncIterable):
        async for image in images:
            yield image
    else:
        for image in images:
            yield image
