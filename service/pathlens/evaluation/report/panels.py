"""The plots of a report: summaries become lines, bars and matrices."""

import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
from markupsafe import Markup
from matplotlib.figure import Figure

from pathlens.evaluation.observation import Summary
from pathlens.evaluation.report.figures import (
    Dashes,
    Line,
    Row,
    Scale,
    bar_figure,
    dot_figure,
    heatmap_figure,
    line_figure,
    swatch_figure,
    to_svg,
)
from pathlens.evaluation.report.vocabulary import measure, method, percentage, rank

SHARE = Scale(percent=True, limits=(0.0, 1.0))
UNIT = Scale(limits=(0.0, 1.0))

_REMOVED = Scale("neurons removed", percent=True)


@dataclass(frozen=True)
class Panel:
    """A plot with its title.

    Attributes:
        title: What it shows.
        better: "↑" if high values are better, "↓" if low ones, "↖" if the upper left corner is; empty if none.
        svg: The drawing, safe to put into a page.
    """

    title: str
    better: str
    svg: Markup


def of(summaries: Sequence[Summary], *measures: str) -> list[Summary]:
    """Choose the summaries of some measures."""
    return [summary for summary in summaries if summary.measure in measures]


def swatch(name: str, anchor: str) -> Markup:
    """Draw what stands for a method in a legend.

    Args:
        name: Of the method.
        anchor: Unique in the page.
    """
    return _inline(swatch_figure(name), anchor)


def over_sparsity(summaries: Sequence[Summary], name: str, realised: str, y: Scale = SHARE) -> Iterator[Panel]:
    """Draw a measure over the share of neurons removed, the random control dashed.

    Args:
        summaries: All of the report.
        name: The measure.
        realised: The measure that tells how sparse the pathways became; where it is missing, what was asked for counts.
        y: The vertical axis.
    """
    yield from _drawn(name, _lines(of(summaries, name), _removed(summaries, realised)), _REMOVED, y)


def beside_reference(summaries: Sequence[Summary], name: str, reference: str, realised: str) -> Iterator[Panel]:
    """Draw a measure over the share of neurons removed, and dotted what it would ideally be."""
    removed = _removed(summaries, realised)
    own = [summary for summary in summaries if not summary.control]
    lines = [*_lines(of(own, name), removed), *_lines(of(own, reference), removed, "dotted")]
    yield from _drawn(name, lines, _REMOVED, Scale(percent=True, limits=(0.0, None)))


def over_detail(
    summaries: Sequence[Summary], name: str, x: Scale, y: Scale, place: Callable[[str], float] = float
) -> Iterator[Panel]:
    """Draw a measure over its detail, which `place` turns into a number."""
    yield from _drawn(name, _lines(of(summaries, name), lambda summary: place(summary.detail)), x, y)


def frontier(summaries: Sequence[Summary], agreement: str, forcing: str) -> Iterator[Panel]:
    """Draw one measure against the other, the sparsities of a method joined."""
    forced = {_conditions(summary): summary.mean for summary in of(summaries, forcing)}
    both = [summary for summary in of(summaries, agreement) if _conditions(summary) in forced]
    lines = [
        Line(name, [(forced[_conditions(summary)], summary.mean, 0.0) for summary in group], dashes)
        for name, dashes, group in _groups(both)
    ]
    if lines:
        x, y = Scale("forcing", True, (0.0, 1.0)), Scale("agreement", True, (0.0, 1.0))
        yield Panel("Agreement against forcing", "↖", _inline(line_figure(lines, x, y), f"{forcing} frontier"))


def bars(summaries: Sequence[Summary], name: str, x: Scale, faint: str = "hard") -> Iterator[Panel]:
    """Draw a bar per method and detail, faint those of one detail."""
    rows = [
        Row(summary.method, _label(summary), summary.mean, summary.standard_error or 0.0, faint=summary.detail == faint)
        for summary in of(summaries, name)
    ]
    if rows:
        yield Panel(measure(name).label, measure(name).better, _inline(bar_figure(rows, x), name))


def cost(summaries: Sequence[Summary]) -> Iterator[Panel]:
    """Draw what every method costs, and the lower bound where one is known."""
    floors = {(summary.method, summary.detail): summary.mean for summary in of(summaries, "floor")}
    rows = [
        Row(summary.method, _label(summary), summary.mean, floor=floors.get((summary.method, summary.detail)))
        for summary in sorted(of(summaries, "cost"), key=lambda summary: summary.mean)
    ]
    if rows:
        x = Scale("forward passes of the classifier", logarithmic=all(row.value > 0 for row in rows))
        yield Panel("Cost of an explanation", "↓", _inline(dot_figure(rows, x), "cost"))


def linearity(summaries: Sequence[Summary]) -> Iterator[Panel]:
    """Draw the linearity error over the radius, a plot per sparsity; the whole network is in each."""
    shown = of(summaries, "linearity error")
    x = Scale("radius", logarithmic=all(float(summary.detail) > 0 for summary in shown))
    y = Scale(logarithmic=all(summary.mean > 0 for summary in shown))
    sparsities = sorted({summary.sparsity for summary in shown if summary.sparsity is not None})
    whole = [summary for summary in shown if summary.sparsity is None]
    for sparsity in sparsities:
        pathways = [summary for summary in shown if summary.sparsity == sparsity]
        lines = _lines([*pathways, *whole], lambda summary: float(summary.detail))
        yield Panel(_at("Linearity error", sparsity), "↓", _inline(line_figure(lines, x, y), f"linearity {sparsity}"))


def overlaps(summaries: Sequence[Summary]) -> Iterator[Panel]:
    """Draw a matrix of methods per sparsity."""
    shown = sorted(of(summaries, "overlap"), key=_sparsity)
    for sparsity, group in groupby(shown, key=lambda summary: summary.sparsity):
        values = {(summary.method, summary.detail): summary.mean for summary in group}
        names = sorted(sorted({name for pair in values for name in pair}), key=rank)
        matrix = np.array([[values.get((one, other), math.nan) for other in names] for one in names])
        figure = heatmap_figure([method(name).label for name in names], matrix)
        yield Panel(_at("Overlap", sparsity), "", _inline(figure, f"overlap {sparsity}"))


def _drawn(name: str, lines: Sequence[Line], x: Scale, y: Scale) -> Iterator[Panel]:
    if lines:
        yield Panel(measure(name).label, measure(name).better, _inline(line_figure(lines, x, y), name))


def _lines(summaries: Sequence[Summary], place: Callable[[Summary], float], own: Dashes = "solid") -> list[Line]:
    lines = []
    for name, dashes, group in _groups(summaries, own):
        points = sorted((place(summary), summary.mean, summary.standard_error or 0.0) for summary in group)
        if points := [point for point in points if math.isfinite(point[0])]:
            lines.append(Line(name, points, dashes))
    return lines


def _groups(summaries: Sequence[Summary], own: Dashes = "solid") -> Iterator[tuple[str, Dashes, list[Summary]]]:
    """Group by method and control; the most important is drawn last, over the others.

    Pathways that find their own sparsity are not those of a grid, so they are a group, and a point, of their own.
    """
    ordered = sorted(summaries, key=lambda s: (-rank(s.method), s.method, not s.control, _sparsity(s)))
    for (name, control, _), group in groupby(ordered, key=lambda s: (s.method, s.control, s.sparsity is None)):
        yield name, "dashed" if control else own, list(group)


def _removed(summaries: Sequence[Summary], realised: str) -> Callable[[Summary], float]:
    reached = {_conditions(summary): summary.mean for summary in of(summaries, realised)}

    def removed(summary: Summary) -> float:
        # A control is of the size of its pathway.
        pathway = (summary.method, summary.sparsity, False)
        asked = math.nan if summary.sparsity is None else summary.sparsity
        return reached.get(_conditions(summary), reached.get(pathway, asked))

    return removed


def _conditions(summary: Summary) -> tuple[str, float | None, bool]:
    return summary.method, summary.sparsity, summary.control


def _sparsity(summary: Summary) -> float:
    return -1.0 if summary.sparsity is None else summary.sparsity


def _label(summary: Summary) -> str:
    return method(summary.method).label + (f" ({summary.detail})" if summary.detail else "")


def _at(title: str, sparsity: float | None) -> str:
    return title if sparsity is None else f"{title} at {percentage(sparsity)} sparsity"


def _inline(figure: Figure, name: str) -> Markup:
    # matplotlib escapes the labels that it writes.
    return Markup(to_svg(figure, re.sub(r"[^A-Za-z0-9]+", "-", name)))  # noqa: S704
