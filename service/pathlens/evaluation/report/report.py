"""What an evaluation found, written to a folder."""

import csv
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from io import StringIO
from pathlib import Path

from pathlens.evaluation.observation import Observation, Summary
from pathlens.evaluation.report.page import render_page
from pathlens.files import write_whole


@dataclass(frozen=True)
class Report:
    """The figures of an evaluation and what they are of.

    Attributes:
        title: Heading of the page.
        facts: What was measured and how, by name: the bundle, its SHA-256, the number of images, the command line.
        summaries: Means over the images, in the order they are listed.
        observations: Image by image.
    """

    title: str
    facts: Mapping[str, str]
    summaries: Sequence[Summary]
    observations: Sequence[Observation]


def write_report(report: Report, folder: Path) -> None:
    """Write `report.html`, `report.json`, `summaries.csv` and `observations.csv`.

    The page stands alone: it loads nothing. Each file appears whole or not at all, and the same report gives the same
    bytes. A value that is NaN or infinite is null in the JSON and empty in the CSV files.

    Args:
        report: What to write.
        folder: Where to; made if missing.
    """
    contents = {
        "report.html": render_page(report.title, report.facts, report.summaries, report.observations),
        "report.json": _json(report),
        "summaries.csv": _csv([field.name for field in fields(Summary)], report.summaries),
        "observations.csv": _csv([field.name for field in fields(Observation)], report.observations),
    }
    for name, text in contents.items():
        with write_whole(folder / name) as file:
            file.write(text.encode())


def _json(report: Report) -> str:
    summaries = [_values(summary) for summary in report.summaries]
    contents = {"title": report.title, "facts": dict(report.facts), "summaries": summaries}
    return json.dumps(contents, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def _csv(columns: Sequence[str], rows: Sequence[Summary] | Sequence[Observation]) -> str:
    buffer = StringIO()
    writer = csv.DictWriter(buffer, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(_values(row) for row in rows)
    return buffer.getvalue()


def _values(row: Summary | Observation) -> dict[str, object]:
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in asdict(row).items()
    }
