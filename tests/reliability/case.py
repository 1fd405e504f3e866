"""A request whose right answer is known."""

from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass, field

from pathlens.wire.status import error_from_status
from pathlens.wire.v1 import explanation_service_pb2 as pb
from reliability.promises import Circumstances, Refusal, refusal_is_right

Check = Callable[[bytes, Circumstances], str | None]
"""Says what is wrong with an answer; None if nothing is."""


@dataclass(frozen=True)
class Outcome:
    """How a request ended.

    Attributes:
        responses: What was received.
        refusal: The status; None for OK.
        began: When it was sent, on the monotonic clock.
        ended: When it ended.
    """

    responses: Sequence[bytes]
    refusal: Refusal | None
    began: float
    ended: float


@dataclass(frozen=True)
class Case:
    """What is sent, and what may come back.

    Attributes:
        kind: Under which name it is counted.
        method: Which call of the service.
        payloads: Serialised requests: one, or those of a stream.
        check: Looks at an answer; None where no answer is right.
        refusals: Names of the statuses that are right whatever happens.
        needs_worker: Whether the gateway alone cannot end it.
    """

    kind: str
    method: str
    payloads: tuple[bytes, ...]
    check: Check | None = None
    refusals: Set[str] = frozenset()
    needs_worker: bool = True

    def complaint(self, outcome: Outcome, circumstances: Circumstances) -> str | None:
        """Judge an outcome.

        Args:
            outcome: How it ended.
            circumstances: What happened meanwhile.

        Returns:
            What is wrong, in words; None if it is right.
        """
        refusal = outcome.refusal
        if refusal is not None and not refusal_is_right(refusal, self.refusals, self.needs_worker, circumstances):
            return f"ended with {refusal.name}: {refusal.message}"
        for response in outcome.responses:
            fault = "was answered" if self.check is None else self.check(response, circumstances)
            if fault is not None:
                return fault
        return self._count_complaint(outcome)

    def _count_complaint(self, outcome: Outcome) -> str | None:
        if outcome.refusal is None and len(outcome.responses) != len(self.payloads):
            return f"ended with OK after {len(outcome.responses)} of {len(self.payloads)} answers"
        return None


@dataclass(frozen=True)
class Item:
    """An image of a batch or stream.

    Attributes:
        check: Looks at its answer.
        refusals: Names of the statuses that are right whatever happens.
    """

    check: Callable[[pb.ExplainResponse], str | None] | None
    refusals: Set[str] = frozenset()

    def complaint(self, result: pb.ExplainResult, circumstances: Circumstances) -> str | None:
        """Judge the result of the item; as `Case.complaint`."""
        if result.status.code:
            error = error_from_status(result.status)
            refusal = Refusal(error.code, error.reason, error.retry_after, error.message)
            if not refusal_is_right(refusal, self.refusals, True, circumstances):
                return f"item ended with {refusal.name}: {refusal.message}"
            return None
        return "item was answered" if self.check is None else self.check(result.response)


@dataclass(frozen=True)
class StreamCase(Case):
    """A stream; every answer carries the id of its item, and every id comes once.

    Attributes:
        items: By their ids.
    """

    items: dict[str, Item] = field(default_factory=dict)

    def complaint(self, outcome: Outcome, circumstances: Circumstances) -> str | None:
        """Judge an outcome, as every case does."""
        seen: set[str] = set()
        for content in outcome.responses:
            response = pb.StreamExplainResponse.FromString(content)
            if response.id not in self.items or response.id in seen:
                return f"answered id {response.id!r}, which was not asked for, or was answered before"
            seen.add(response.id)
            fault = self.items[response.id].complaint(response.result, circumstances)
            if fault is not None:
                return fault
        refusal = outcome.refusal
        if refusal is not None and not refusal_is_right(refusal, self.refusals, False, circumstances):
            return f"stream ended with {refusal.name}: {refusal.message}"
        return self._count_complaint(outcome)
