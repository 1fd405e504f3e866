"""What each call sends and how its answer is read; the same for both clients."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from google.protobuf.message import Message

from pathlens.description import ClassPathway, ModelDescription
from pathlens.errors import InvalidRequestError, PathlensError
from pathlens.explanation import ExplanationOptions, ExplanationResult, ImageInput
from pathlens.wire.models import class_pathway_from_message, model_from_message
from pathlens.wire.requests import image_to_message, options_to_message
from pathlens.wire.responses import result_from_message
from pathlens.wire.status import error_from_status
from pathlens.wire.v1 import explanation_service_pb2 as pb

Image = ImageInput | Path
"""As `pathlens.explanation.ImageInput`, or the path of an image file."""

Answer = TypeVar("Answer")


@dataclass(frozen=True)
class Call(Generic[Answer]):
    """A call with one request and one response.

    Attributes:
        method: Its name in the service.
        request: What is sent.
        read: Makes the answer of the response.
    """

    method: str
    request: Message
    read: Callable[[Any], Answer]


def read_image(image: Image) -> ImageInput:
    """Return an image, read from its file if it is given as one.

    Raises:
        OSError: The file cannot be read.
    """
    return image.read_bytes() if isinstance(image, Path) else image


def predict(model: pb.ModelReference, image: ImageInput, predictions: int) -> Call[ExplanationResult]:
    """Make the call that predicts the class of one image.

    Raises:
        InvalidRequestError: The message cannot hold this number of predictions, or the image is none.
    """
    if not 0 <= predictions < 2**32:
        raise InvalidRequestError(
            f"predictions is {predictions}; ask for at least 0.", reason="OPTION_INVALID", field="prediction_count"
        )
    request = pb.PredictRequest(model=model, image=image_to_message(image), prediction_count=predictions)
    return Call("Predict", request, result_from_message)


def explain(model: pb.ModelReference, image: ImageInput, options: ExplanationOptions) -> Call[ExplanationResult]:
    """Make the call that explains one image.

    Raises:
        InvalidRequestError: The message cannot hold an option or the image.
    """
    request = pb.ExplainRequest(model=model, image=image_to_message(image), options=options_to_message(options))
    return Call("Explain", request, result_from_message)


def batch_explain(
    model: pb.ModelReference, images: Iterable[ImageInput], options: ExplanationOptions
) -> Call[list[ExplanationResult | PathlensError]]:
    """Make the call that explains images in one message.

    Raises:
        InvalidRequestError: The message cannot hold an option or an image.
    """
    request = pb.BatchExplainRequest(
        model=model,
        items=[pb.BatchExplainItem(image=image_to_message(image)) for image in images],
        options=options_to_message(options),
    )
    return Call("BatchExplain", request, lambda response: [result_or_error(result) for result in response.results])


def get_class_pathway(model: pb.ModelReference, selector: int | str, frequencies: bool) -> Call[ClassPathway]:
    """Make the call that returns the stored pathway of a class.

    Raises:
        InvalidRequestError: The message cannot hold this index.
    """
    request = pb.GetClassPathwayRequest(model=model, include_frequencies=frequencies)
    try:
        if isinstance(selector, str):
            request.label = selector
        else:
            request.class_index = selector
    except (ValueError, TypeError) as error:
        raise InvalidRequestError(
            f"The class is {selector!r}; name it by its label or by its index.",
            reason="OPTION_INVALID",
            field="class",
        ) from error
    return Call("GetClassPathway", request, class_pathway_from_message)


def list_models() -> Call[list[ModelDescription]]:
    """Make the call that describes the served models."""
    return Call(
        "ListModels", pb.ListModelsRequest(), lambda response: [model_from_message(model) for model in response.models]
    )


def get_model(model: pb.ModelReference) -> Call[ModelDescription]:
    """Make the call that describes one model."""
    return Call("GetModel", pb.GetModelRequest(model=model), lambda response: model_from_message(response.model))


def stream_request(
    position: int, model: pb.ModelReference, image: ImageInput, options: pb.ExplanationOptions
) -> pb.StreamExplainRequest:
    """Write an item of a stream, which is named after its position.

    Raises:
        InvalidRequestError: The message cannot hold the image.
    """
    request = pb.ExplainRequest(model=model, image=image_to_message(image), options=options)
    return pb.StreamExplainRequest(id=str(position), request=request)


def unsent_error(failure: OSError | InvalidRequestError) -> InvalidRequestError:
    """Tell why an image of a stream was not sent.

    Args:
        failure: What `read_image` or `stream_request` raised.

    Returns:
        The answer to this image.
    """
    if isinstance(failure, InvalidRequestError):
        return failure
    error = InvalidRequestError(
        f"The image cannot be read: {failure}.", reason="IMAGE_UNREADABLE", field="image", metadata={"error": failure}
    )
    error.__cause__ = failure
    return error


def stream_answer(response: pb.StreamExplainResponse) -> tuple[int, ExplanationResult | PathlensError]:
    """Read the answer to an item of a stream, with its position."""
    return int(response.id), result_or_error(response.result)


def result_or_error(result: pb.ExplainResult) -> ExplanationResult | PathlensError:
    """Read the answer to one image of many."""
    return error_from_status(result.status) if result.status.code else result_from_message(result.response)
