"""Errors on the wire: canonical code, ErrorInfo, BadRequest and RetryInfo."""

from typing import Any

import pytest
from google.rpc import code_pb2, error_details_pb2, status_pb2
from hypothesis import given, settings
from hypothesis import strategies as st

from pathlens import errors
from pathlens.errors import InternalError, InvalidRequestError, PathlensError, ResourceExhaustedError
from pathlens.wire.status import OK, error_from_status, response_too_large, status_from_error

WIRE_ERRORS = [
    errors.InvalidRequestError,
    errors.NotFoundError,
    errors.FailedPreconditionError,
    errors.ResourceExhaustedError,
    errors.UnavailableError,
    errors.DeadlineExceededError,
    errors.UnauthenticatedError,
    errors.InternalError,
]
LOCAL_ERRORS = [
    errors.CaptureError,
    errors.BundleError,
    errors.ImagesError,
    errors.FitError,
    errors.EvaluationError,
    errors.ExportError,
    errors.ExplainerFileError,
    errors.ServerStartError,
]
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)


def detail(status: status_pb2.Status, kind: Any) -> Any:
    found = kind()
    matching = [packed for packed in status.details if packed.Is(kind.DESCRIPTOR)]
    assert len(matching) == 1
    matching[0].Unpack(found)
    return found


@given(
    kind=st.sampled_from(WIRE_ERRORS),
    message=texts,
    reason=texts,
    field=texts,
    metadata=st.dictionaries(texts, texts, max_size=3),
    retry_after=st.none() | st.integers(0, 10**12).map(lambda number: number / 1e9),
)
@settings(max_examples=100)
def test_every_error_comes_back_as_it_was(
    kind: type[PathlensError],
    message: str,
    reason: str,
    field: str,
    metadata: dict[str, str],
    retry_after: float | None,
) -> None:
    error = kind(message, reason=reason, field=field, metadata=metadata, retry_after=retry_after)
    status = status_pb2.Status.FromString(status_from_error(error).SerializeToString())
    back = error_from_status(status)
    assert type(back) is kind
    assert vars(back) == vars(error)


@pytest.mark.parametrize("kind", WIRE_ERRORS)
def test_every_error_has_its_canonical_code_and_one_error_info(kind: type[PathlensError]) -> None:
    status = status_from_error(kind("words", reason="SOME_REASON", metadata={"limit": 3}))
    assert code_pb2.Code.Name(status.code) == kind.code
    assert status.message == "words"
    info = detail(status, error_details_pb2.ErrorInfo)
    assert (info.reason, info.domain, dict(info.metadata)) == ("SOME_REASON", "pathlens", {"limit": "3"})
    assert len(status.details) == 1


@pytest.mark.parametrize("kind", WIRE_ERRORS)
def test_the_reason_is_never_empty(kind: type[PathlensError]) -> None:
    info = detail(status_from_error(kind("words")), error_details_pb2.ErrorInfo)
    assert info.reason.isupper()


def test_a_field_at_fault_is_a_violation_of_bad_request() -> None:
    status = status_from_error(InvalidRequestError("words", reason="WHY", field="options.sparsity"))
    (violation,) = detail(status, error_details_pb2.BadRequest).field_violations
    assert (violation.field, violation.description, violation.reason) == ("options.sparsity", "words", "WHY")


def test_when_to_try_again_is_a_retry_info() -> None:
    status = status_from_error(ResourceExhaustedError("words", retry_after=1.25))
    delay = detail(status, error_details_pb2.RetryInfo).retry_delay
    assert (delay.seconds, delay.nanos) == (1, 250_000_000)


@pytest.mark.parametrize("error", [RuntimeError("/srv/secret"), KeyError("secret"), InternalError("fine")])
def test_the_text_of_an_unknown_exception_is_not_told(error: Exception) -> None:
    status = status_from_error(error)
    assert status.code == code_pb2.INTERNAL
    assert b"secret" not in status.SerializeToString()


@pytest.mark.parametrize("kind", LOCAL_ERRORS)
def test_an_error_that_never_crosses_the_wire_is_internal_there(kind: type[PathlensError]) -> None:
    assert status_from_error(kind("words")).code == code_pb2.INTERNAL


def test_every_error_class_is_covered_here() -> None:
    classes = {value for value in vars(errors).values() if isinstance(value, type) and value is not PathlensError}
    assert {one for one in classes if issubclass(one, PathlensError)} == {*WIRE_ERRORS, *LOCAL_ERRORS}


@pytest.mark.parametrize(("code", "name"), [(code_pb2.ABORTED, "ABORTED"), (code_pb2.UNKNOWN, "UNKNOWN"), (99, "99")])
def test_a_code_that_pathlens_never_sends_is_internal_and_named(code: int, name: str) -> None:
    error = error_from_status(status_pb2.Status(code=code, message="words"))
    assert type(error) is InternalError
    assert (error.message, error.metadata) == ("words", {"code": name})


def test_details_of_others_are_ignored() -> None:
    status = status_from_error(InvalidRequestError("words", reason="WHY"))
    status.details.add().Pack(error_details_pb2.Help())
    status.details.add().Pack(error_details_pb2.BadRequest())
    assert error_from_status(status).reason == "WHY"


def test_the_shared_ok_has_neither_message_nor_details() -> None:
    assert OK.SerializeToString() == b""


def test_an_answer_that_does_not_fit_names_its_size_and_the_limit() -> None:
    error = response_too_large(500, 100, "ask for less")
    assert (error.code, error.reason) == ("RESOURCE_EXHAUSTED", "RESPONSE_TOO_LARGE")
    assert error.metadata == {"bytes": "500", "limit": "100"}
    assert "ask for less" in error.message
