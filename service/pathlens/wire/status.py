"""Errors of pathlens as `google.rpc.Status` (AIP-193), and back."""

from google.protobuf import duration_pb2
from google.rpc import code_pb2, error_details_pb2, status_pb2

from pathlens.errors import (
    DOMAIN,
    DeadlineExceededError,
    FailedPreconditionError,
    InternalError,
    InvalidRequestError,
    NotFoundError,
    PathlensError,
    ResourceExhaustedError,
    UnauthenticatedError,
    UnavailableError,
)

OK = status_pb2.Status(code=code_pb2.OK)

_WIRE_ERRORS: tuple[type[PathlensError], ...] = (
    InvalidRequestError,
    NotFoundError,
    FailedPreconditionError,
    ResourceExhaustedError,
    UnavailableError,
    DeadlineExceededError,
    UnauthenticatedError,
    InternalError,
)
_ERROR_OF_CODE = {code_pb2.Code.Value(error.code): error for error in _WIRE_ERRORS}


def status_from_error(error: Exception) -> status_pb2.Status:
    """Describe an error for the caller.

    An error that is not one of pathlens' own becomes INTERNAL without its text: what went wrong inside is for the log.
    """
    if not isinstance(error, PathlensError):
        error = InternalError("The service failed while computing this answer; its log has the details.")
    status = status_pb2.Status(code=code_pb2.Code.Value(error.code), message=error.message)
    status.details.add().Pack(
        error_details_pb2.ErrorInfo(reason=error.reason, domain=DOMAIN, metadata=error.metadata),
    )
    if error.field:
        violation = error_details_pb2.BadRequest.FieldViolation(
            field=error.field, description=error.message, reason=error.reason
        )
        status.details.add().Pack(error_details_pb2.BadRequest(field_violations=[violation]))
    if error.retry_after is not None:
        delay = duration_pb2.Duration()
        delay.FromNanoseconds(round(error.retry_after * 1e9))
        status.details.add().Pack(error_details_pb2.RetryInfo(retry_delay=delay))
    return status


def error_from_status(status: status_pb2.Status) -> PathlensError:
    """Rebuild the error that a status describes; the counterpart of `status_from_error`.

    A code that pathlens never sends becomes `InternalError` with the code's name in its metadata.
    """
    reason, field, metadata, retry_after = "", "", {}, None
    for detail in status.details:
        info, bad_request, retry = (
            error_details_pb2.ErrorInfo(),
            error_details_pb2.BadRequest(),
            error_details_pb2.RetryInfo(),
        )
        if detail.Unpack(info):
            reason, metadata = info.reason, dict(info.metadata)
        elif detail.Unpack(bad_request) and bad_request.field_violations:
            field = bad_request.field_violations[0].field
        elif detail.Unpack(retry):
            retry_after = retry.retry_delay.ToNanoseconds() / 1e9
    error_class = _ERROR_OF_CODE.get(status.code)
    if error_class is None:
        known = status.code in code_pb2.Code.values()
        metadata["code"] = code_pb2.Code.Name(status.code) if known else str(status.code)
        error_class = InternalError
    return error_class(status.message, reason=reason, field=field, metadata=metadata, retry_after=retry_after)


def response_too_large(size: int, max_bytes: int, remedy: str) -> ResourceExhaustedError:
    """Refuse to send an answer that does not fit into a message.

    Args:
        size: Bytes of the answer.
        max_bytes: Largest message.
        remedy: What the caller can do, in the imperative.

    Returns:
        The error for the caller.
    """
    return ResourceExhaustedError(
        f"The answer has {size} bytes and a message holds {max_bytes}: {remedy}.",
        reason="RESPONSE_TOO_LARGE",
        metadata={"bytes": size, "limit": max_bytes},
    )
