"""What a run has shown: as a table, as JSON and as a plot."""

import json
from collections import defaultdict
from collections.abc import Sequence
from math import isfinite
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib import pyplot
from rich import box
from rich.console import Group
from rich.table import Table

from reliability.chaos import Observations
from reliability.resources import ROLES
from reliability.verdict import RECOVERY_SECONDS, Promise, descriptors, megabytes, points, trends


def tables(observations: Observations, promises: Sequence[Promise]) -> Group:
    """Make tables of the requests and of the promises.

    Args:
        observations: What was seen.
        promises: What was made of it.

    Returns:
        Something that rich prints.
    """
    requests = Table("request", "outcome", box=box.SIMPLE_HEAD, title="Requests")
    requests.add_column("count", justify="right")
    for (kind, status), count in sorted(observations.tally.outcomes.items()):
        requests.add_row(kind, status, f"{count}")
    kept = Table("promise", "", "seen", box=box.SIMPLE_HEAD, title="Promises")
    for promise in promises:
        kept.add_row(promise.name, "[green]kept[/]" if promise.kept else "[red]BROKEN[/]", promise.seen)
    return Group(requests, kept)


def write(observations: Observations, promises: Sequence[Promise], folder: Path) -> None:
    """Write `soak.json`, `soak.png` and the log of the service.

    Args:
        observations: What was seen.
        promises: What was made of it.
        folder: Where to.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "soak.json").write_text(json.dumps(_document(observations, promises), indent=1) + "\n")
    (folder / "soak.log").write_text(observations.log)
    _plot(observations, folder / "soak.png")


def _document(observations: Observations, promises: Sequence[Promise]) -> dict[str, Any]:
    began = observations.began
    outcomes: dict[str, dict[str, int]] = defaultdict(dict)
    for (kind, status), count in sorted(observations.tally.outcomes.items()):
        outcomes[kind][status] = count
    return {
        "seed": observations.seed,
        "requests": observations.tally.requests,
        "outcomes": outcomes,
        "departures": dict(observations.tally.departures),
        "complaints": observations.tally.complaints,
        "promises": [vars(promise) for promise in promises],
        "phases": {phase.name: [phase.began - began, phase.ended - began] for phase in observations.phases},
        "kills": [
            {"victim": kill.victim, "at": kill.at - began, "seconds": kill.seconds if isfinite(kill.seconds) else None}
            for kill in observations.kills
        ],
        "health": {
            watch.name: [[moment - began, serving] for moment, serving in watch.seen] for watch in observations.watches
        },
        "trends": {name: vars(trend) for name, trend in trends(observations).items()},
        "drain_seconds": observations.drain_seconds,
        "exit_status": observations.exit_status,
        "samples": [
            [one.at - began, one.role, one.pid, one.resident_bytes, one.descriptors]
            for one in observations.resources.samples
        ],
    }


def _plot(observations: Observations, path: Path) -> None:
    mpl.use("Agg")
    began = observations.began
    until = max((phase.ended for phase in observations.phases), default=began)
    figure, axes = pyplot.subplots(4, 1, figsize=(9, 10), sharex=True, layout="constrained")
    memory, files, latency, recovery = axes
    for role in ROLES:
        for axis, quantity in ((memory, megabytes), (files, descriptors)):
            found = points(observations.resources.samples, role, quantity, began, until)
            axis.plot([(at - began) / 60 for at, _ in found], [value for _, value in found], label=role)
    memory.set_ylabel("resident memory, MiB")
    memory.legend(loc="upper right", ncols=len(ROLES))
    files.set_ylabel("descriptors")
    if observations.tally.latencies:
        moments, seconds = zip(*observations.tally.latencies, strict=True)
        latency.plot([(at - began) / 60 for at in moments], [1000 * one for one in seconds], ".", markersize=1)
    latency.set_yscale("log")
    latency.set_ylabel("Predict, ms")
    for victim, colour in (("worker", "tab:blue"), ("jvm", "tab:red")):
        kills = [kill for kill in observations.kills if kill.victim == victim]
        recovery.plot(
            [(kill.at - began) / 60 for kill in kills],
            [kill.seconds for kill in kills],
            "o",
            color=colour,
            label=victim,
        )
    recovery.axhline(RECOVERY_SECONDS, color="0.6", linestyle="--", linewidth=0.8, label="promised")
    recovery.set_ylim(bottom=0)
    recovery.set_ylabel("recovery, s")
    recovery.legend(loc="lower right", ncols=3)
    recovery.set_xlabel("minutes")
    for phase in observations.phases:
        for axis in axes:
            axis.axvline((phase.began - began) / 60, color="0.8", linewidth=0.8, zorder=0)
        memory.text((phase.began - began) / 60, 1.0, phase.name, transform=memory.get_xaxis_transform(), va="bottom")
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
