"""Memory and descriptors of the service's processes over time, and which processes there were."""

import asyncio
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import psutil

from reliability.served_process import ServedProcess

Role = Literal["gateway", "jvm", "worker"]
ROLES: tuple[Role, ...] = ("gateway", "jvm", "worker")

_SAMPLE_SECONDS = 1.0
_LOOKS_PER_SAMPLE = 4


@dataclass(frozen=True)
class Sample:
    """What one process had at one moment.

    Attributes:
        at: The moment, on the monotonic clock.
        role: Which part of the service it is.
        pid: Its process id.
        resident_bytes: Memory in RAM.
        descriptors: Open file descriptors.
    """

    at: float
    role: Role
    pid: int
    resident_bytes: int
    descriptors: int


@dataclass
class Life:
    """A JVM or a worker, from when it was first seen to when it was last seen.

    Attributes:
        role: Which part of the service it is.
        pid: Its process id.
        parent: Process id of the worker's JVM, or of the JVM's gateway.
        first: When it was first seen.
        last: When it was last seen.
    """

    role: Role
    pid: int
    parent: int
    first: float
    last: float


@dataclass
class Resources:
    """Watches the processes of a service, every second, from `run` until that is cancelled.

    Args:
        served: The service.
    """

    served: ServedProcess
    samples: list[Sample] = field(default_factory=list)
    lives: dict[int, Life] = field(default_factory=dict)

    async def run(self) -> None:
        """Watch."""
        while True:
            for look in range(_LOOKS_PER_SAMPLE):
                await asyncio.to_thread(self._look, measure=look == 0)
                await asyncio.sleep(_SAMPLE_SECONDS / _LOOKS_PER_SAMPLE)

    def unexplained_ends(self, killed: Mapping[int, float], since: float, until: float) -> list[Life]:
        """Find processes that ended though nobody had killed them, nor their parent.

        Args:
            killed: Process ids that were killed, and when.
            since: Beginning of the interval that is looked at.
            until: Its end.

        Returns:
            Those that were last seen in the interval, and another one of their role later.
        """
        return [
            life
            for life in self.lives.values()
            if since <= life.last <= until
            and life.pid not in killed
            and life.parent not in killed
            and any(other.role == life.role and other.first > life.last for other in self.lives.values())
        ]

    def _look(self, *, measure: bool) -> None:
        now = time.monotonic()
        jvm = self.served.jvm()
        found: list[tuple[Role, psutil.Process]] = [("worker", worker) for worker in self.served.workers()]
        if jvm is not None:
            found.append(("jvm", jvm))
        for role, process in found:
            parent = self.served.gateway.pid if role == "jvm" or jvm is None else jvm.pid
            self.lives.setdefault(process.pid, Life(role, process.pid, parent, now, now)).last = now
        if measure:
            self.samples.extend(
                filter(None, (_sample(role, one) for role, one in [*found, ("gateway", self.served.gateway)]))
            )


def _sample(role: Role, process: psutil.Process) -> Sample | None:
    try:
        return Sample(time.monotonic(), role, process.pid, process.memory_info().rss, process.num_fds())
    except psutil.Error:
        return None
