"""What is sent again, how often and after which time."""

import logging
import math
import time
from dataclasses import dataclass
from typing import Any

from tenacity import RetryCallState, retry_if_exception, wait_random_exponential

from pathlens.errors import InvalidRequestError, PathlensError, ResourceExhaustedError, UnavailableError

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RetryPolicy:
    """How a call that failed for the moment is repeated.

    Repeating is safe: every call of the service reads and changes nothing. Repeated is what repetition can help, a
    service that cannot be reached and an answer UNAVAILABLE or RESOURCE_EXHAUSTED that says when to come back
    (`PathlensError.retry_after`). Everything else is raised at once: a wrong request, a message over a limit, a
    deadline that passed, a defect.

    The service's own time is the least wait; to it, or to nothing, a random time is added, at most `first_wait` before
    the first repetition and at most twice as much before each further one (exponential back-off with full jitter). A
    wait that would outlast the deadline of the call is not begun: its timeout covers all attempts together.

    Attributes:
        attempts: Most attempts, the first included.
        first_wait: Longest random wait before the first repetition, in seconds.
        longest_wait: Longest random wait before any.

    Raises:
        InvalidRequestError: A value is out of range.
    """

    attempts: int = 4
    first_wait: float = 0.1
    longest_wait: float = 5.0

    def __post_init__(self) -> None:
        if self.attempts < 1:
            raise _refused(f"attempts is {self.attempts}; expected at least 1, the first.", "attempts")
        # Written so that NaN fails.
        if not 0 < self.first_wait <= self.longest_wait < math.inf:
            raise _refused(
                f"first_wait is {self.first_wait} and longest_wait {self.longest_wait} seconds; expected more than"
                " 0, and the longest no shorter than the first.",
                "first_wait",
            )


DEFAULT_RETRIES = RetryPolicy()
"""What a client does unless it is told otherwise."""


def is_repeatable(error: BaseException) -> bool:
    """Whether an error is one that the same call, repeated, may not meet again."""
    return isinstance(error, UnavailableError | ResourceExhaustedError) and error.retry_after is not None


def repetition(policy: RetryPolicy | None, deadline: float) -> dict[str, Any]:
    """Return the arguments of tenacity's `Retrying` and `AsyncRetrying` that follow a policy.

    Args:
        policy: The policy; None for a single attempt.
        deadline: The moment of `time.monotonic` after which there is no further attempt.
    """
    attempts = 1 if policy is None else policy.attempts
    # tenacity draws between zero and a bound that doubles.
    jitter = wait_random_exponential(
        multiplier=(policy or DEFAULT_RETRIES).first_wait, max=(policy or DEFAULT_RETRIES).longest_wait
    )

    def wait(state: RetryCallState) -> float:
        return max(0.0, _error_of(state).retry_after or 0.0) + jitter(state)

    def stop(state: RetryCallState) -> bool:
        return state.attempt_number >= attempts or time.monotonic() + state.upcoming_sleep >= deadline

    def tell(state: RetryCallState) -> None:
        error = _error_of(state)
        _logger.info(
            "Attempt %d of %d of request %s failed (%s); the next is in %.2f s",
            state.attempt_number,
            attempts,
            error.metadata.get("request_id", ""),
            error.reason,
            state.upcoming_sleep,
        )

    return {
        "retry": retry_if_exception(is_repeatable),
        "wait": wait,
        "stop": stop,
        "before_sleep": tell,
        "reraise": True,
    }


def _error_of(state: RetryCallState) -> PathlensError:
    error = state.outcome.exception() if state.outcome is not None else None
    if not isinstance(error, PathlensError):
        raise TypeError("Only errors of pathlens are repeated.")
    return error


def _refused(message: str, name: str) -> InvalidRequestError:
    return InvalidRequestError(message, reason="OPTION_INVALID", field=name)
