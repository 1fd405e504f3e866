"""The tables of a report: conditions down, measures across."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from pathlens.evaluation.observation import Observation, Summary
from pathlens.evaluation.report.vocabulary import decimals, measure, method, percentage, rank

CLASS_ROWS = 30
"""A table of single classes shows no more rows."""


@dataclass(frozen=True)
class Column:
    """What a column shows.

    Attributes:
        measure: The measure.
        detail: Its detail; None if the detail is a key of the rows, or if there is none.
        header: None for the label of the measure.
    """

    measure: str
    detail: str | None = None
    header: str | None = None


@dataclass(frozen=True)
class Cell:
    """A value and its standard error, both empty where there is none."""

    mean: str = ""
    error: str = ""


@dataclass(frozen=True)
class TableRow:
    """A row.

    Attributes:
        keys: What it is of.
        control: Whether it is of the random control.
        cells: One per column.
        count: How many values each of the means is of.
    """

    keys: tuple[str, ...]
    control: bool
    cells: tuple[Cell, ...]
    count: str


@dataclass(frozen=True)
class Table:
    """A table.

    Attributes:
        title: What it shows.
        keys: Headers of the keys.
        columns: Headers of the values.
        rows: From top to bottom.
    """

    title: str
    keys: tuple[str, ...]
    columns: tuple[str, ...]
    rows: tuple[TableRow, ...]


def table(
    title: str, summaries: Sequence[Summary], keys: Mapping[str, str], columns: Sequence[Column]
) -> Iterator[Table]:
    """Make a table, or none where there is nothing to show.

    Args:
        title: What it shows.
        summaries: All of the report, or some.
        keys: Header of each attribute of `Summary`, out of method, sparsity, detail and ablation, that tells the rows
            apart. The random control is a row of its own.
        columns: What to show; those without a value are left out.
    """
    filled: dict[Column, dict[tuple[object, ...], Summary]] = {column: {} for column in columns}
    for summary in summaries:
        for column in columns:
            if summary.measure == column.measure and column.detail in (None, summary.detail):
                filled[column][*(getattr(summary, key) for key in keys), summary.control] = summary
    filled = {column: values for column, values in filled.items() if values}
    found = {of: summary for values in filled.values() for of, summary in values.items()}
    if not found:
        return
    kept = [key for key in keys if any(getattr(summary, key) not in (None, "") for summary in found.values())]
    appearance = {detail: place for place, detail in enumerate(dict.fromkeys(s.detail for s in summaries))}

    def order(found_row: tuple[tuple[object, ...], Summary]) -> list[float]:
        _, summary = found_row
        places = {
            "method": rank(summary.method),
            "sparsity": -1.0 if summary.sparsity is None else summary.sparsity,
            "detail": appearance[summary.detail],
            "ablation": 0.0,
        }
        return [*(places[key] for key in keys), summary.control]

    rows = []
    for of, example in sorted(found.items(), key=order):
        values = [column_values.get(of) for column_values in filled.values()]
        counts = sorted({value.count for value in values if value is not None})
        rows.append(
            TableRow(
                keys=tuple(_key(example, key) for key in kept),
                control=example.control,
                cells=tuple(Cell() if value is None else _cell(value) for value in values),
                count=" to ".join(str(count) for count in dict.fromkeys([counts[0], counts[-1]])),
            )
        )
    yield Table(title, tuple(keys[key] for key in kept), tuple(_header(column) for column in filled), tuple(rows))


def class_table(observations: Sequence[Observation], columns: Sequence[Column]) -> Iterator[Table]:
    """Show single classes at the middle one of the sparsities, those with the highest forcing first."""
    sparsities = sorted({o.sparsity for o in _of_classes(observations, columns) if o.sparsity is not None})
    if sparsities:
        sparsity = sparsities[len(sparsities) // 2]
        title = f"Class by class at {percentage(sparsity)} sparsity, highest forcing first"
        yield from _class_by_class(title, [o for o in observations if o.sparsity == sparsity], columns)


def stored_class_table(
    observations: Sequence[Observation], methods: Sequence[str], columns: Sequence[Column]
) -> Iterator[Table]:
    """Show the stored pathways of single classes, those with the highest forcing first.

    Args:
        observations: All of the report.
        methods: Which masks, beside each other.
        columns: What to show.
    """
    chosen = [o for o in observations if o.sparsity is None and o.method in methods]
    yield from _class_by_class("Stored class pathways, highest forcing first", chosen, columns)


def _of_classes(observations: Sequence[Observation], columns: Sequence[Column]) -> list[Observation]:
    names = {column.measure for column in columns}
    return [o for o in observations if o.measure in names and not o.control and math.isfinite(o.value)]


def _class_by_class(title: str, observations: Sequence[Observation], columns: Sequence[Column]) -> Iterator[Table]:
    chosen = _of_classes(observations, columns)
    forcing = {(o.subject, o.method): o.value for o in chosen if o.measure == "forcing"}
    # A subject takes the place of the detail, of which these measures have none.
    worst = sorted(chosen, key=lambda o: -forcing.get((o.subject, o.method), 0.0))
    summaries = [
        Summary(o.measure, o.method, o.sparsity, False, str(o.subject), o.value, None, 1, o.ablation) for o in worst
    ]
    keys = {"detail": "Class", "method": "Pathway", "ablation": "Ablation"}
    for whole in table(title, summaries, keys, columns):
        if len(whole.rows) > CLASS_ROWS:
            title = f"{title} ({CLASS_ROWS} of {len(whole.rows)} rows)"
        yield replace(whole, title=title, rows=whole.rows[:CLASS_ROWS])


def _key(summary: Summary, key: str) -> str:
    if key == "method":
        return method(summary.method).label
    if key == "sparsity":
        if summary.sparsity is not None:
            return percentage(summary.sparsity)
        return "none" if summary.method == "whole network" else "own"
    return str(getattr(summary, key))


def _header(column: Column) -> str:
    look = measure(column.measure)
    label = look.label if column.header is None else column.header
    return " ".join(part for part in (label + (", %" if look.percent else ""), look.better) if part)


def _cell(summary: Summary) -> Cell:
    percent = measure(summary.measure).percent
    factor = 100.0 if percent else 1.0
    places = 1 if percent else decimals(summary.mean)
    error = summary.standard_error
    if not percent and 0 < abs(summary.mean) < 1e-3:
        return Cell(f"{summary.mean:.1e}", "" if error is None else f"{error:.0e}")
    return Cell(f"{factor * summary.mean:.{places}f}", "" if error is None else f"{factor * error:.{places}f}")
