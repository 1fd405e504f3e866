"""TorchServe's `Predictions` call with our own messages inside."""

from pathlens.wire.internal.v1 import torchserve_pb2, worker_pb2

PREDICTIONS = "/org.pytorch.serve.grpc.inference.InferenceAPIsService/Predictions"
"""Full name of the call, as `grpc.Channel.unary_unary` takes it."""

PING = "/org.pytorch.serve.grpc.inference.InferenceAPIsService/Ping"
"""Full name of the call that the JVM answers by itself, whatever the workers do."""

# The key under which the handler finds the request.
_INPUT_KEY = "pathlens"


def channel_options(max_message_bytes: int) -> list[tuple[str, int | str]]:
    """Give the options of a channel to a TorchServe on loopback.

    Args:
        max_message_bytes: Largest message in either direction.

    Returns:
        Options for `grpc.insecure_channel` and its asyncio twin.
    """
    return [
        ("grpc.max_send_message_length", max_message_bytes),
        ("grpc.max_receive_message_length", max_message_bytes),
        # A proxy of the environment has no way to our loopback.
        ("grpc.enable_http_proxy", 0),
        # A killed JVM is back within seconds; the default would by then wait for up to two minutes between attempts.
        ("grpc.initial_reconnect_backoff_ms", 200),
        ("grpc.min_reconnect_backoff_ms", 200),
        ("grpc.max_reconnect_backoff_ms", 1000),
    ]


def predictions_request(
    model_name: str, model_version: str, request: worker_pb2.WorkerRequest
) -> torchserve_pb2.PredictionsRequest:
    """Wrap a request for the handler.

    Args:
        model_name: Name under which TorchServe serves the model.
        model_version: Its version; empty means TorchServe's default version.
        request: What the handler is to answer.

    Returns:
        The message that TorchServe's `Predictions` takes.
    """
    return torchserve_pb2.PredictionsRequest(
        model_name=model_name,
        model_version=model_version,
        input={_INPUT_KEY: request.SerializeToString()},
    )


def worker_response(response: torchserve_pb2.PredictionResponse) -> worker_pb2.WorkerResponse:
    """Unwrap the answer of the handler.

    Args:
        response: What TorchServe's `Predictions` returned.

    Returns:
        The handler's message.

    Raises:
        google.protobuf.message.DecodeError: The model is served by another handler than ours.
    """
    return worker_pb2.WorkerResponse.FromString(response.prediction)
