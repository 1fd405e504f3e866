"""What surrounds every call: its id, its deadline, its authorisation, its repetition and its errors."""

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import grpc
from google.protobuf.message import DecodeError, Message

from pathlens.client.calls import Answer, Call, stream_answer
from pathlens.client.connection import Connection
from pathlens.client.failures import error_from_failure, returned_request_id
from pathlens.client.retry import RetryPolicy, repetition
from pathlens.errors import InternalError, InvalidRequestError, PathlensError
from pathlens.explanation import ExplanationResult
from pathlens.wire.request_id import REQUEST_ID_KEY, is_request_id, new_request_id
from pathlens.wire.v1 import explanation_service_pb2 as pb

# gRPC counts deadlines in steps that overflow not far above; such a call would fail at once.
_LONGEST_TIMEOUT = 1e7


class Invocation:
    """One call, from its first attempt to its last.

    Args:
        connection: The way to the service.
        timeout: Seconds for all attempts together; None for any time.
        retries: How the call is repeated; None for not at all.
        request_id: Names the call in the service's log; None for a new random one. All attempts have the same.

    Raises:
        InvalidRequestError: The timeout or the id is out of range.
    """

    def __init__(
        self, connection: Connection, timeout: float | None, retries: RetryPolicy | None, request_id: str | None
    ) -> None:
        if request_id is not None and not is_request_id(request_id):
            raise InvalidRequestError(
                f"request_id is {request_id[:128]!r}; expected 1 to 128 letters of ASCII, digits, '.', '_' and '-'.",
                reason="OPTION_INVALID",
                field="request_id",
            )
        self.request_id = new_request_id() if request_id is None else request_id
        self._connection = connection
        self._timeout = None if timeout is None else checked_timeout(timeout)
        self._deadline = math.inf if timeout is None else time.monotonic() + timeout
        self._retries = retries

    def attempt(self) -> dict[str, Any]:
        """Return the keywords with which a stub makes the next attempt: the time that is left, and who asks.

        Raises:
            InvalidRequestError: The file of the token holds none.
            OSError: It cannot be read.
        """
        metadata, credentials = self._connection.authorization()
        return {
            "timeout": None if self._timeout is None else max(0.0, self._deadline - time.monotonic()),
            "metadata": ((REQUEST_ID_KEY, self.request_id), *metadata),
            "credentials": credentials,
        }

    def repetition(self) -> dict[str, Any]:
        """Return the arguments of tenacity's `Retrying` and `AsyncRetrying`."""
        return repetition(self._retries, self._deadline)

    @contextmanager
    def errors(self) -> Iterator[None]:
        """Turn what gRPC raises into errors of pathlens, all with the id of the call in their metadata."""
        try:
            yield
        except grpc.RpcError as failure:
            error = error_from_failure(failure, self._connection.address, self._timeout)
            # A proxy may have given the call another id, which is then the one in the service's log.
            error.metadata.setdefault("request_id", returned_request_id(failure) or self.request_id)
            raise error from failure
        except PathlensError as error:
            self.named(error)
            raise

    def answer(self, call: Call[Answer], response: Message) -> Answer:
        """Read the response to a call; errors in it, of single images, get the id of the call too.

        Raises:
            InternalError: It is not what this call is answered with.
        """
        with _well_formed(call.method):
            answer = call.read(response)
        for part in answer if isinstance(answer, list) else ():
            if isinstance(part, PathlensError):
                self.named(part)
        return answer

    def stream_answer(self, response: pb.StreamExplainResponse) -> tuple[int, ExplanationResult | PathlensError]:
        """Read the answer to an item of a stream, with its position; an error gets the id of the call.

        Raises:
            InternalError: It is not what an item is answered with.
        """
        with _well_formed("StreamExplain"):
            position, answer = stream_answer(response)
        if isinstance(answer, PathlensError):
            self.named(answer)
        return position, answer

    def named(self, error: PathlensError) -> PathlensError:
        """Add the id of the call to an error, unless the service has named it there already."""
        error.metadata.setdefault("request_id", self.request_id)
        return error


@contextmanager
def _well_formed(method: str) -> Iterator[None]:
    try:
        yield
    except (ValueError, DecodeError, InvalidRequestError) as error:
        # What reads messages blames whoever sent them, which here is the service.
        raise InternalError(
            f"The service answered {method} with something else than an answer to it: check that both sides have the"
            " same version of pathlens.",
            reason="RESPONSE_MALFORMED",
            metadata={"method": method},
        ) from error


def checked_timeout(timeout: float) -> float:
    """Return a timeout in seconds if it is one.

    Raises:
        InvalidRequestError: It is not more than zero, or beyond what gRPC can count.
    """
    # Written so that NaN fails.
    if not 0 < timeout <= _LONGEST_TIMEOUT:
        raise InvalidRequestError(
            f"timeout is {timeout} seconds; expected more than 0 and at most {_LONGEST_TIMEOUT:.0f}.",
            reason="OPTION_INVALID",
            field="timeout",
        )
    return timeout
