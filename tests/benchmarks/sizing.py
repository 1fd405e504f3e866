"""Size a deployment from measured loads, and compare the model behind it with what was measured.

    python tests/benchmarks/load.py --network cifar_resnet20
    python tests/benchmarks/sizing.py build/reliability/load-cifar_resnet20.json

A worker computes one request after the other, each in the same time, and requests come at random moments (a queue of
type M/D/1). Its time per request is the inverse of the throughput at saturation; whatever else a lone call takes is
added. Prints Markdown.
"""

import json
import math
from pathlib import Path
from typing import Any

import click
import numpy as np

ARRIVALS = 400_000
UTILISATIONS = (0.3, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
RATES = (10, 100, 1_000, 10_000, 100_000, 1_000_000)
SPARE = 0.1


def times_in_queue(utilisation: float, seed: int = 0) -> tuple[float, float, float]:
    """Simulate the queue of one worker.

    Args:
        utilisation: Share of its time that the worker computes, in (0, 1).
        seed: Of the moments of arrival.

    Returns:
        Mean, median and 99th percentile of the time from arrival to answer, in units of the time that one request
        computes.
    """
    random = np.random.default_rng(seed)
    # Lindley's recursion: the work that is left when a request comes is a random walk that is reflected at zero.
    walk = np.cumsum(1 - random.exponential(1 / utilisation, ARRIVALS))
    waits = walk - np.minimum.accumulate(np.minimum(walk, 0))
    times = 1 + np.concatenate(([0.0], waits[:-1]))
    median, late = np.percentile(times, (50, 99)).tolist()
    return float(times.mean()), median, late


def pods(rate: float, seconds: float, utilisation: float) -> int:
    """Count the workers that a rate needs, with a tenth in reserve, one at the least, for a pod that is lost or rolled.

    Args:
        rate: Requests a second.
        seconds: That one request computes.
        utilisation: Of the workers that are not in reserve.
    """
    needed = math.ceil(rate * seconds / utilisation)
    return needed + max(1, math.ceil(SPARE * needed))


def curve() -> str:
    """Table of the time in the queue against the utilisation."""
    lines = ["| utilisation | mean | p50 | p99 |", "|---|---|---|---|"]
    for utilisation in UTILISATIONS:
        mean, median, late = times_in_queue(utilisation)
        lines.append(f"| {utilisation:.0%} | {mean:.2f} | {median:.2f} | {late:.1f} |")
    return "\n".join(lines)


def compared(name: str, measured: dict[str, Any]) -> str:
    """Table of measured latencies beside those of the model, for the rates of the open loop below saturation."""
    capacity = max(row["answered_per_second"] for row in measured["closed_loop"])
    milliseconds = 1e3 / capacity
    lone = measured["closed_loop"][0]["p50_ms"]
    lines = [
        f"{name}: {capacity:g} a second at saturation, {milliseconds:.2f} ms each; a lone call takes {lone:g} ms.",
        "",
        "| rate | utilisation | p50 measured | p50 of the model | p99 measured | p99 of the model |",
        "|---|---|---|---|---|---|",
    ]
    for row in measured["open_loop"]:
        utilisation = row["rate"] / capacity
        if utilisation > 0.95:
            continue
        _, median, late = times_in_queue(utilisation)
        added = lone - milliseconds
        lines.append(
            f"| {row['rate']:g} | {utilisation:.0%} | {row['p50_ms']:g} | {added + median * milliseconds:.1f} |"
            f" {row['p99_ms']:g} | {added + late * milliseconds:.1f} |"
        )
    return "\n".join(lines)


def sized(milliseconds: dict[str, float], utilisation: float) -> str:
    """Table of the workers that some rates need, for each time per request."""
    lines = [
        f"| requests a second | {' | '.join(milliseconds)} |",
        f"|---|{'---|' * len(milliseconds)}",
    ]
    for rate in RATES:
        counts = (f"{pods(rate, value / 1e3, utilisation):,}" for value in milliseconds.values())
        lines.append(f"| {rate:,} | {' | '.join(counts)} |")
    return "\n".join(lines)


@click.command()
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option("--utilisation", default=0.6, show_default=True, type=click.FloatRange(0.05, 0.95), help="Aimed at.")
def main(files: tuple[Path, ...], utilisation: float) -> None:
    """Print the tables of docs/scaling.md from FILES that load.py has written."""
    click.echo(f"## Time in the queue, in times of one request\n\n{curve()}\n")
    milliseconds = {}
    for file in files:
        report = json.loads(file.read_text())
        click.echo(f"## {report['network']}\n")
        for call, measured in report["calls"].items():
            name = f"{report['network']} {call}"
            capacity = max(row["answered_per_second"] for row in measured["closed_loop"])
            milliseconds[f"{name}, {1e3 / capacity:.1f} ms"] = 1e3 / capacity
            click.echo(f"{compared(name, measured)}\n")
    click.echo(f"## Workers at {utilisation:.0%}\n\n{sized(milliseconds, utilisation)}")


if __name__ == "__main__":
    main()
