"""The synchronous client of the explanation service."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

import grpc
from google.rpc import status_pb2
from grpc_status import rpc_status

from pathlens.description import ClassPathway, ModelDescription
from pathlens.errors import InvalidRequestError, PathlensError, UnavailableError
from pathlens.explanation import ExplanationOptions, ExplanationResult, ImageInput, ModelReference
from pathlens.wire.models import class_pathway_from_message, model_from_message
from pathlens.wire.requests import image_to_message, model_to_message, options_to_message
from pathlens.wire.responses import result_from_message
from pathlens.wire.status import error_from_status
from pathlens.wire.v1 import explanation_service_pb2 as pb
from pathlens.wire.v1.explanation_service_pb2_grpc import ExplanationServiceStub

Image = ImageInput | Path
"""As `pathlens.explanation.ImageInput`, or the path of an image file."""

MEBIBYTE = 2**20


class Client:
    """Calls a pathlens gateway; one channel serves all calls and may be shared by threads.

        with Client("localhost:8080") as client:
            result = client.explain(Path("cat.jpg"))

    Args:
        address: Host and port of the gateway.
        model: Name of the model to ask; empty where only one is served.
        version: Its version; empty for the newest.
        timeout: Seconds after which a call fails with `DeadlineExceededError`. A stream may take any time.
        max_message_bytes: Largest message in either direction.
        credentials: Of the channel; None for plain text.

    Every method raises the errors of `pathlens.errors`, and OSError for an image file that cannot be read.
    """

    def __init__(
        self,
        address: str,
        model: str = "",
        version: str = "",
        timeout: float = 60.0,
        max_message_bytes: int = 64 * MEBIBYTE,
        credentials: grpc.ChannelCredentials | None = None,
    ) -> None:
        options = [
            ("grpc.max_send_message_length", max_message_bytes),
            ("grpc.max_receive_message_length", max_message_bytes),
            # A proxy of the environment has no way to our own machine.
            ("grpc.enable_http_proxy", 0 if _is_loopback(address) else 1),
        ]
        self._channel = (
            grpc.insecure_channel(address, options)
            if credentials is None
            else grpc.secure_channel(address, credentials, options)
        )
        self._stub = ExplanationServiceStub(self._channel)
        self._model = model_to_message(ModelReference(model, version))
        self._timeout = timeout
        self._address = address

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the channel."""
        self._channel.close()

    def predict(self, image: Image, predictions: int = 5) -> ExplanationResult:
        """Predict the class of one image.

        Args:
            image: The image.
            predictions: How many of the most probable classes to report.
        """
        if not 0 <= predictions < 2**32:
            raise InvalidRequestError(
                f"predictions is {predictions}; ask for at least 0.", reason="OPTION_INVALID", field="prediction_count"
            )
        request = pb.PredictRequest(model=self._model, image=_image(image), prediction_count=predictions)
        with _typed_errors(self._address):
            return result_from_message(self._stub.Predict(request, timeout=self._timeout))

    def explain(self, image: Image, options: ExplanationOptions = ExplanationOptions()) -> ExplanationResult:
        """Predict the class of one image and explain the targets that the options name."""
        request = self._explain_request(image, options)
        with _typed_errors(self._address):
            return result_from_message(self._stub.Explain(request, timeout=self._timeout))

    def batch_explain(
        self, images: Sequence[Image], options: ExplanationOptions = ExplanationOptions()
    ) -> list[ExplanationResult | PathlensError]:
        """Explain images in one message; each gets its result or the error that concerns it alone, in order."""
        request = pb.BatchExplainRequest(
            model=self._model,
            items=[pb.BatchExplainItem(image=_image(image)) for image in images],
            options=options_to_message(options),
        )
        with _typed_errors(self._address):
            response = self._stub.BatchExplain(request, timeout=self._timeout)
        return [_result_or_error(result) for result in response.results]

    def stream_explain(
        self, images: Iterable[Image], options: ExplanationOptions = ExplanationOptions()
    ) -> Iterator[tuple[int, ExplanationResult | PathlensError]]:
        """Explain a long sequence of images, sending no faster than the service reads.

        Yields:
            (position of the image, its result or its error), in the order in which they are ready.
        """
        message = options_to_message(options)
        failures: list[Exception] = []

        def requests() -> Iterator[pb.StreamExplainRequest]:
            try:
                for position, image in enumerate(images):
                    request = pb.ExplainRequest(model=self._model, image=_image(image), options=message)
                    yield pb.StreamExplainRequest(id=str(position), request=request)
            except Exception as failure:
                # gRPC reads this in a thread of its own and would report the failure as its own.
                failures.append(failure)
                raise

        try:
            with _typed_errors(self._address):
                for response in self._stub.StreamExplain(requests()):
                    yield int(response.id), _result_or_error(response.result)
        except PathlensError:
            if failures:
                raise failures[0] from None
            raise

    def get_class_pathway(self, selector: int | str, frequencies: bool = False) -> ClassPathway:
        """Return the stored pathway of a class with what it was built from.

        Args:
            selector: Index or label of the class.
            frequencies: Whether to add how often the instance pathways keep each neuron: 32 times as much data as the
                pathway itself.
        """
        request = (
            pb.GetClassPathwayRequest(model=self._model, label=selector, include_frequencies=frequencies)
            if isinstance(selector, str)
            else pb.GetClassPathwayRequest(model=self._model, class_index=selector, include_frequencies=frequencies)
        )
        with _typed_errors(self._address):
            return class_pathway_from_message(self._stub.GetClassPathway(request, timeout=self._timeout))

    def list_models(self) -> list[ModelDescription]:
        """Describe the served models."""
        with _typed_errors(self._address):
            response = self._stub.ListModels(pb.ListModelsRequest(), timeout=self._timeout)
        return [model_from_message(model) for model in response.models]

    def get_model(self) -> ModelDescription:
        """Describe the model of this client."""
        with _typed_errors(self._address):
            response = self._stub.GetModel(pb.GetModelRequest(model=self._model), timeout=self._timeout)
        return model_from_message(response.model)

    def _explain_request(self, image: Image, options: ExplanationOptions) -> pb.ExplainRequest:
        return pb.ExplainRequest(model=self._model, image=_image(image), options=options_to_message(options))


def _is_loopback(address: str) -> bool:
    return address.startswith(("localhost:", "127.", "[::1]:"))


def _image(image: Image) -> pb.Image:
    return image_to_message(image.read_bytes() if isinstance(image, Path) else image)


def _result_or_error(result: pb.ExplainResult) -> ExplanationResult | PathlensError:
    return error_from_status(result.status) if result.status.code else result_from_message(result.response)


@contextmanager
def _typed_errors(address: str) -> Iterator[None]:
    try:
        yield
    except grpc.RpcError as error:
        raise _typed(error, address) from error


def _typed(error: grpc.RpcError, address: str) -> PathlensError:
    # Only calls are raised here, and calls have a code; a status with details is ours, others are the transport's.
    status = rpc_status.from_call(error) if isinstance(error, grpc.Call) else None
    if status is None and isinstance(error, grpc.Call) and error.code() is grpc.StatusCode.UNAVAILABLE:
        return UnavailableError(
            f"No pathlens service answers at {address}: start one with `pathlens serve`, or name its host and port. "
            f"({error.details()})",
            metadata={"address": address},
        )
    if status is None and isinstance(error, grpc.Call):
        status = status_pb2.Status(code=error.code().value[0], message=error.details() or "")
    return error_from_status(status or status_pb2.Status(code=2, message=str(error)))
