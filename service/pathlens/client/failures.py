"""Failed calls of gRPC as errors of pathlens."""

import grpc
import grpc.aio
from google.protobuf.message import DecodeError
from google.rpc import status_pb2
from grpc_status import rpc_status

from pathlens.errors import DeadlineExceededError, PathlensError, ResourceExhaustedError, UnavailableError
from pathlens.wire.request_id import REQUEST_ID_KEY, is_request_id
from pathlens.wire.status import error_from_status

# What grpc's server says of a call that came while it closed, so that nothing has read it. A client that leaves, or
# closes its channel, finds other words for that.
_UNREAD = "CANCELLED"


def error_from_failure(failure: grpc.RpcError, address: str, timeout: float | None) -> PathlensError:
    """Translate what gRPC raises.

    Args:
        failure: A failed call of either client.
        address: The service that was called.
        timeout: Seconds that the call had in all; None for any time.

    Returns:
        What the service said, or, where the connection failed before it could, what to do about that.
    """
    # Only calls are raised here, and calls have a code.
    if not isinstance(failure, grpc.Call | grpc.aio.AioRpcError):
        return error_from_status(status_pb2.Status(code=2, message=str(failure)))
    status = _status(failure)
    if status is not None:
        return error_from_status(status)
    return _transport_error(failure.code(), failure.details() or "", address, timeout)


def returned_request_id(failure: grpc.RpcError) -> str:
    """Read the id under which the service knows a call.

    Args:
        failure: A failed call of either client.

    Returns:
        The id; empty if the service was not reached, or did not say.
    """
    if not isinstance(failure, grpc.Call | grpc.aio.AioRpcError):
        return ""
    returned = [value for key, value in failure.trailing_metadata() or () if key == REQUEST_ID_KEY]
    return returned[0] if returned and isinstance(returned[0], str) and is_request_id(returned[0]) else ""


def _status(failure: grpc.Call | grpc.aio.AioRpcError) -> status_pb2.Status | None:
    try:
        # Both kinds answer what is asked here, and answer at once; the stubs know of one.
        return rpc_status.from_call(failure)  # type: ignore[arg-type]
    except (ValueError, DecodeError):
        # Details that contradict the call are not ours.
        return None


def _transport_error(code: grpc.StatusCode, details: str, address: str, timeout: float | None) -> PathlensError:
    if code is grpc.StatusCode.UNAVAILABLE:
        return UnavailableError(
            f"No pathlens service answers at {address}: start one with `pathlens serve`, name its host and port, or"
            f" check that both sides use TLS or neither. ({details})",
            metadata={"address": address},
            # Nobody says when to come back, so at once is as good a time as any.
            retry_after=0.0,
        )
    if code is grpc.StatusCode.CANCELLED and details == _UNREAD:
        return UnavailableError(
            f"The service at {address} stopped before it read the request: repeat the request.",
            reason="STOPPING",
            metadata={"address": address},
            # Another one may answer at the same address.
            retry_after=0.0,
        )
    if code is grpc.StatusCode.DEADLINE_EXCEEDED and timeout is not None:
        return DeadlineExceededError(
            f"{address} did not answer within {timeout:g} s: allow a longer timeout, or ask for less at a time.",
            metadata={"address": address, "timeout": timeout},
        )
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED and "larger than max" in details:
        return ResourceExhaustedError(
            f"A message is too large ({details}): send smaller images, ask for fewer outputs, or raise"
            " max_message_bytes of the connection as far as the service goes.",
            reason="MESSAGE_TOO_LARGE",
            metadata={"address": address},
        )
    return error_from_status(status_pb2.Status(code=code.value[0], message=details))
