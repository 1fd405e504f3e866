"""Which outcome of a request is right, given what was asked, how the caller behaved and what happened meanwhile."""

from collections.abc import Set
from dataclasses import dataclass

NO_OUTCOME = "NONE"
"""In place of a code: the request was never answered."""

SLOWEST_SECONDS = 60.0
"""After this time a request counts as never answered."""


@dataclass(frozen=True)
class Manner:
    """How a caller behaves.

    Attributes:
        deadline: Seconds that the call may take; None without a deadline.
        leaves_after: Seconds after which the caller cancels.
        leaves_after_answers: How many answers of a stream the caller reads before cancelling.
        reading_pause: Seconds between two answers of a stream that the caller reads.
        hangs_up: Whether leaving means closing the connection and not the call alone.
    """

    deadline: float | None = None
    leaves_after: float | None = None
    leaves_after_answers: int | None = None
    reading_pause: float = 0.0
    hangs_up: bool = False

    @property
    def leaves(self) -> bool:
        """Whether the caller means to leave before the end."""
        return self.leaves_after is not None or self.leaves_after_answers is not None


@dataclass(frozen=True)
class Circumstances:
    """What happened while a request was under way.

    Attributes:
        manner: How its caller behaved.
        fault: Whether a process was killed, or was coming back.
        stopping: Whether the service had been told to end.
    """

    manner: Manner = Manner()
    fault: bool = False
    stopping: bool = False


@dataclass(frozen=True)
class Refusal:
    """A status that is not OK: of a call, or of an item of a batch or stream.

    Attributes:
        code: Name of the gRPC code, or `NO_OUTCOME`.
        reason: Reason of its ErrorInfo; empty without one.
        retry_after: Seconds of its RetryInfo; None without one.
        message: What it says.
    """

    code: str
    reason: str = ""
    retry_after: float | None = None
    message: str = ""

    @property
    def name(self) -> str:
        """Code and reason."""
        return f"{self.code} {self.reason}".strip()


def refusal_is_right(refusal: Refusal, own: Set[str], needs_worker: bool, circumstances: Circumstances) -> bool:
    """Tell whether a request may end with this status.

    | status | is right |
    |---|---|
    | one of the request's own, such as INVALID_ARGUMENT for a truncated image | always |
    | UNAVAILABLE WORKER_RESTARTING or TORCHSERVE_RESTARTING with RetryInfo | if it needs a worker, around a fault |
    | RESOURCE_EXHAUSTED QUEUE_FULL with RetryInfo | if it needs a worker |
    | DEADLINE_EXCEEDED | if the caller set a deadline |
    | CANCELLED | if the caller left |
    | UNAVAILABLE STOPPING with RetryInfo, and UNAVAILABLE without details | once the service was told to end |

    Nothing else is, and never INTERNAL or UNKNOWN.

    Args:
        refusal: How it ended.
        own: Names of the statuses that what was asked deserves.
        needs_worker: Whether the answer cannot come from the gateway alone.
        circumstances: What happened meanwhile.

    Returns:
        Whether it is right.
    """
    if refusal.name in own:
        return True
    if refusal.name in ("UNAVAILABLE WORKER_RESTARTING", "UNAVAILABLE TORCHSERVE_RESTARTING"):
        return needs_worker and circumstances.fault and refusal.retry_after is not None
    if refusal.name == "RESOURCE_EXHAUSTED QUEUE_FULL":
        return needs_worker and refusal.retry_after is not None
    if refusal.code == "DEADLINE_EXCEEDED":
        return circumstances.manner.deadline is not None
    if refusal.code == "CANCELLED":
        return circumstances.manner.leaves
    if refusal.name == "UNAVAILABLE STOPPING":
        return circumstances.stopping and refusal.retry_after is not None
    # Nobody listens any more.
    return refusal.name == "UNAVAILABLE" and circumstances.stopping
