"""Which promises a run has kept."""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from statistics import median

from reliability.chaos import Observations
from reliability.faults import Kill
from reliability.promises import NO_OUTCOME
from reliability.resources import ROLES, Role, Sample
from reliability.trend import Trend

RECOVERY_SECONDS = 5.0
"""In which the service is well again after a kill."""

DRAIN_SECONDS = 15.0
"""In which it ends: the longest stream that is read slowly takes six."""

MEMORY, DESCRIPTORS = "MiB", "descriptors"

# New processes fill caches and pools; a quarter of the interval, for a minute at the most.
_WARM_UP = 0.25
_LONGEST_WARM_UP_SECONDS = 60.0
# What may be added over the interval, beyond two standard errors: bytes as a part of the mean, descriptors as they are.
# Requests in flight hold memory, and there are more of them when the machine has less time for them.
_MEMORY_GROWTH = 0.1
_FEWEST_MEMORY_SECONDS = 60.0
_DESCRIPTOR_GROWTH = 3.0
_ECHO_SECONDS = 1.0
_FAULTY_CODES = ("INTERNAL", "UNKNOWN", NO_OUTCOME)


@dataclass(frozen=True)
class Promise:
    """Something that was promised, and what was seen.

    Attributes:
        name: What was promised.
        kept: Whether it was.
        seen: What was seen.
    """

    name: str
    kept: bool
    seen: str


def judge(observations: Observations, recovery_seconds: float = RECOVERY_SECONDS) -> list[Promise]:
    """Judge a run.

    Args:
        observations: What was seen.
        recovery_seconds: In which the service shall be well again after a kill.

    Returns:
        All promises.
    """
    tally = observations.tally
    faulty = sum(count for (_, status), count in tally.outcomes.items() if status.split()[0] in _FAULTY_CODES)
    unanswered = sum(count for (_, status), count in tally.outcomes.items() if status == NO_OUTCOME)
    return [
        Promise("every request ends", unanswered == 0, f"{unanswered} of {tally.requests} did not"),
        Promise(
            "every answer and every status is right",
            tally.wrong == 0 and tally.requests > 0,
            f"{tally.wrong} of {tally.requests} wrong" + "".join(f"\n{one}" for one in tally.complaints[:5]),
        ),
        Promise("nothing is INTERNAL or UNKNOWN", faulty == 0, f"{faulty} of {tally.requests}"),
        _recovery(observations.kills, recovery_seconds),
        _no_restarts(observations),
        _health(observations),
        *_levels(observations),
        Promise(
            "SIGTERM drains, and it exits with 0",
            observations.exit_status == 0 and observations.drain_seconds < DRAIN_SECONDS,
            f"status {observations.exit_status} after {observations.drain_seconds:.1f} s",
        ),
        Promise("nothing is left", not observations.leftovers, ", ".join(observations.leftovers) or "nothing"),
        _quiet_log(observations),
    ]


def describe(kills: Iterable[Kill]) -> str:
    """Put the recoveries from kills into words."""
    seconds = sorted(kill.seconds for kill in kills)
    return f"{len(seconds)} kills, p50 {median(seconds):.2f} s, max {seconds[-1]:.2f} s" if seconds else "no kills"


def points(
    samples: Iterable[Sample], role: Role, quantity: Callable[[Sample], float], since: float, until: float
) -> list[tuple[float, float]]:
    """Select what one part of the service had in an interval."""
    return [(one.at, quantity(one)) for one in samples if one.role == role and since <= one.at <= until]


def megabytes(sample: Sample) -> float:
    """Memory in MiB."""
    return sample.resident_bytes / 2**20


def descriptors(sample: Sample) -> float:
    """Open descriptors."""
    return sample.descriptors


def trends(observations: Observations) -> dict[str, Trend]:
    """Fit the trends of memory and descriptors, by a name that says of what.

    Phases are looked at one by one, because each has its own load; JVM and worker only while they are not killed. A
    minute tells nothing about memory, which pools and caches take at first.
    """
    found: dict[str, Trend] = {}
    for phase_name, roles in (("storm", ROLES[:1]), ("calm", ROLES)):
        phase = observations.phase(phase_name)
        if phase is None:
            continue
        began = phase.began + min(_WARM_UP * (phase.ended - phase.began), _LONGEST_WARM_UP_SECONDS)
        quantities = {DESCRIPTORS: descriptors}
        if phase.ended - began >= _FEWEST_MEMORY_SECONDS:
            quantities[MEMORY] = megabytes
        for role in roles:
            for name, quantity in quantities.items():
                trend = Trend.of(points(observations.resources.samples, role, quantity, began, phase.ended))
                if trend is not None:
                    found[f"{role}: {name} level in the {phase_name}"] = trend
    return found


def _recovery(kills: list[Kill], seconds: float) -> Promise:
    seen = "; ".join(
        f"{victim}: {describe(kill for kill in kills if kill.victim == victim)}" for victim in ("worker", "jvm")
    )
    kept = bool(kills) and all(kill.seconds <= seconds for kill in kills)
    return Promise(f"well again within {seconds:g} s of a kill", kept, seen)


def _no_restarts(observations: Observations) -> Promise:
    killed = {kill.pid: kill.at for kill in observations.kills}
    phases = [phase for phase in observations.phases if phase.name != "drain"]
    ends = [
        f"{life.role} {life.pid} in {phase.name}"
        for phase in phases
        for life in observations.resources.unexplained_ends(killed, phase.began, phase.ended)
    ]
    return Promise("no process ends that was not killed", not ends, ", ".join(ends) or "none")


def _health(observations: Observations) -> Promise:
    """Readiness may go only around a kill of the JVM, and has to come back; liveness stays."""
    drained = next((phase.began for phase in observations.phases if phase.name == "drain"), float("inf"))
    jvm_kills = [kill for kill in observations.kills if kill.victim == "jvm"]
    faults = []
    for watch in observations.watches:
        seen = [(moment, serving) for moment, serving in watch.seen if moment < drained]
        if not seen or not seen[-1][1]:
            faults.append(f"{watch.name} is not SERVING at the end")
        for moment, serving in seen:
            around = any(kill.at <= moment <= kill.recovered + _ECHO_SECONDS for kill in jvm_kills)
            if not serving and (watch.name == "liveness" or not around):
                faults.append(f"{watch.name} NOT_SERVING at {moment - observations.began:.1f} s")
    changes = {watch.name: len(watch.seen) for watch in observations.watches}
    return Promise("health says what is", not faults, ", ".join(faults) or f"statuses seen: {changes}")


def _levels(observations: Observations) -> list[Promise]:
    promises = []
    for name, trend in trends(observations).items():
        allowed = _MEMORY_GROWTH * trend.mean if MEMORY in name else _DESCRIPTOR_GROWTH
        seen = f"{trend.mean:.1f}, {trend.slope:+.3f} ± {trend.error:.3f} a minute over {trend.minutes:.1f} min"
        promises.append(Promise(name, trend.growth <= allowed, seen))
    return promises


def _quiet_log(observations: Observations) -> Promise:
    """Nothing in the service's log that names a defect of its own."""
    found = re.findall(
        r"^Traceback .*|^.*(?:exception was never retrieved|was never awaited).*", observations.log, re.M
    )
    return Promise("the log holds no traceback", not found, f"{len(found)} found" if found else "none")
