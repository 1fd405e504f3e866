"""The tables of a benchmark."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

Row = Mapping[str, Any]
Column = tuple[str, Callable[[Row], str]]

_MACHINE = (
    ("processor", "processor"),
    ("cores", "cores"),
    ("memory_gib", "GiB of memory"),
    ("device", "device"),
    ("threads", "threads"),
    ("load_average", "load average before"),
    ("torch", "torch"),
    ("onnxruntime", "onnxruntime"),
    ("numpy", "numpy"),
    ("captum", "captum"),
    ("torchserve", "torchserve"),
    ("python", "Python"),
    ("commit", "commit"),
)


def markdown(report: Mapping[str, Any]) -> str:
    """Write a benchmark as Markdown.

    Args:
        report: As `benchmarks.bench` writes it to bench.json.

    Returns:
        The machine, and for each network a table of each part that was measured.
    """
    machine = report["machine"]
    changed = " with changes" if machine["changed_since_commit"] else ""
    words = ", ".join(f"{title} {machine[key]}" for key, title in _MACHINE)
    parts = [f"{words}{changed}.", ""]
    if not report["finished"]:
        parts += ["It did not come to its end: rows are missing.", ""]
    if report["quick"]:
        parts += ["A quick run: its times mean nothing.", ""]
    for name, measured in report["networks"].items():
        parts += [f"## {name}", ""]
        for part, rows in measured.items():
            parts += [f"### {_TITLES[part]}", "", *_PARTS[part](rows), ""]
    if report["wrong"]:
        parts += ["## Wrong results", "", *(f"- {line}" for line in report["wrong"]), ""]
    return "\n".join(parts)


def _in_process(rows: Sequence[Row]) -> list[str]:
    lines = []
    for backend, batch in dict.fromkeys((row["backend"], row["batch"]) for row in rows):
        group = [row for row in rows if (row["backend"], row["batch"]) == (backend, batch)]
        forward = sorted(row["forward_milliseconds"] for row in group)[len(group) // 2]
        lines += [f"{backend}, images: {batch}; a plain forward pass takes {forward:.3g} ms", ""]
        lines += ["| | bare passes | whole answer | target | bare | whole | sliced |", "|---|--:|--:|--:|---|---|---|"]
        for name in dict.fromkeys(row["name"] for row in group):
            levels = {row["level"]: row for row in group if row["name"] == name}
            bare, whole = levels.get("bare passes"), levels.get("whole answer")
            # What others compute has one level alone.
            bare = bare or levels.get("other explanations")
            target = (bare or {}).get("target")
            cells = [name, _ratio(bare), _ratio(whole), "" if target is None else f"≤ {target:g}"]
            lines.append(_line([*cells, _verdict(bare), _verdict(whole), _sliced(bare)]))
        lines.append("")
    return lines[:-1]


def _handler(rows: Sequence[Row]) -> list[str]:
    return _table(
        rows,
        ("request", lambda row: row["name"]),
        ("batch", lambda row: f"{row['batch']}"),
        ("in forward passes", _ratio),
        ("ms per image", lambda row: f"{row['milliseconds_per_item']:.3g}"),
        ("explainer, ms per image", lambda row: f"{row['explainer_milliseconds_per_item']:.3g}"),
        ("decode", lambda row: f"{row['decode_share']:.0%}"),
        ("encode", lambda row: f"{row['encode_share']:.0%}"),
        ("messages", lambda row: f"{row['message_share']:.0%}"),
    )


def _end_to_end(rows: Sequence[Row]) -> list[str]:
    return _table(
        rows,
        ("call", lambda row: row["name"]),
        ("in flight", lambda row: f"{row['in_flight']}"),
        ("answered/s", lambda row: f"{row['answered_per_second']:g}"),
        ("in-process/s", lambda row: f"{row['in_process_per_second']:g}"),
        ("p50 ms", lambda row: f"{row['p50_ms']:.3g}"),
        ("mean batch", lambda row: f"{row['mean_batch']:g}"),
        (
            "share or added p50",
            _end_to_end_figure,
        ),
        ("target", lambda row: f"≥ {row['target']:g}" if "share" in row else f"≤ {row['target']:g} ms"),
        ("", _verdict),
    )


def _memory(rows: Sequence[Row]) -> list[str]:
    return _table(
        rows,
        ("", lambda row: row["name"]),
        ("batch", lambda row: f"{row['batch']}"),
        ("before, MiB", lambda row: _mebibytes(row, "resident_mib")),
        ("at most, MiB", lambda row: _mebibytes(row, "highest_mib")),
        ("added, MiB", lambda row: _mebibytes(row, "added_mib")),
    )


def _mebibytes(row: Row, name: str) -> str:
    return f"{row[name]:.0f}" if name in row else "more than there is"


def _growth(rows: Sequence[Row]) -> list[str]:
    timed = _table(
        [row for row in rows if "ratio" in row],
        ("growth of", lambda row: row["of"]),
        ("to", lambda row: f"{row['size']}"),
        ("", lambda row: row["name"]),
        ("in forward passes", _ratio),
        ("ms per image", lambda row: f"{row['milliseconds_per_image']:.3g}"),
    )
    slices = [row for row in rows if "kept_bytes" in row]
    if not slices:
        return timed
    return [
        *timed,
        "",
        *_table(
            # Each power of two and the last: the others are in the JSON.
            [row for row in slices if row["size"] & (row["size"] - 1) == 0 or row is slices[-1]],
            ("slices kept", lambda row: f"{row['size']}"),
            ("KiB together", lambda row: f"{row['kept_bytes'] / 1024:.0f}"),
            ("first use of the last, ms", lambda row: f"{row['first_use_milliseconds']:.3g}"),
            ("next use, µs", lambda row: f"{1e3 * row['hit_milliseconds']:.2g}"),
            ("its work", lambda row: "not sliceable" if row["work"] is None else f"{row['work']:.1%}"),
        ),
    ]


_PARTS: Mapping[str, Callable[[Sequence[Row]], list[str]]] = {
    "in-process": _in_process,
    "handler": _handler,
    "end-to-end": _end_to_end,
    "memory": _memory,
    "growth": _growth,
}
_TITLES = {
    "in-process": "In one process, in plain forward passes: median (quartiles)",
    "handler": "TorchServe's handler",
    "end-to-end": "Gateway and TorchServe",
    "memory": "Memory",
    "growth": "Growth",
}


def _ratio(row: Row | None) -> str:
    return "" if row is None else f"{row['ratio']:.2f} ({row['lower']:.2f}–{row['upper']:.2f})"  # noqa: RUF001


def _sliced(row: Row | None) -> str:
    if row is None or not (slices := row.get("slices")):
        return ""
    work = f", {slices['work']:.0%} of the work" if slices["sliced"] else ""
    return f"{slices['sliced']} of {slices['classes']}{work} ({slices['sparsity']:.0%} sparse)"


def _end_to_end_figure(row: Row) -> str:
    return f"{row['share']:.2f}" if "share" in row else f"{row['added_p50_ms']:.2f} ms"


def _verdict(row: Row | None) -> str:
    if row is None or row["meets"] is None:
        return ""
    return "pass" if row["meets"] else "falls short"


def _table(rows: Sequence[Row], *columns: Column) -> list[str]:
    lines = [_line([title for title, _ in columns]), "|---|" + "--:|" * (len(columns) - 1)]
    return lines + [_line([cell(row) for _, cell in columns]) for row in rows]


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
