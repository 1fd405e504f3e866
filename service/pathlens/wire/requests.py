"""Requests as messages, and back."""

from pathlens.errors import InvalidRequestError
from pathlens.explanation import (
    DEFAULT_OUTPUTS,
    ExplanationOptions,
    ExplanationRequest,
    Granularity,
    ImageInput,
    ModelReference,
    Output,
    PathwaySource,
    Reduction,
    Targets,
)
from pathlens.wire.arrays import tensor_from_message, tensor_to_message
from pathlens.wire.enums import from_number, to_number
from pathlens.wire.v1 import explanation_service_pb2 as pb

_DEFAULT_PREDICTIONS = ExplanationOptions().predictions
_DEFAULT_STEPS = ExplanationOptions().integration_steps


def model_to_message(model: ModelReference) -> pb.ModelReference:
    """Write the name of a model."""
    return pb.ModelReference(name=model.name, version=model.version)


def image_to_message(image: ImageInput) -> pb.Image:
    """Write an image."""
    if isinstance(image, bytes):
        return pb.Image(encoded=image)
    return pb.Image(tensor=tensor_to_message(image))


def image_from_message(message: pb.Image) -> ImageInput:
    """Read an image.

    Raises:
        InvalidRequestError: If there is none, or its tensor does not fit together.
    """
    content = message.WhichOneof("content")
    if content == "encoded":
        return message.encoded
    if content == "tensor":
        return tensor_from_message(message.tensor)
    raise InvalidRequestError(
        "The request has no image; set image.encoded or image.tensor.", reason="IMAGE_MISSING", field="image"
    )


def options_to_message(options: ExplanationOptions) -> pb.ExplanationOptions:
    """Write the options of an explanation.

    Raises:
        InvalidRequestError: If a number is outside what the message can hold.
    """
    try:
        return _options_to_message(options)
    except (ValueError, TypeError) as error:
        raise InvalidRequestError(
            f"An option cannot be sent: {error}.", reason="OPTION_INVALID", field="options"
        ) from error


def options_from_message(message: pb.ExplanationOptions) -> ExplanationOptions:
    """Read the options of an explanation.

    Raises:
        InvalidRequestError: If an enum has an unknown value.
    """
    granularity = None
    if message.granularity:
        granularity = from_number(Granularity, message.granularity, "options.granularity")
    outputs = frozenset(from_number(Output, number, "options.outputs") for number in message.outputs)
    return ExplanationOptions(
        targets=Targets(message.targets.top_k, tuple(message.targets.class_indices), tuple(message.targets.labels)),
        source=from_number(PathwaySource, message.source, "options.source", PathwaySource.TRANSFERRED),
        sparsity=message.sparsity if message.HasField("sparsity") else None,
        granularity=granularity,
        outputs=outputs or DEFAULT_OUTPUTS,
        reduction=from_number(Reduction, message.reduction, "options.reduction", Reduction.SIGNED_MAXIMUM),
        top_neurons=message.top_neurons,
        predictions=message.prediction_count or _DEFAULT_PREDICTIONS,
        integration_steps=message.integration_steps or _DEFAULT_STEPS,
        linearity_radius=message.linearity_radius if message.HasField("linearity_radius") else None,
    )


def request_from_predict(message: pb.PredictRequest) -> ExplanationRequest:
    """Read a request for a prediction.

    Raises:
        InvalidRequestError: If the message is not a valid request.
    """
    count = message.prediction_count or _DEFAULT_PREDICTIONS
    return ExplanationRequest(image_from_message(message.image), None, count)


def request_from_explain(message: pb.ExplainRequest) -> ExplanationRequest:
    """Read a request for an explanation.

    Raises:
        InvalidRequestError: If the message is not a valid request.
    """
    return ExplanationRequest(image_from_message(message.image), options_from_message(message.options))


def _options_to_message(options: ExplanationOptions) -> pb.ExplanationOptions:
    return pb.ExplanationOptions(
        targets=pb.Targets(
            top_k=options.targets.top_k,
            class_indices=options.targets.class_indices,
            labels=options.targets.labels,
        ),
        source=pb.PathwaySource.ValueType(to_number(options.source)),
        sparsity=options.sparsity,
        granularity=pb.Granularity.ValueType(to_number(options.granularity) if options.granularity else 0),
        outputs=sorted(pb.Output.ValueType(to_number(output)) for output in options.outputs),
        reduction=pb.Reduction.ValueType(to_number(options.reduction)),
        top_neurons=options.top_neurons,
        prediction_count=options.predictions,
        integration_steps=options.integration_steps,
        linearity_radius=options.linearity_radius,
    )
