"""The tables and the plot of a load test."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib import pyplot

Row = Mapping[str, Any]

_COLUMNS = {
    "answered_per_second": "answered/s",
    "p50_ms": "p50 ms",
    "p95_ms": "p95 ms",
    "p99_ms": "p99 ms",
    "refused_share": "refused",
}
_PERCENTILES = ("p50_ms", "p95_ms", "p99_ms")


def markdown(report: Mapping[str, Any]) -> str:
    """Write what was measured as Markdown.

    Args:
        report: As `load.py` makes it.

    Returns:
        Tables for each call: by calls in flight, by offered rate, and the counts of both sides.
    """
    parts = []
    for name, measured in report["calls"].items():
        parts += [f"### {name}", "", *_table(measured["closed_loop"], "in_flight", "in flight"), ""]
        parts += [*_table(measured["open_loop"], "rate", "offered/s"), ""]
        parts += [_compared(measured), ""]
    return "\n".join(parts)


def plot(report: Mapping[str, Any], path: Path) -> None:
    """Draw throughput and latencies by calls in flight, and refusals by offered rate.

    Args:
        report: As `load.py` makes it.
        path: Where the picture is written.
    """
    mpl.use("Agg")
    figure, axes = pyplot.subplots(len(report["calls"]), 3, figsize=(13, 3.6 * len(report["calls"])), squeeze=False)
    for row, (name, measured) in zip(axes, report["calls"].items(), strict=True):
        closed, offered = measured["closed_loop"], measured["open_loop"]
        in_flight = [one["in_flight"] for one in closed]
        row[0].plot(in_flight, [one["answered_per_second"] for one in closed], "o-")
        row[0].set(title=f"{name}: throughput", xlabel="calls in flight", ylabel="answered per second")
        for percentile in _PERCENTILES:
            row[1].plot(in_flight, [one[percentile] for one in closed], "o-", label=percentile.removesuffix("_ms"))
        row[1].set(title=f"{name}: latency", xlabel="calls in flight", ylabel="ms", yscale="log")
        row[1].legend()
        for axis in row[:2]:
            axis.set_xscale("log", base=2)
            axis.set_xticks(in_flight, [str(number) for number in in_flight])
        rates = [one["rate"] for one in offered]
        row[2].plot(rates, rates, ":", color="grey", label="offered")
        row[2].plot(rates, [one["answered_per_second"] for one in offered], "o-", label="answered")
        row[2].plot(rates, [one["refused_share"] * one["rate"] for one in offered], "s-", label="refused")
        row[2].set(title=f"{name}: calls that do not wait", xlabel="offered per second", ylabel="calls per second")
        row[2].legend()
        for axis in row:
            axis.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def _table(rows: Sequence[Row], key: str, title: str) -> list[str]:
    lines = [f"| {title} | {' | '.join(_COLUMNS.values())} |", "|--:" * (len(_COLUMNS) + 1) + "|"]
    for row in rows:
        values = [f"{row[name]:.1%}" if name == "refused_share" else f"{row[name]:g}" for name in _COLUMNS]
        lines.append(f"| {row[key]:g} | {' | '.join(values)} |")
    return lines


def _compared(measured: Mapping[str, Any]) -> str:
    client = ", ".join(f"{code} {number:,}" for code, number in measured["client_counts"].items())
    server = ", ".join(f"{code} {number:,}" for code, number in measured["server_counts"].items())
    words = f"Counted by the client: {client}. Counted by the gateway: {server}."
    if found := measured["h2load"]:
        codes = ", ".join(f"{code} {number:,}" for code, number in found["server_counts"].items())
        words += (
            f" h2load with {found['in_flight']} in flight: {found['requests_per_second']:g} requests/s,"
            f" {found['answered_with_2xx']:,} answered with HTTP 200; the gateway counted {codes}."
        )
    return words
