"""Every error that pathlens raises on purpose, each with its gRPC code and machine-readable reason.

PathlensError
├── InvalidRequestError       INVALID_ARGUMENT     the request itself is wrong; repeating it cannot help
├── NotFoundError             NOT_FOUND            no such model or class
├── FailedPreconditionError   FAILED_PRECONDITION  the served bundle lacks what was asked for
├── ResourceExhaustedError    RESOURCE_EXHAUSTED   queue full, memory full, message over a limit
├── UnavailableError          UNAVAILABLE          the worker is restarting; try again
├── DeadlineExceededError     DEADLINE_EXCEEDED    the caller's time ran out
├── UnauthenticatedError      UNAUTHENTICATED      the caller sent no valid token
├── InternalError             INTERNAL             a defect of ours
├── CaptureError              -                    a classifier cannot be captured
├── ExportError               -                    an explanation cannot be written as an ONNX graph
├── BundleError               -                    a bundle or archive is damaged, foreign or of another version
├── ImagesError               -                    images or labels given to a command cannot be used
├── FitError                  -                    fitting cannot go on with what it was given
├── EvaluationError           -                    an evaluation cannot go on with what it was given
├── ExplainerFileError        -                    an exported explainer is damaged, foreign or of another bundle
└── ServerStartError          -                    TorchServe or the gateway did not come up

The classes marked "-" are raised by the library and the command line and never cross the wire. This module imports
nothing, so that every room may use it; `pathlens.wire.status` turns the errors into `google.rpc.Status` and back.
"""

from collections.abc import Mapping

DOMAIN = "pathlens"


class PathlensError(Exception):
    """Base of all errors of pathlens.

    Args:
        message: One sentence that names the value at fault and the remedy.
        reason: UPPER_SNAKE_CASE constant for programs (`google.rpc.ErrorInfo.reason`).
        field: Path of the request field at fault, when there is one.
        metadata: Every dynamic value of the message, as strings.
        retry_after: Seconds after which repeating the request may succeed.
    """

    code = "INTERNAL"
    default_reason = "INTERNAL"

    def __init__(
        self,
        message: str,
        *,
        reason: str = "",
        field: str = "",
        metadata: Mapping[str, object] | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.reason = reason or self.default_reason
        self.field = field
        self.metadata = {key: str(value) for key, value in (metadata or {}).items()}
        self.retry_after = retry_after


class InvalidRequestError(PathlensError):
    """The request is wrong in itself."""

    code = "INVALID_ARGUMENT"
    default_reason = "INVALID_REQUEST"


class NotFoundError(PathlensError):
    """No such model, version or class."""

    code = "NOT_FOUND"
    default_reason = "NOT_FOUND"


class FailedPreconditionError(PathlensError):
    """The served bundle cannot do what was asked, although the request is well formed."""

    code = "FAILED_PRECONDITION"
    default_reason = "FAILED_PRECONDITION"


class ResourceExhaustedError(PathlensError):
    """A queue, a memory or a message limit is full."""

    code = "RESOURCE_EXHAUSTED"
    default_reason = "RESOURCE_EXHAUSTED"


class UnavailableError(PathlensError):
    """The service cannot answer at the moment."""

    code = "UNAVAILABLE"
    default_reason = "UNAVAILABLE"


class DeadlineExceededError(PathlensError):
    """The caller's deadline passed before the answer was ready."""

    code = "DEADLINE_EXCEEDED"
    default_reason = "DEADLINE_EXCEEDED"


class UnauthenticatedError(PathlensError):
    """The caller did not prove who it is."""

    code = "UNAUTHENTICATED"
    default_reason = "UNAUTHENTICATED"


class InternalError(PathlensError):
    """A defect of the service; the details are in its log and not in the message."""


class CaptureError(PathlensError):
    """A classifier cannot be captured; the message names the construct and the remedy."""

    default_reason = "CAPTURE_FAILED"


class ExportError(PathlensError):
    """An explanation cannot be written as an ONNX graph; the message names the operator or the limit."""

    default_reason = "EXPORT_FAILED"


class BundleError(PathlensError):
    """A bundle or model archive is damaged, foreign or of another schema version."""

    default_reason = "BUNDLE_INVALID"


class ImagesError(PathlensError):
    """The images given to a command, or what is said about them, cannot be used."""

    default_reason = "IMAGES_INVALID"


class FitError(PathlensError):
    """Fitting cannot go on with the classifier or the images it was given."""

    default_reason = "FIT_FAILED"


class EvaluationError(PathlensError):
    """An evaluation cannot go on with the bundle, the images or the settings it was given."""

    default_reason = "EVALUATION_FAILED"


class ExplainerFileError(PathlensError):
    """An exported explainer is damaged, is none, or does not belong to the bundle it is compared with."""

    default_reason = "EXPLAINER_INVALID"


class ServerStartError(PathlensError):
    """TorchServe or the gateway did not come up."""

    default_reason = "SERVER_START_FAILED"
