"""Many callers, each with one request at a time."""

import asyncio
import random
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import grpc.aio

from reliability.caller import make, open_channel
from reliability.case import Case, Outcome
from reliability.faults import Faults
from reliability.mix import Habit, Pool
from reliability.promises import Circumstances, Manner

_CHANNELS = 4
_PAUSE_SECONDS = (0.02, 0.12)
# Who was refused comes back a little later, though earlier than RetryInfo asks for.
_REFUSED_PAUSE_SECONDS = (0.1, 0.4)
_MOST_COMPLAINTS = 50


@dataclass
class Tally:
    """What became of all requests.

    Attributes:
        outcomes: How many of each kind ended with each status.
        departures: How many callers left, of each kind.
        complaints: What was wrong, at most 50 of them.
        wrong: How many were wrong.
        latencies: When a prediction that nobody hurried was answered, and how long that took.
    """

    outcomes: Counter[tuple[str, str]] = field(default_factory=Counter)
    departures: Counter[str] = field(default_factory=Counter)
    complaints: list[str] = field(default_factory=list)
    wrong: int = 0
    latencies: list[tuple[float, float]] = field(default_factory=list)

    @property
    def requests(self) -> int:
        """How many requests ended."""
        return self.outcomes.total()


class Load:
    """A closed loop of callers, from construction to `stop`, and the judgement of all that they get.

    Args:
        address: host:port of the gateway.
        callers: How many.
        rng: Source of randomness.
    """

    def __init__(self, address: str, callers: int, rng: random.Random) -> None:
        self.tally = Tally()
        self.faults: Faults | None = None
        self._address = address
        self._rng = rng
        self._channels = [open_channel(address) for _ in range(_CHANNELS)]
        self._stopping_since: float | None = None
        self._callers = callers

    async def run(self, habits: Sequence[Habit], until: Callable[[], bool]) -> None:
        """Let the callers ask until a condition holds, and wait for the end of their last requests.

        Args:
            habits: What they do.
            until: Tells whether it is time to end.
        """
        async with asyncio.TaskGroup() as group:
            for number in range(self._callers):
                group.create_task(self._call(habits, until, self._channels[number % _CHANNELS]))

    def service_stops(self) -> None:
        """Hear that the service is told to end now."""
        self._stopping_since = time.monotonic()

    async def ask(self, pool: Pool) -> bool:
        """Ask once; tell whether the right answer came."""
        return await self._ask(pool, Manner(), self._channels[0]) is None

    async def close(self) -> None:
        """Close the connections."""
        for channel in self._channels:
            await channel.close()

    async def _call(self, habits: Sequence[Habit], until: Callable[[], bool], channel: grpc.aio.Channel) -> None:
        weights = [habit.weight for habit in habits]
        while not until():
            (habit,) = self._rng.choices(habits, weights)
            refusal = await self._ask(habit.pool, habit.manner(self._rng), channel)
            pause = _REFUSED_PAUSE_SECONDS if refusal == "UNAVAILABLE" else _PAUSE_SECONDS
            await asyncio.sleep(self._rng.uniform(*pause))

    async def _ask(self, pool: Pool, manner: Manner, channel: grpc.aio.Channel) -> str | None:
        case = pool.take(self._rng)
        if case is None:
            return "BUSY"
        outcome = await make(case, manner, channel, self._address)
        pool.put_back(case)
        self._judge(case, manner, outcome)
        return None if outcome.refusal is None else outcome.refusal.code

    def _judge(self, case: Case, manner: Manner, outcome: Outcome) -> None:
        faults, stopping = self.faults, self._stopping_since
        circumstances = Circumstances(
            manner,
            fault=faults is not None and faults.overlap(outcome.began, outcome.ended),
            stopping=stopping is not None and outcome.ended >= stopping,
        )
        complaint = case.complaint(outcome, circumstances)
        tally = self.tally
        tally.outcomes[case.kind, "OK" if outcome.refusal is None else outcome.refusal.name] += 1
        tally.departures[case.kind] += manner.leaves
        if complaint is not None:
            tally.wrong += 1
            if len(tally.complaints) < _MOST_COMPLAINTS:
                tally.complaints.append(f"{case.kind} {manner} {circumstances}: {complaint}")
        elif outcome.refusal is None and case.kind in ("Predict", "Explain"):
            if faults is not None:
                faults.answered(outcome.began, outcome.ended)
            if case.kind == "Predict" and manner == Manner():
                tally.latencies.append((outcome.ended, outcome.ended - outcome.began))
