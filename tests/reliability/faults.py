"""Kills workers and the JVM at random moments, and measures when the service is well again."""

import asyncio
import math
import random
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Literal

import psutil

from reliability.served_process import ServedProcess

Victim = Literal["worker", "jvm"]

_POLL_SECONDS = 0.05
_LOST_SECONDS = 60.0
# Calls that met the dead process may hear of it a little later than others get answers again.
_ECHO_SECONDS = 1.0
# A restart within a minute of health after the last one waits on purpose, longer each time.
JVM_PAUSE_SECONDS = (62.0, 75.0)


@dataclass
class Kill:
    """A process that was killed.

    Attributes:
        victim: What it was.
        pid: Its process id.
        at: When, on the monotonic clock.
        recovered: When the first right answer came to a request that was sent after the kill; infinite until then.
    """

    victim: Victim
    pid: int
    at: float
    recovered: float = math.inf

    @property
    def seconds(self) -> float:
        """How long it took until the service was well again."""
        return self.recovered - self.at


class Faults:
    """Kills, one process at a time: the next one after the service has recovered and a random pause.

    Args:
        served: The service.
        ask: Asks for a prediction; tells whether the right one came.
        rng: Source of the intervals.
        worker_pause: Least and most seconds between a recovery and the kill of a worker.
    """

    def __init__(
        self,
        served: ServedProcess,
        ask: Callable[[], Awaitable[bool]],
        rng: random.Random,
        worker_pause: tuple[float, float],
    ) -> None:
        self.kills: list[Kill] = []
        self._served = served
        self._ask = ask
        self._rng = rng
        self._worker_pause = worker_pause
        self._stopping = asyncio.Event()

    async def run(self, seconds: float) -> None:
        """Kill for so long, until a worker and a JVM were killed, or until `stop`.

        Returns when the service has recovered from the last kill.
        """
        end = time.monotonic() + seconds
        next_jvm = time.monotonic() + self._pause()
        while await self._wait(self._pause()):
            if time.monotonic() > end and {"worker", "jvm"} == {kill.victim for kill in self.kills}:
                return
            victim: Victim = "jvm" if time.monotonic() >= next_jvm else "worker"
            process = await asyncio.to_thread(self._find, victim)
            if process is None:
                continue
            await self._kill(victim, process)
            if victim == "jvm":
                next_jvm = time.monotonic() + self._rng.uniform(*JVM_PAUSE_SECONDS)

    def stop(self) -> None:
        """Kill no more."""
        self._stopping.set()

    def answered(self, began: float, ended: float) -> None:
        """Hear of a right answer of the model.

        Args:
            began: When it was asked.
            ended: When it came.
        """
        if self.kills and self.kills[-1].at < began:
            self.kills[-1].recovered = min(self.kills[-1].recovered, ended)

    def overlap(self, began: float, ended: float) -> bool:
        """Tell whether the service was damaged at any moment of an interval."""
        return any(kill.at <= ended and began <= kill.recovered + _ECHO_SECONDS for kill in self.kills)

    def _pause(self) -> float:
        return self._rng.uniform(*self._worker_pause)

    async def _wait(self, seconds: float) -> bool:
        with suppress(TimeoutError):
            await asyncio.wait_for(self._stopping.wait(), seconds)
        return not self._stopping.is_set()

    async def _kill(self, victim: Victim, process: psutil.Process) -> None:
        kill = Kill(victim, process.pid, time.monotonic())
        self.kills.append(kill)
        process.kill()
        while kill.recovered == math.inf and time.monotonic() < kill.at + _LOST_SECONDS:
            began = time.monotonic()
            if await self._ask():
                self.answered(began, time.monotonic())
            else:
                await asyncio.sleep(_POLL_SECONDS)

    def _find(self, victim: Victim) -> psutil.Process | None:
        if victim == "jvm":
            return self._served.jvm()
        workers = self._served.workers()
        return self._rng.choice(workers) if workers else None
