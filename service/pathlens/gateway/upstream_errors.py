"""What TorchServe's failures mean."""

import logging

import grpc

from pathlens.errors import (
    InternalError,
    InvalidRequestError,
    NotFoundError,
    PathlensError,
    ResourceExhaustedError,
    UnavailableError,
)

FULL_RETRY_SECONDS = 1.0
"""After which time a full queue may have room again."""

RESTART_SECONDS = 2.5
"""How long TorchServe takes to replace a dead worker."""

_logger = logging.getLogger(__name__)
# The texts of TorchServe 0.12; its codes alone do not tell these cases apart.
_OUT_OF_BUFFERS = "direct buffer memory"
_WORKER_IS_DOWN = ("Worker died", "has no worker")
_UNKNOWN_MODEL = ("Model not found", "does not exist for model")


def error_from_upstream(code: grpc.StatusCode, details: str, model_name: str) -> PathlensError:
    """Translate a failed call of TorchServe.

    Args:
        code: The status code of the call.
        details: The status message of the call.
        model_name: The model that was asked.

    Returns:
        The error for the caller. What has no translation is logged and becomes `InternalError`.
    """
    metadata = {"model": model_name}
    if any(text in details for text in _UNKNOWN_MODEL):
        return NotFoundError(
            f"TorchServe does not serve model {model_name!r}, or not this version: ask ListModels what is served.",
            reason="MODEL_NOT_FOUND",
            field="model",
            metadata=metadata,
        )
    if _OUT_OF_BUFFERS in details:
        # The JVM ends the connection when it has no memory for a request; its workers are well.
        return ResourceExhaustedError(
            f"TorchServe has no memory left for another request to model {model_name!r}: repeat the request in"
            f" {FULL_RETRY_SECONDS} s.",
            reason="QUEUE_FULL",
            metadata=metadata,
            retry_after=FULL_RETRY_SECONDS,
        )
    if code is grpc.StatusCode.UNAVAILABLE or any(text in details for text in _WORKER_IS_DOWN):
        return UnavailableError(
            f"The worker of model {model_name!r} is restarting: repeat the request in {RESTART_SECONDS} s.",
            reason="WORKER_RESTARTING",
            metadata=metadata,
            retry_after=RESTART_SECONDS,
        )
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return upstream_timeout(model_name)
    if code is grpc.StatusCode.CANCELLED and "RST_STREAM" in details:
        return message_too_large("TorchServe's max_request_size", metadata)
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED and "Sent message larger" in details:
        return message_too_large("the gateway's max_message_bytes", metadata)
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED and "Received message larger" in details:
        return ResourceExhaustedError(
            f"The answer of model {model_name!r} is larger than the gateway's max_message_bytes: ask for fewer outputs"
            " or targets.",
            reason="RESPONSE_TOO_LARGE",
            metadata=metadata,
        )
    _logger.error("TorchServe answered %s for model %s: %s", code.name, model_name, details)
    return InternalError("The model server failed; the gateway's log has the details.", metadata=metadata)


def message_too_large(limit: str, metadata: dict[str, str]) -> InvalidRequestError:
    """Refuse a request that does not fit into one message to TorchServe.

    Args:
        limit: The name of the limit.
        metadata: The dynamic values known so far.

    Returns:
        The error for the caller.
    """
    return InvalidRequestError(
        f"The request is larger than {limit} allows: send a smaller image.",
        reason="MESSAGE_TOO_LARGE",
        metadata={**metadata, "limit": limit},
    )


def queue_full(calls: int, max_calls: int, size: int, max_bytes: int) -> ResourceExhaustedError:
    """Refuse a request for which TorchServe has no room.

    Args:
        calls: Requests that it holds.
        max_calls: Most requests that it may hold.
        size: Bytes of these requests.
        max_bytes: Most bytes that it may hold.

    Returns:
        The error for the caller.
    """
    return ResourceExhaustedError(
        f"The gateway has {calls} requests of {size} bytes in flight and takes at most {max_calls} of {max_bytes}"
        f" bytes: repeat the request in {FULL_RETRY_SECONDS} s.",
        reason="QUEUE_FULL",
        metadata={"in_flight": calls, "limit": max_calls, "bytes": size, "bytes_limit": max_bytes},
        retry_after=FULL_RETRY_SECONDS,
    )


def upstream_timeout(model_name: str) -> UnavailableError:
    """Tell that the gateway does not wait any longer.

    Args:
        model_name: The model that was asked.

    Returns:
        The error for the caller.
    """
    return UnavailableError(
        f"Model {model_name!r} did not answer within the gateway's own time limit: repeat the request in"
        f" {RESTART_SECONDS} s.",
        reason="UPSTREAM_TIMEOUT",
        metadata={"model": model_name},
        retry_after=RESTART_SECONDS,
    )
