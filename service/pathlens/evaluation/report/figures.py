"""The plots of a report as matplotlib figures, and as SVG that takes its colours from the page around it."""

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, MaxNLocator, NullLocator
from numpy.typing import NDArray

from pathlens.evaluation.report.vocabulary import INK, PALETTE, decimals, method

Dashes = Literal["solid", "dashed", "dotted"]

_GRID = "#D8DCE2"
_WIDTH, _HEIGHT = 4.4, 2.9
_ROW = 0.27

_STYLE: list[str | Path | dict[str, Any]] = [
    # What a user's own configuration says must not matter.
    "default",
    {
        "figure.facecolor": "none",
        "figure.constrained_layout.use": True,
        "axes.facecolor": "none",
        "axes.edgecolor": _GRID,
        "axes.labelcolor": INK,
        "axes.labelsize": 9.5,
        "axes.grid": True,
        "axes.axisbelow": True,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "grid.color": _GRID,
        "grid.linewidth": 0.6,
        "text.color": INK,
        # A label may hold a dollar sign.
        "text.parse_math": False,
        "xtick.color": _GRID,
        "xtick.labelcolor": INK,
        "xtick.labelsize": 9.5,
        "ytick.color": _GRID,
        "ytick.labelcolor": INK,
        "ytick.labelsize": 9.5,
        "font.family": "DejaVu Sans",
        "savefig.facecolor": "none",
        # As text, labels can be read aloud and copied, and take the page's font.
        "svg.fonttype": "none",
    },
]


@dataclass(frozen=True)
class Scale:
    """An axis.

    Attributes:
        label: Written along it.
        percent: Whether fractions are shown as percentages.
        limits: Lowest and highest value, each None to fit what is drawn.
        logarithmic: Whether equal ratios are equally far apart.
        whole: Whether only whole numbers are marked.
    """

    label: str = ""
    percent: bool = False
    limits: tuple[float | None, float | None] = (None, None)
    logarithmic: bool = False
    whole: bool = False


@dataclass(frozen=True)
class Line:
    """The values of one method.

    Attributes:
        method: Its name.
        points: x, y and the standard error of y; one point or more.
        dashes: Dashed is the random control.
    """

    method: str
    points: Sequence[tuple[float, float, float]]
    dashes: Dashes = "solid"


@dataclass(frozen=True)
class Row:
    """One bar or dot.

    Attributes:
        method: Name of the method.
        label: Written before it.
        value: Its length or position.
        error: Standard error of the value.
        floor: A lower bound to mark; None for none.
        faint: Whether it is of the second kind of bars.
    """

    method: str
    label: str
    value: float
    error: float = 0.0
    floor: float | None = None
    faint: bool = False


@style.context(_STYLE)
def line_figure(lines: Sequence[Line], x: Scale, y: Scale) -> Figure:
    """Draw lines, the solid ones with a band of one standard error.

    Args:
        lines: What to draw.
        x: The horizontal axis.
        y: The vertical axis.
    """
    figure = Figure(figsize=(_WIDTH, _HEIGHT))
    axes = figure.add_subplot()
    for line in lines:
        look = method(line.method)
        across, values, errors = np.array(line.points, dtype=float).T
        solid = line.dashes == "solid"
        axes.plot(
            across,
            values,
            color=look.light,
            linestyle=line.dashes,
            linewidth=1.8 if solid else 1.2,
            marker=look.marker,
            # Many markers would hide the line.
            markevery=max(1, len(values) // 6),
            # Nor may a line hide a point that stands alone.
            markersize=(5 if solid else 4) + (3 if len(values) == 1 else 0),
            # A hollow marker shows what lies under it.
            markerfacecolor=look.light if solid else "none",
            zorder=3 if solid else 2.5,
            # The ends of the scale are data too: nothing, and everything.
            clip_on=False,
        )
        if solid and errors.any():
            axes.fill_between(across, values - errors, values + errors, color=look.light, alpha=0.16, linewidth=0)
    _scale(axes, "x", x)
    _scale(axes, "y", y)
    return figure


@style.context(_STYLE)
def bar_figure(rows: Sequence[Row], x: Scale) -> Figure:
    """Draw horizontal bars from top to bottom, each with its value and one standard error."""
    figure, axes = _rows(rows)
    for place, row in enumerate(rows):
        axes.barh(place, row.value, height=0.7, color=method(row.method).light, alpha=0.4 if row.faint else 1.0)
        if row.error:
            axes.errorbar(row.value, place, xerr=row.error, color=INK, linewidth=1.0, capsize=2)
        text = f"{100 * row.value:.1f} %" if x.percent else f"{row.value:.{decimals(row.value)}f}"
        _annotate(axes, text, max(row.value + row.error, 0.0), place)
    axes.margins(x=0.2)
    _scale(axes, "x", x)
    return figure


@style.context(_STYLE)
def dot_figure(rows: Sequence[Row], x: Scale) -> Figure:
    """Draw a dot per row from top to bottom, and a tick where its lower bound is."""
    figure, axes = _rows(rows)
    for place, row in enumerate(rows):
        look = method(row.method)
        axes.plot([row.value], [place], look.marker, color=look.light, markersize=7)
        if row.floor is not None:
            axes.plot([row.floor, row.value], [place, place], color=look.light, linewidth=1.0)
            axes.plot([row.floor], [place], "|", color=INK, markersize=10, markeredgewidth=1.6)
        _annotate(axes, f"{row.value:,.{min(1, decimals(row.value))}f}", row.value, place)
    axes.margins(x=0.2)
    _scale(axes, "x", x)
    return figure


@style.context(_STYLE)
def heatmap_figure(labels: Sequence[str], values: NDArray[np.float64]) -> Figure:
    """Draw a square matrix of values in [0, 1]; NaN stays blank."""
    count = len(labels)
    figure = Figure(figsize=(_WIDTH, max(_HEIGHT, 1.1 + 0.4 * count)))
    axes = figure.add_subplot()
    axes.set(xlim=(-0.5, count - 0.5), ylim=(count - 0.5, -0.5))
    for (row, column), value in np.ndenumerate(values):
        if math.isfinite(value):
            # See-through, so that the weakest is the page itself, and never so strong that the number is lost in it.
            colour = PALETTE[0][0]
            axes.add_patch(
                Rectangle((column - 0.48, row - 0.48), 0.96, 0.96, color=colour, alpha=0.65 * value, linewidth=0)
            )
            axes.text(column, row, f"{value:.2f}", fontsize=9, ha="center", va="center")
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    axes.set_xticks(range(count), labels, rotation=30, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(count), labels)
    return figure


@style.context(_STYLE)
def swatch_figure(name: str) -> Figure:
    """Draw the piece of line that stands for a method in a legend."""
    look = method(name)
    figure = Figure(figsize=(0.42, 0.17))
    # Without axes there is nothing to lay out.
    figure.set_layout_engine("none")
    figure.add_artist(Line2D([0.05, 0.95], [0.5, 0.5], color=look.light, linewidth=1.8))
    figure.add_artist(Line2D([0.5], [0.5], color=look.light, marker=look.marker, markersize=6))
    return figure


def to_svg(figure: Figure, name: str) -> str:
    """Return a figure as an element to put into a page.

    Args:
        figure: The figure.
        name: Unique in the page, of letters, digits and hyphens: what starts the identifiers inside.

    Returns:
        The same text for the same figure. Its colours are the page's: `currentColor`, `--grid` and one `--method-0`,
        `--method-1` … for each entry of the palette.
    """
    buffer = io.StringIO()
    # Neither a date nor addresses of vocabularies: the entries that are None are left out.
    metadata = dict.fromkeys(["Date", "Creator", "Format", "Type"])
    with style.context([*_STYLE, {"svg.hashsalt": name}]):
        figure.savefig(buffer, format="svg", metadata=metadata)
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    for reference in ('id="', 'href="#', "url(#"):
        text = text.replace(reference, f"{reference}{name}-")
    variables = {INK: "currentColor", _GRID: "var(--grid)"}
    variables |= {light: f"var(--method-{index})" for index, (light, _) in enumerate(PALETTE)}
    for colour, variable in variables.items():
        text = text.replace(f": {colour.lower()}", f": {variable}")
    return text


def _rows(rows: Sequence[Row]) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(_WIDTH, max(0.8 + _ROW * len(rows), _HEIGHT / 2)))
    axes = figure.add_subplot()
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_yticks(range(len(rows)), [row.label for row in rows])
    axes.grid(visible=False, axis="y")
    axes.tick_params(axis="y", length=0)
    return figure, axes


def _annotate(axes: Axes, text: str, x: float, y: float) -> None:
    axes.annotate(text, (x, y), xytext=(7, 0), textcoords="offset points", va="center_baseline", fontsize=8.5)


def _scale(axes: Axes, which: Literal["x", "y"], scale: Scale) -> None:
    axis = axes.xaxis if which == "x" else axes.yaxis
    axis.set_label_text(scale.label)
    if scale.logarithmic:
        axes.set(**{f"{which}scale": "log"})
        low, high = sorted(axis.get_view_interval())
        if high / low < 100:
            axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.set_minor_locator(NullLocator())
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.12g}"))
    elif scale.percent:
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.4g} %"))
    if scale.whole:
        axis.set_major_locator(MaxNLocator(integer=True))
    if scale.limits == (0.0, 1.0):
        axis.set_major_locator(FixedLocator([0, 0.25, 0.5, 0.75, 1]))
    axes.set(**{f"{which}lim": scale.limits})
