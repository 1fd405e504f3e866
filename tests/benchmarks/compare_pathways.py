"""GEN-CNP beside the other sources of pathways, at the same sparsity: the table of docs/gen-cnp.md.

    python tests/benchmarks/compare_pathways.py

It evaluates the bundle `channel-zero` of two_sided_frontier.py, which that script makes and measures first, on the test
images of CIFAR-10: at the sparsity that its generator finds on average, and at others. Everything runs under zero
ablation, as in the papers. Repeating the command goes on where it was interrupted.
"""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pathlens.cli import main as pathlens
from pathlens.evaluation.report.vocabulary import METHODS

ROOT = Path(__file__).parents[2]
FIXTURES = Path(os.environ.get("PATHLENS_FIXTURES", ROOT.parent / "shared" / "fixtures")).resolve()
BUNDLE = ROOT / "build" / "frontier" / "channel-zero"
REPORT = ROOT / "build" / "frontier" / "comparison"
MEASURED = ROOT / "build" / "frontier" / "figures.json"
MEASURES = {
    "agreement": "agreement",
    "confidence increase": "mIC",
    "confidence drop": "mDC",
    "acIOU": "acIOU",
    "cross IoU": "cross IoU",
    "instance forcing": "forcing by one image's pathway",
}
SHARES = ("agreement", "confidence increase", "instance forcing")


def sparsities() -> list[float]:
    """Return the sparsities to compare at, that of the generator among them."""
    own = json.loads(MEASURED.read_text())["channel-zero"]["instances"]["sparsity"]
    return sorted({0.8, 0.9, round(own, 3)})


def evaluate(grid: Sequence[float]) -> None:
    """Evaluate the bundle."""
    arguments = (
        *("evaluate", BUNDLE, "--images", FIXTURES / "cifar10_test_jpegged.npz", "--out", REPORT),
        *(part for sparsity in grid for part in ("--sparsity", sparsity)),
        *("--limit", 256, "--steps", 10, "--sample", 16, "--layers", 2, "--batch-size", 32),
    )
    pathlens([str(argument) for argument in arguments], standalone_mode=False)


def print_tables(summaries: Sequence[Mapping[str, Any]], grid: Sequence[float]) -> None:
    """Print one table per measure, methods in rows, sparsities in columns, the random control in brackets."""
    known = {(row["measure"], row["method"], row["sparsity"], row["control"]): row["mean"] for row in summaries}
    for measure, title in MEASURES.items():
        columns = (*grid, None)
        heads = [f"{sparsity:.1%}" if sparsity else "its own" for sparsity in columns]
        print(f"\n| {title} | " + " | ".join(heads) + " |\n|---|" + "--:|" * len(columns))
        for method in METHODS:
            values = [known.get((measure, method, sparsity, False)) for sparsity in columns]
            if method != "transferred" and any(value is not None for value in values):
                cells = [_cell(measure, value) for value in values]
                print(f"| {METHODS[method].label} | " + " | ".join(cells) + " |")
    own = known.get(("realised sparsity", "generated", None, False))
    print(f"\nGEN-CNP's own sparsity: {own:.1%}")


def _cell(measure: str, value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.1%}" if measure in SHARES else f"{value:.3f}"


if __name__ == "__main__":
    chosen = sparsities()
    evaluate(chosen)
    print_tables(json.loads((REPORT / "report.json").read_text())["summaries"], chosen)
