"""A real prediction, asked of TorchServe itself."""

import math

import grpc
from google.protobuf.message import DecodeError

from pathlens.errors import InternalError
from pathlens.gateway.predictions import PREDICTIONS, channel_options, predictions_request, worker_response
from pathlens.gateway.upstream_errors import error_from_reply, error_from_upstream
from pathlens.model_version import ModelVersion
from pathlens.wire.internal.v1 import torchserve_pb2, worker_pb2
from pathlens.wire.status import OK
from pathlens.wire.v1 import explanation_service_pb2 as messages

_MAX_MESSAGE_BYTES = 64 * 1024 * 1024
_MID_GREY = b"\x80"


def canary(address: str, version: ModelVersion, timeout_seconds: float = 30.0) -> messages.Model:
    """Check that a model predicts: TorchServe reports as healthy what cannot.

    Asks the model for its description, and then for a prediction of a mid-grey image of its own input size.

    Args:
        address: host:port of TorchServe's gRPC inference endpoint.
        version: Name and version under which TorchServe serves the model.
        timeout_seconds: How long each of the two answers may take.

    Returns:
        What the model says about itself.

    Raises:
        PathlensError: TorchServe does not answer, the handler refuses, or a probability is not finite.
    """
    with grpc.insecure_channel(address, options=channel_options(_MAX_MESSAGE_BYTES)) as channel:
        reference = messages.ModelReference(name=version.name, version=version.version)
        description = _ask(
            channel,
            version,
            worker_pb2.WorkerCall(get_model=messages.GetModelRequest(model=reference)),
            timeout_seconds,
        )
        model = description.get_model.model
        check_prediction(version, _ask(channel, version, grey_prediction(model), timeout_seconds))
    return model


def grey_prediction(model: messages.Model) -> worker_pb2.WorkerCall:
    """Ask for a prediction that every classifier can make: of a mid-grey image of its own input size.

    Args:
        model: What the model says about itself.

    Returns:
        The question.
    """
    reference = messages.ModelReference(name=model.model.name, version=model.model.version)
    image = messages.Image(tensor=_grey_image(list(model.input_shape)))
    return worker_pb2.WorkerCall(predict=messages.PredictRequest(model=reference, image=image))


def check_prediction(version: ModelVersion, reply: worker_pb2.WorkerReply) -> None:
    """Check the answer to `grey_prediction`.

    Args:
        version: Name and version that were asked.
        reply: The answer.

    Raises:
        PathlensError: The handler refused, or a probability is not finite.
    """
    if reply.status.code != OK.code:
        raise error_from_reply(reply.status, version.name)
    probabilities = [one.probability for one in reply.predict.predictions]
    if not probabilities or not all(map(math.isfinite, probabilities)):
        raise InternalError(
            f"Model {str(version)!r} predicts {probabilities} for a grey image, which are no probabilities: check its"
            " weights and preprocessing.",
            reason="CANARY_FAILED",
            metadata={"model": version.name, "version": version.version, "probabilities": probabilities},
        )


def _ask(
    channel: grpc.Channel, version: ModelVersion, call: worker_pb2.WorkerCall, timeout_seconds: float
) -> worker_pb2.WorkerReply:
    predictions = channel.unary_unary(
        PREDICTIONS,
        request_serializer=torchserve_pb2.PredictionsRequest.SerializeToString,
        response_deserializer=torchserve_pb2.PredictionResponse.FromString,
    )
    request = predictions_request(version.name, version.version, worker_pb2.WorkerRequest(calls=[call]))
    try:
        response = worker_response(predictions(request, timeout=timeout_seconds))
    except grpc.RpcError as error:
        raise error_from_upstream(error.code(), error.details() or "", version.name) from error
    except DecodeError as error:
        raise _foreign(version.name) from error
    if len(response.replies) != 1:
        raise _foreign(version.name)
    reply = response.replies[0]
    if reply.status.code != OK.code:
        raise error_from_reply(reply.status, version.name)
    return reply


def _foreign(model_name: str) -> InternalError:
    return InternalError(
        f"The handler of model {model_name!r} does not answer as pathlens' handler does: serve an archive made by"
        " `pathlens pack`.",
        reason="HANDLER_UNKNOWN",
        metadata={"model": model_name},
    )


def _grey_image(input_shape: list[int]) -> messages.Tensor:
    channels, height, width = input_shape
    shape = [height, width] if channels == 1 else [height, width, 3]
    return messages.Tensor(data_type=messages.DATA_TYPE_UINT8, shape=shape, data=_MID_GREY * math.prod(shape))
