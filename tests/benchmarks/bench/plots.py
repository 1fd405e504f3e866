"""The plots of a benchmark."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from benchmarks.bench.in_process import BARE, ONE_CLASS, WHOLE

Row = Mapping[str, Any]

_COLOURS = {BARE: "tab:blue", WHOLE: "tab:orange"}
_DOTS_PER_INCH = 110


def plot_costs(report: Mapping[str, Any], path: Path) -> None:
    """Draw what routes cost beside what they may cost: one panel for each network, PyTorch, a batch of one class.

    Args:
        report: As `benchmarks.bench` writes it to bench.json.
        path: Where the picture is written; nothing is, if nothing was measured in process.
    """
    panels = {
        name: [row for row in measured["in-process"] if (row["backend"], row["batch"]) == ("torch", ONE_CLASS)]
        for name, measured in report["networks"].items()
        if measured.get("in-process")
    }
    panels = {name: rows for name, rows in panels.items() if rows}
    if not panels:
        return
    mpl.use("Agg")
    figure, axes = pyplot.subplots(1, len(panels), figsize=(4.2 + 3.6 * len(panels), 5.2), sharey=True, squeeze=False)
    for axis, (name, rows) in zip(axes[0], panels.items(), strict=True):
        _draw_costs(axis, rows)
        axis.set(title=name, xlabel="plain forward passes")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    # Both levels of a row have the same target.
    known = dict(zip(labels, handles, strict=True))
    axes[0, 0].legend(known.values(), known.keys(), loc="upper right", frameon=False)
    _save(figure, path)


def plot_growth(name: str, rows: Sequence[Row], path: Path) -> None:
    """Draw how the costs of one network grow.

    Args:
        name: Of the network.
        rows: Of the part "growth".
        path: Where the picture is written.
    """
    mpl.use("Agg")
    kinds = list(dict.fromkeys(row["of"] for row in rows if "ratio" in row))
    routes = list(dict.fromkeys(row["name"] for row in rows))
    figure, axes = pyplot.subplots(1, len(kinds) + 1, figsize=(4.4 * (len(kinds) + 1), 4.4))
    for axis, kind in zip(axes, kinds, strict=False):
        _draw_growth(axis, [row for row in rows if row["of"] == kind], routes)
        axis.set(title=kind, ylabel="plain forward passes of the same batch")
    handles = {line.get_label(): line for axis in axes[:-1] for line in axis.get_lines()}
    figure.legend(handles.values(), handles.keys(), loc="lower center", ncols=len(handles), frameon=False)
    if slices := [row for row in rows if "kept_bytes" in row]:
        _draw_slices(axes[-1], slices)
    figure.suptitle(name)
    _save(figure, path, bottom=0.09)


def _draw_growth(axis: Axes, rows: Sequence[Row], routes: Sequence[str]) -> None:
    for place, route in enumerate(routes):
        line = [row for row in rows if row["name"] == route]
        if not line:
            continue
        sizes, colour = [row["size"] for row in line], f"C{place}"
        axis.plot(sizes, [row["ratio"] for row in line], "o-", label=route, color=colour, markersize=4)
        lower, upper = ([row[quartile] for row in line] for quartile in ("lower", "upper"))
        axis.fill_between(sizes, lower, upper, color=colour, alpha=0.15)
        axis.set_xscale("log", base=2)
        axis.set_xticks(sizes, [str(size) for size in sizes])
    axis.minorticks_off()
    axis.set_ylim(bottom=0)
    axis.grid(alpha=0.25)


def _draw_slices(axis: Axes, rows: Sequence[Row]) -> None:
    numbers = [row["size"] for row in rows]
    axis.plot(numbers, [row["kept_bytes"] / 1024 for row in rows], "o-", markersize=3)
    axis.set(title="slices kept", ylabel="KiB together")
    axis.set_ylim(bottom=0)
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    cuts = axis.twinx()
    cuts.plot(numbers, [row["first_use_milliseconds"] for row in rows], ".", color="tab:red")
    cuts.set_ylabel("ms to cut one", color="tab:red")
    cuts.set_ylim(bottom=0)


def _draw_costs(axis: Axes, rows: Sequence[Row]) -> None:
    names = list(dict.fromkeys(row["name"] for row in rows if row["level"] in _COLOURS))
    for place, name in enumerate(names):
        for shift, (level, colour) in zip((-0.14, 0.14), _COLOURS.items(), strict=True):
            for row in rows:
                if (row["name"], row["level"]) == (name, level):
                    axis.hlines(place + shift, row["lower"], row["upper"], color=colour, alpha=0.5)
                    axis.plot(row["ratio"], place + shift, "o", color=colour, label=level if not place else None)
                    if row["target"] is not None:
                        # Labels that begin so are in no legend.
                        label = "_" if place else "target"
                        axis.vlines(row["target"], place - 0.35, place + 0.35, color="black", label=label)
    axis.set_yticks(range(len(names)), names)
    axis.set_ylim(len(names) - 0.5, -0.5)
    axis.set_xlim(left=0)
    axis.grid(axis="x", alpha=0.25)


def _save(figure: Any, path: Path, bottom: float = 0.0) -> None:
    figure.tight_layout(rect=(0, bottom, 1, 1))
    figure.savefig(path, dpi=_DOTS_PER_INCH)
    pyplot.close(figure)
