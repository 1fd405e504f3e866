"""A run of the service under load and faults, from its start to its drain."""

import asyncio
import gc
import random
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from pathlens.bundle.archive import pack
from pathlens.bundle.store import load_bundle, save_bundle
from reliability.caller import open_channel
from reliability.faults import Faults, Kill
from reliability.health_watch import HealthWatch
from reliability.load import Load, Tally
from reliability.mix import Mix, make_mix
from reliability.resources import Resources
from reliability.served_process import ServedProcess
from tiny_bundle import tiny_bundle

MAX_IMAGE_BYTES = 2**20
MAX_MESSAGE_BYTES = 5 * 2**18
# Small limits, so that they are reached; a small heap, so that it is level soon.
SETTINGS = {
    "GATEWAY__MAX_IMAGE_BYTES": MAX_IMAGE_BYTES,
    "GATEWAY__MAX_MESSAGE_BYTES": MAX_MESSAGE_BYTES,
    "GATEWAY__MAX_IN_FLIGHT_BYTES": 16 * 2**20,
    "TORCHSERVE__MAX_MESSAGE_BYTES": MAX_MESSAGE_BYTES,
    "TORCHSERVE__HEAP_MEGABYTES": 160,
    "TORCHSERVE__MAX_RESTARTS": 1000,
}

_PATIENCE_SECONDS = 60.0
# Callers go on asking while the service drains.
_DRAIN_LOAD_SECONDS = 0.3
# Until the system has taken back what the last processes held.
_SETTLE_SECONDS = 2.0

Report = Callable[[str, float], None]
"""Is told what goes on, and which part of the run is done."""


@dataclass(frozen=True)
class Plan:
    """How long what takes.

    Attributes:
        storm_seconds: All habits of callers, and kills.
        departures_seconds: Callers who do nothing but leave, and no kills.
        calm_seconds: All habits of callers, and no kills.
        callers: How many.
        worker_pause: Least and most seconds between a recovery and the kill of a worker.
    """

    storm_seconds: float
    departures_seconds: float
    calm_seconds: float
    callers: int = 20
    worker_pause: tuple[float, float] = (4.0, 14.0)

    @classmethod
    def short(cls) -> "Plan":
        """Less than a minute."""
        return cls(25.0, 8.0, 10.0, callers=16, worker_pause=(1.5, 4.0))

    @classmethod
    def of_minutes(cls, minutes: float) -> "Plan":
        """So long: half of it with kills, an eighth of nothing but departures."""
        seconds = 60.0 * minutes
        return cls(seconds / 2, seconds / 8, seconds * 3 / 8)

    @property
    def seconds(self) -> float:
        """Of the whole run."""
        return self.storm_seconds + self.departures_seconds + self.calm_seconds


@dataclass(frozen=True)
class Phase:
    """A part of the run, on the monotonic clock."""

    name: str
    began: float
    ended: float


@dataclass
class Observations:
    """What a run has shown.

    Attributes:
        seed: Of everything random.
        began: When the load began, on the monotonic clock.
        phases: Parts of the run.
        tally: What became of the requests.
        kills: What was killed.
        resources: Memory, descriptors and processes.
        watches: What health said.
        drain_seconds: From SIGTERM to the end of the process.
        exit_status: Of `pathlens serve`; None if it had to be killed.
        leftovers: What was left of it.
        log: What it wrote.
    """

    seed: int
    began: float
    resources: Resources
    tally: Tally = field(default_factory=Tally)
    phases: list[Phase] = field(default_factory=list)
    kills: list[Kill] = field(default_factory=list)
    watches: list[HealthWatch] = field(default_factory=list)
    drain_seconds: float = 0.0
    exit_status: int | None = None
    leftovers: list[str] = field(default_factory=list)
    log: str = ""

    def phase(self, name: str) -> Phase | None:
        """Find a part of the run; None if it was not reached."""
        return next((phase for phase in self.phases if phase.name == name), None)


class Chaos:
    """Serves the test's tiny classifier and lets callers and faults loose on it.

    Args:
        plan: How long what takes.
        seed: Of everything random: requests, manners of the callers, and kills.
        folder: An empty folder to work in.
        report: Is told how far the run is.
    """

    def __init__(self, plan: Plan, seed: int, folder: Path, report: Report = lambda _words, _part: None) -> None:
        self._plan = plan
        self._seed = seed
        self._folder = folder
        self._report = report
        self._interrupted = False

    @property
    def interrupted(self) -> bool:
        """Whether the run was ended early."""
        return self._interrupted

    def interrupt(self) -> None:
        """End the run early, but in order: with the drain and all that is measured there."""
        self._interrupted = True

    async def run(self) -> Observations:
        """Run; everything that was started has ended afterwards.

        Returns:
            What was seen.
        """
        self._report("Computing the right answers", 0.0)
        bundle = self._folder / "bundle"
        save_bundle(tiny_bundle(), bundle)
        archive = await asyncio.to_thread(pack, bundle, self._folder)
        explainer = load_bundle(bundle).explainer(version="1.0")
        mix = await asyncio.to_thread(make_mix, explainer, self._seed, MAX_IMAGE_BYTES, MAX_MESSAGE_BYTES)
        self._report("Starting the service", 0.0)
        with await asyncio.to_thread(ServedProcess, archive, self._folder, SETTINGS) as served:
            observations = Observations(self._seed, time.monotonic(), Resources(served))
            load = Load(served.address, self._plan.callers, random.Random(self._seed))
            observations.tally = load.tally
            async with open_channel(served.address) as channel:
                watches = [HealthWatch(channel, name) for name in ("readiness", "liveness")]
                observations.watches = watches
                runs = (observations.resources.run(), *(watch.run() for watch in watches))
                background = [asyncio.create_task(run) for run in runs]
                try:
                    await self._phases(mix, load, served, observations)
                    await self._drain(mix, load, served, observations)
                finally:
                    for task in background:
                        task.cancel()
                    await asyncio.wait(background)
                    await load.close()
            observations.log = served.log.read_text()
        return observations

    async def _phases(self, mix: Mix, load: Load, served: ServedProcess, observations: Observations) -> None:
        plan = self._plan
        faults = Faults(served, lambda: load.ask(mix.probe), random.Random(self._seed + 1), plan.worker_pause)
        load.faults = faults
        observations.kills = faults.kills
        for name, habits, seconds in (
            ("storm", mix.everything, plan.storm_seconds),
            ("departures", mix.departures, plan.departures_seconds),
            ("calm", mix.everything, plan.calm_seconds),
        ):
            # Streams that were left lie in reference cycles of this process, and hold their connections to the gateway.
            gc.collect()
            began = time.monotonic()
            killing = asyncio.create_task(faults.run(seconds)) if name == "storm" else None
            end = began + seconds

            def ended(killing: asyncio.Task[None] | None = killing, end: float = end) -> bool:
                return (self._interrupted or time.monotonic() > end) if killing is None else killing.done()

            asking = asyncio.create_task(load.run(habits, ended))
            while not asking.done():
                if self._interrupted:
                    faults.stop()
                done = (time.monotonic() - observations.began) / plan.seconds
                self._report(f"{name}: {load.tally.requests} requests, {len(faults.kills)} kills", min(1.0, done))
                await asyncio.wait({asking}, timeout=0.25)
            asking.result()
            if killing is not None:
                killing.result()
            observations.phases.append(Phase(name, began, time.monotonic()))
            if self._interrupted:
                return

    async def _drain(self, mix: Mix, load: Load, served: ServedProcess, observations: Observations) -> None:
        """End the service while callers go on asking."""
        self._report("Draining", 1.0)
        began = time.monotonic()
        end_of_load = began + 2 * _DRAIN_LOAD_SECONDS
        asking = asyncio.create_task(load.run(mix.everything, lambda: time.monotonic() > end_of_load))
        await asyncio.sleep(_DRAIN_LOAD_SECONDS)
        told = time.monotonic()
        load.service_stops()
        served.terminate()
        observations.exit_status = await asyncio.to_thread(served.status, _PATIENCE_SECONDS)
        observations.drain_seconds = time.monotonic() - told
        await asking
        end = time.monotonic() + _SETTLE_SECONDS
        while (leftovers := await asyncio.to_thread(served.leftovers)) and time.monotonic() < end:
            await asyncio.sleep(0.1)
        observations.leftovers = leftovers
        observations.phases.append(Phase("drain", began, time.monotonic()))


async def run_interruptibly(chaos: Chaos, signal_number: int) -> Observations:
    """Run; a signal ends the run early, and in order.

    Args:
        chaos: What is run.
        signal_number: The signal.

    Returns:
        What was seen.
    """
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal_number, chaos.interrupt)
    try:
        return await chaos.run()
    finally:
        with suppress(RuntimeError):
            loop.remove_signal_handler(signal_number)
