"""The connection to one TorchServe."""

import grpc
import grpc.aio
from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import DecodeError

from pathlens.errors import InternalError
from pathlens.gateway.predictions import PING, PREDICTIONS, channel_options, worker_response
from pathlens.gateway.upstream_errors import error_from_upstream
from pathlens.wire.internal.v1 import torchserve_pb2, worker_pb2


class TorchServeChannel:
    """Calls one TorchServe until it is closed; the TorchServe after it gets another one.

    Construct it inside a running event loop.

    Args:
        address: host:port of TorchServe's gRPC inference endpoint.
        max_message_bytes: Largest message in either direction.
    """

    def __init__(self, address: str, max_message_bytes: int) -> None:
        self._channel = grpc.aio.insecure_channel(address, options=channel_options(max_message_bytes))
        self._predictions = self._channel.unary_unary(
            PREDICTIONS,
            request_serializer=torchserve_pb2.PredictionsRequest.SerializeToString,
            response_deserializer=torchserve_pb2.PredictionResponse.FromString,
        )
        self._ping = self._channel.unary_unary(
            PING, request_serializer=Empty.SerializeToString, response_deserializer=bytes
        )

    async def predictions(
        self, request: torchserve_pb2.PredictionsRequest, call_count: int, timeout: float
    ) -> worker_pb2.WorkerResponse:
        """Put questions to the handler of a model.

        Args:
            request: The questions, wrapped.
            call_count: How many they are.
            timeout: Seconds after which gRPC cancels the call.

        Returns:
            The handler's message, with one reply per question.

        Raises:
            PathlensError: TorchServe or the handler did not answer so; the class and the reason say why.
        """
        try:
            response = worker_response(await self._predictions(request, timeout=timeout))
        except grpc.aio.AioRpcError as error:
            raise error_from_upstream(error.code(), error.details() or "", request.model_name) from error
        except DecodeError as error:
            raise InternalError(
                "The handler of the model answered with something that is not a pathlens message: serve an archive made"
                " by `pathlens pack`.",
                metadata={"model": request.model_name},
            ) from error
        if len(response.replies) != call_count:
            raise InternalError(
                f"The handler answered {len(response.replies)} of {call_count} calls; its log has the details.",
                metadata={"model": request.model_name, "replies": len(response.replies), "calls": call_count},
            )
        return response

    async def pings(self, seconds: float) -> bool:
        """Tell whether TorchServe itself is alive, whatever its workers do.

        Args:
            seconds: How long it may take to answer.

        Returns:
            Whether it answered, with anything.
        """
        try:
            await self._ping(Empty(), timeout=seconds)
        except grpc.aio.AioRpcError as error:
            return error.code() not in (grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.UNAVAILABLE)
        return True

    async def close(self) -> None:
        """Close the channel. Calls that are still in flight end now."""
        await self._channel.close()
