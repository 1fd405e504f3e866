"""What a request is expected to cost, learned from those before it."""

import math
import time
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Self

from pathlens.wire.internal.v1 import worker_pb2
from pathlens.wire.v1 import explanation_service_pb2 as messages

# The newest observation counts a fifth: the mean follows a change within ten requests and forgives one odd one.
_WEIGHT = 0.2
_PROBE_SECONDS = 5.0


@dataclass(frozen=True)
class Work:
    """What is asked of the handler, as far as it tells how long that takes.

    Attributes:
        model: Name of the model.
        methods: What is asked, each once.
        sources: The pathway sources of the explanations, each once.
        items: How many questions are asked together.
        usual: Whether each of them asks for one pass of its source: for one target, without an integral and without the
            linearity check. What does not may cost many times as much.
    """

    model: str
    methods: frozenset[str]
    sources: frozenset[int]
    items: int
    usual: bool = True

    @classmethod
    def of(cls, model: str, calls: Sequence[worker_pb2.WorkerCall]) -> Self:
        """Describe what is asked together.

        Args:
            model: Name of the model.
            calls: The questions.

        Returns:
            Their description.
        """
        methods = frozenset(call.WhichOneof("call") or "" for call in calls)
        sources = frozenset(
            call.explain.options.source or messages.PATHWAY_SOURCE_TRANSFERRED
            for call in calls
            if call.HasField("explain")
        )
        return cls(model, methods, sources, len(calls), all(_is_usual(call) for call in calls))

    @classmethod
    def canary(cls, model: str) -> Self:
        """Describe the gateway's own question, whose cost tells nothing about the questions of others.

        Args:
            model: Name of the model.

        Returns:
            Its description.
        """
        return cls(model, frozenset({"canary"}), frozenset(), 1)


class Costs:
    """Keeps an exponentially weighted mean of the handler's time for each kind of work.

    How fast the work ahead of a request goes away is learned as well, for the gateway does not know how many workers
    share it, nor which of it they skip.

    A mean that is too high would hold up for ever, as it keeps away what could correct it. So of the requests that it
    speaks against, one is tried in every five seconds, and a lower cost than the mean then takes its place.

    Args:
        clock: Tells seconds that never go back.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._means: dict[Work, float] = {}
        # Of each question: seconds per item, by the number of items; and these numbers in order, each with the least of
        # those up to it.
        self._rates: dict[Work, dict[int, float]] = {}
        self._least: dict[Work, tuple[list[int], list[float]]] = {}
        self._paces: dict[str, float] = {}
        self._probed: dict[Work, float] = {}
        self._doubted: set[Work] = set()

    def expected(self, work: Work) -> float | None:
        """Tell how long the handler is expected to take.

        Args:
            work: What is asked.

        Returns:
            Seconds; None as long as such work was never done.
        """
        return self._means.get(work)

    def together(self, work: Work, items: int) -> float | None:
        """Tell how long the handler is expected to take for several questions of one kind at once.

        Larger batches than those that were seen cost in proportion; of all means the most favourable one counts, so
        that an odd request does not keep apart for ever what could prove it wrong.

        Args:
            work: One question.
            items: How many there would be.

        Returns:
            Seconds; None as long as no such question was answered.
        """
        numbers, least = self._least.get(work, ((), ()))
        known = bisect_right(numbers, items)
        return least[known - 1] * items if known else None

    def wait(self, model: str, ahead: float) -> float:
        """Tell how long the work ahead of a request is expected to hold it up.

        Args:
            model: Name of the model.
            ahead: Seconds that the handler is expected to take for this work.

        Returns:
            Seconds; 0 as long as no request of the model had any work ahead.
        """
        return ahead * self._paces.get(model, 0.0)

    def may_probe(self, work: Work) -> bool:
        """Tell whether a request is to be tried against all expectation. One that may is tried, or withdrawn.

        Args:
            work: What is asked.

        Returns:
            Whether none was tried for a while.
        """
        now = self._clock()
        if now - self._probed.get(work, -math.inf) < _PROBE_SECONDS:
            return False
        self._probed[work] = now
        self._doubted.add(work)
        return True

    def withdraw_probe(self, work: Work) -> None:
        """Let another request be tried in the place of one that may, and then was not sent.

        Args:
            work: What was asked.
        """
        self._probed.pop(work, None)
        self._doubted.discard(work)

    def learn(self, work: Work, seconds: float) -> None:
        """Learn from work that was done.

        Args:
            work: What was asked.
            seconds: What the handler took.
        """
        mean = self._means.get(work, seconds)
        learned = mean + _WEIGHT * (seconds - mean)
        if work in self._doubted:
            self._doubted.discard(work)
            learned = min(learned, seconds)
        self._set_mean(work, learned)
        one = replace(work, items=1)
        if one in self._doubted:
            # A probe that went with others; alone it would have cost no more than all of them.
            self._doubted.discard(one)
            self._set_mean(one, min(self._means.get(one, seconds), seconds))

    def learn_wait(self, model: str, ahead: float, seconds: float) -> None:
        """Learn from a request that had work ahead.

        Args:
            model: Name of the model.
            ahead: Seconds that the handler was expected to take for this work.
            seconds: How long the request waited.
        """
        if ahead <= 0.0:
            return
        # More than all the work ahead is no matter of the pace: something passed it, or a mean is wrong.
        pace = min(1.0, max(0.0, seconds) / ahead)
        mean = self._paces.get(model, pace)
        self._paces[model] = mean + _WEIGHT * (pace - mean)

    def _set_mean(self, work: Work, seconds: float) -> None:
        self._means[work] = seconds
        one = replace(work, items=1)
        rates = self._rates.setdefault(one, {})
        rates[work.items] = seconds / work.items
        numbers = sorted(rates)
        self._least[one] = numbers, list(accumulate((rates[number] for number in numbers), min))


def _is_usual(call: worker_pb2.WorkerCall) -> bool:
    if not call.HasField("explain"):
        return True
    options = call.explain.options
    targets = options.targets
    return (
        targets.top_k + len(targets.class_indices) + len(targets.labels) <= 1
        and options.source != messages.PATHWAY_SOURCE_NEURON_INTGRAD
        and not options.HasField("linearity_radius")
    )
