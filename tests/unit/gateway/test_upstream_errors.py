import grpc
import pytest

from pathlens.errors import (
    InternalError,
    InvalidRequestError,
    NotFoundError,
    PathlensError,
    ResourceExhaustedError,
    UnavailableError,
)
from pathlens.gateway.upstream_errors import error_from_upstream

Code = grpc.StatusCode


@pytest.mark.parametrize(
    ("code", "details", "error_class", "reason"),
    [
        (Code.INTERNAL, "Worker died.\norg.pytorch.serve.http", UnavailableError, "WORKER_RESTARTING"),
        (Code.INTERNAL, 'Model "digits" Version 1.0 has no worker to serve', UnavailableError, "WORKER_RESTARTING"),
        (Code.UNAVAILABLE, "failed to connect to all addresses", UnavailableError, "WORKER_RESTARTING"),
        (
            Code.UNAVAILABLE,
            "GOAWAY received; Error code: 2; Debug Text: Cannot reserve 4194304 bytes of direct buffer memory",
            ResourceExhaustedError,
            "QUEUE_FULL",
        ),
        (Code.INTERNAL, "Model not found: digits", NotFoundError, "MODEL_NOT_FOUND"),
        (Code.NOT_FOUND, "Model not found: digits", NotFoundError, "MODEL_NOT_FOUND"),
        (Code.INTERNAL, "Model version: 2.0 does not exist for model: digits", NotFoundError, "MODEL_NOT_FOUND"),
        (Code.CANCELLED, "Received RST_STREAM with error code 8", InvalidRequestError, "MESSAGE_TOO_LARGE"),
        (Code.RESOURCE_EXHAUSTED, "Sent message larger than max (9 vs. 8)", InvalidRequestError, "MESSAGE_TOO_LARGE"),
        (Code.RESOURCE_EXHAUSTED, "Received message larger than max", ResourceExhaustedError, "RESPONSE_TOO_LARGE"),
        (Code.DEADLINE_EXCEEDED, "Deadline Exceeded", UnavailableError, "UPSTREAM_TIMEOUT"),
        (Code.INTERNAL, "Invalid model predict output", InternalError, "INTERNAL"),
        (Code.UNIMPLEMENTED, "Method not found", InternalError, "INTERNAL"),
    ],
)  # fmt: skip
def test_each_failure_of_torchserve_has_its_meaning(
    code: grpc.StatusCode, details: str, error_class: type[PathlensError], reason: str
) -> None:
    error = error_from_upstream(code, details, "digits")
    assert (type(error), error.reason) == (error_class, reason)


def test_a_restarting_worker_tells_when_to_come_back() -> None:
    assert error_from_upstream(Code.INTERNAL, "Worker died.", "digits").retry_after == 2.5


def test_an_untranslated_failure_is_logged_and_kept_from_the_caller(caplog: pytest.LogCaptureFixture) -> None:
    error = error_from_upstream(Code.INTERNAL, "java.lang.Secret", "digits")
    assert "java.lang.Secret" in caplog.text
    assert "java.lang.Secret" not in error.message
