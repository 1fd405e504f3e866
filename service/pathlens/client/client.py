"""The synchronous client of the explanation service."""

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from types import TracebackType
from typing import Any, Self

import grpc
from tenacity import Retrying

from pathlens.client import calls
from pathlens.client.base import BaseClient
from pathlens.client.calls import Answer, Call, Image, read_image
from pathlens.client.connection import Connection
from pathlens.client.retry import DEFAULT_RETRIES, RetryPolicy
from pathlens.description import ClassPathway, ModelDescription
from pathlens.errors import InvalidRequestError, PathlensError
from pathlens.explanation import ExplanationOptions, ExplanationResult
from pathlens.wire.requests import options_to_message
from pathlens.wire.v1 import explanation_service_pb2 as pb
from pathlens.wire.v1.explanation_service_pb2_grpc import ExplanationServiceStub


class Client(BaseClient):
    """Calls a pathlens gateway; one channel serves all calls and may be shared by threads.

        with Client("localhost:8080") as client:
            result = client.explain(Path("cat.jpg"))

    Every method takes, as keywords, a `timeout` in seconds for this call in place of the client's own, and a
    `request_id` (1 to 128 letters of ASCII, digits, `.`, `_` and `-`) in place of a random one. The id travels as
    `x-request-id`; every error of a call that was sent has in `metadata["request_id"]` the one that the service knows
    it by, to be quoted to whoever runs the service.

    Calls that fail for the moment are repeated within their timeout, as `RetryPolicy` says, except for
    `stream_explain`. Errors of single images of a batch or stream are returned and not repeated.

    Every method raises the errors of `pathlens.errors`, and OSError for a file of a token, or outside of streams for an
    image, that cannot be read.

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

    def __init__(
        self,
        address: str | Connection,
        model: str = "",
        version: str = "",
        timeout: float = 60.0,
        retries: RetryPolicy | None = DEFAULT_RETRIES,
    ) -> None:
        super().__init__(address, model, version, timeout, retries)
        target, options = self._connection.address, self._connection.channel_options()
        self._channel = (
            grpc.insecure_channel(target, options)
            if self._credentials is None
            else grpc.secure_channel(target, self._credentials, options)
        )
        self._stub = ExplanationServiceStub(self._channel)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the channel."""
        self._channel.close()

    def predict(
        self, image: Image, predictions: int = 5, *, timeout: float | None = None, request_id: str | None = None
    ) -> ExplanationResult:
        """Predict the class of one image.

        Args:
            image: The image.
            predictions: How many of the most probable classes to report.
            timeout: As for all calls.
            request_id: As for all calls.
        """
        return self._ask(calls.predict(self._model, read_image(image), predictions), timeout, request_id)

    def explain(
        self,
        image: Image,
        options: ExplanationOptions = ExplanationOptions(),
        *,
        timeout: float | None = None,
        request_id: str | None = None,
    ) -> ExplanationResult:
        """Predict the class of one image and explain the targets that the options name."""
        return self._ask(calls.explain(self._model, read_image(image), options), timeout, request_id)

    def batch_explain(
        self,
        images: Sequence[Image],
        options: ExplanationOptions = ExplanationOptions(),
        *,
        timeout: float | None = None,
        request_id: str | None = None,
    ) -> list[ExplanationResult | PathlensError]:
        """Explain images in one message; each gets its result or the error that concerns it alone, in order."""
        call = calls.batch_explain(self._model, map(read_image, images), options)
        return self._ask(call, timeout, request_id)

    def stream_explain(
        self,
        images: Iterable[Image],
        options: ExplanationOptions = ExplanationOptions(),
        *,
        timeout: float | None = None,
        request_id: str | None = None,
    ) -> Iterator[tuple[int, ExplanationResult | PathlensError]]:
        """Explain a long sequence of images, sending no faster than the service reads.

        A stream that breaks is not repeated, because the images are gone: explain those again whose position has not
        come. An image that cannot be read or sent gets an `InvalidRequestError` for its answer, and the stream goes on.
        If `images` itself raises an error, it is raised here after the answers to the images before it.

        Args:
            images: The images; read by another thread, and only as far as they are sent.
            options: What to explain and how.
            timeout: Seconds for the whole stream; None for any time.
            request_id: As for all calls.

        Yields:
            (position of the image, its result or its error), in the order in which they are ready.
        """
        message = options_to_message(options)
        failures: list[Exception] = []
        unsent: deque[tuple[int, PathlensError]] = deque()

        def requests() -> Iterator[pb.StreamExplainRequest]:
            try:
                for position, image in enumerate(images):
                    try:
                        request = calls.stream_request(position, self._model, read_image(image), message)
                    except (OSError, InvalidRequestError) as failure:
                        unsent.append((position, invocation.named(calls.unsent_error(failure))))
                        continue
                    yield request
            except Exception as failure:
                # gRPC would report it as its own; so the stream just ends here, and what was sent is answered.
                failures.append(failure)

        invocation = self._stream_invocation(timeout, request_id)
        with invocation.errors():
            stream = self._stub.StreamExplain(requests(), **invocation.attempt())
            try:
                for response in stream:
                    while unsent:
                        yield unsent.popleft()
                    yield invocation.stream_answer(response)
            finally:
                # Of a caller who has seen enough.
                stream.cancel()
        yield from unsent
        if failures:
            raise failures[0]

    def get_class_pathway(
        self,
        selector: int | str,
        frequencies: bool = False,
        *,
        timeout: float | None = None,
        request_id: str | None = None,
    ) -> ClassPathway:
        """Return the stored pathway of a class with what it was built from.

        Args:
            selector: Index or label of the class.
            frequencies: Whether to add how often the instance pathways keep each neuron: 32 times as much data as the
                pathway itself.
            timeout: As for all calls.
            request_id: As for all calls.
        """
        return self._ask(calls.get_class_pathway(self._model, selector, frequencies), timeout, request_id)

    def list_models(self, *, timeout: float | None = None, request_id: str | None = None) -> list[ModelDescription]:
        """Describe the served models."""
        return self._ask(calls.list_models(), timeout, request_id)

    def get_model(self, *, timeout: float | None = None, request_id: str | None = None) -> ModelDescription:
        """Describe the model of this client."""
        return self._ask(calls.get_model(self._model), timeout, request_id)

    def _ask(self, call: Call[Answer], timeout: float | None, request_id: str | None) -> Answer:
        invocation = self._invocation(timeout, request_id)
        method = getattr(self._stub, call.method)

        def attempt() -> Any:
            with invocation.errors():
                return method(call.request, **invocation.attempt())

        response = Retrying(**invocation.repetition())(attempt)
        with invocation.errors():
            return invocation.answer(call, response)
