"""What TorchServe's failures mean."""

import logging
from collections.abc import Mapping

import grpc
from google.protobuf.message import DecodeError
from google.rpc import status_pb2

from pathlens.errors import (
    DeadlineExceededError,
    InternalError,
    InvalidRequestError,
    NotFoundError,
    PathlensError,
    ResourceExhaustedError,
    UnavailableError,
)
from pathlens.wire.status import error_from_status

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


def error_from_reply(status: status_pb2.Status, model_name: str) -> PathlensError:
    """Read the error that a handler has answered.

    Args:
        status: Its answer, which is not OK.
        model_name: The model that was asked.

    Returns:
        The error for the caller. What cannot be read is an `InternalError`: our handlers send no such status.
    """
    try:
        return error_from_status(status)
    except (ValueError, DecodeError):
        return response_malformed(model_name)


def response_malformed(model_name: str) -> InternalError:
    """Tell that a handler's answer cannot be read.

    Args:
        model_name: The model that was asked.

    Returns:
        The error for the caller.
    """
    return InternalError(
        f"The handler of model {model_name!r} answered what no handler of this version does: serve an archive made by"
        " `pathlens pack`.",
        reason="RESPONSE_MALFORMED",
        metadata={"model": model_name},
    )


def torchserve_restarting(model_name: str, retry_after: float) -> UnavailableError:
    """Tell that there is no TorchServe at the moment.

    Args:
        model_name: The model that was asked.
        retry_after: Seconds after which there may be one again.

    Returns:
        The error for the caller.
    """
    return UnavailableError(
        f"TorchServe is being restarted and model {model_name!r} with it: repeat the request in {retry_after:g} s.",
        reason="TORCHSERVE_RESTARTING",
        metadata={"model": model_name, "retry_after": f"{retry_after:g}"},
        retry_after=retry_after,
    )


def message_too_large(limit: str, metadata: dict[str, str]) -> InvalidRequestError:
    """Tell that a request did not fit into one message to TorchServe, as gRPC has found.

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


def request_too_large(model_name: str, size: int, limit: int) -> InvalidRequestError:
    """Refuse a request that does not fit into one message to TorchServe, before it is sent.

    Args:
        model_name: The model that was asked.
        size: Bytes of the request.
        limit: The gateway's `max_message_bytes`.

    Returns:
        The error for the caller.
    """
    return InvalidRequestError(
        f"The request to model {model_name!r} takes {size} bytes, and the gateway's max_message_bytes is {limit}: send"
        " a smaller image.",
        reason="MESSAGE_TOO_LARGE",
        metadata={"model": model_name, "bytes": size, "limit": limit},
    )


def queue_full(model_name: str, metadata: Mapping[str, object]) -> ResourceExhaustedError:
    """Refuse a request for which there is no room, neither at TorchServe nor among those who wait.

    Args:
        model_name: The model that was asked.
        metadata: What is full, and the limits.

    Returns:
        The error for the caller.
    """
    return ResourceExhaustedError(
        f"Model {model_name!r} has as many requests in flight and waiting as the gateway's limits allow: repeat the"
        f" request in {FULL_RETRY_SECONDS} s.",
        reason="QUEUE_FULL",
        metadata={"model": model_name, **metadata},
        retry_after=FULL_RETRY_SECONDS,
    )


def too_many_calls(limit: int) -> ResourceExhaustedError:
    """Refuse a call because of all the others.

    Args:
        limit: Most calls in progress.

    Returns:
        The error for the caller.
    """
    return ResourceExhaustedError(
        f"The gateway has {limit} calls in progress, as many as it may: repeat the request in {FULL_RETRY_SECONDS} s.",
        reason="TOO_MANY_CALLS",
        metadata={"limit": limit},
        retry_after=FULL_RETRY_SECONDS,
    )


def too_many_bulk_calls(metadata: Mapping[str, object]) -> ResourceExhaustedError:
    """Refuse a stream or a batch because of the others.

    Args:
        metadata: How many calls and bytes there are, and the limits.

    Returns:
        The error for the caller.
    """
    return ResourceExhaustedError(
        "The gateway has as many streams and batches in progress as its limits allow: repeat the request in"
        f" {FULL_RETRY_SECONDS} s.",
        reason="TOO_MANY_BULK_CALLS",
        metadata=metadata,
        retry_after=FULL_RETRY_SECONDS,
    )


def deadline_too_short(model_name: str, remaining: float, wait: float, cost: float) -> DeadlineExceededError:
    """Refuse a request that would not be answered in time.

    Args:
        model_name: The model that was asked.
        remaining: Seconds until the deadline.
        wait: Seconds that it would wait for others.
        cost: Seconds that the handler would take.

    Returns:
        The error for the caller.
    """
    return DeadlineExceededError(
        f"Model {model_name!r} is expected to answer in {wait + cost:.3g} s, {wait:.3g} s of them for others, and the"
        f" deadline of the request is in {remaining:.3g} s: allow more time.",
        reason="DEADLINE_TOO_SHORT",
        metadata={
            "model": model_name,
            "expected": f"{wait + cost:.3g}",
            "waiting": f"{wait:.3g}",
            "remaining": f"{remaining:.3g}",
        },
    )


def time_is_up(model_name: str) -> DeadlineExceededError:
    """Tell that the caller's time was up.

    Args:
        model_name: The model that was asked.

    Returns:
        The error for the caller.
    """
    return DeadlineExceededError(
        f"Model {model_name!r} did not answer within the deadline of the request: allow more time.",
        metadata={"model": model_name},
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
