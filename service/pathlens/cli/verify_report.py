"""What `pathlens verify` says of an explainer: tables, and all figures as JSON."""

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import onnxruntime
import torch
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from pathlens.onnx_export.kinks import NUDGES
from pathlens.onnx_export.measures import Measure
from pathlens.onnx_export.session import ExplainerSession
from pathlens.onnx_export.speed import Speed
from pathlens.onnx_export.verification import OutputComparison, Verdict, Verification
from pathlens.version import __version__

LONGEST_TABLE = 5
"""Maps that are shown; JSON has all of them."""

_SENTENCES = {
    Verdict.EQUAL: "{explainer} equals {bundle} on {images} images",
    Verdict.AT_KINKS: "{explainer} equals {bundle} on {images} images, but for {maps} at kinks",
    Verdict.DIFFERS: "{explainer} differs from {bundle} on {images} images",
}


def verdict_line(found: Verification, explainer: object, bundle: object) -> str:
    """Say in one line whether the explainer is what PyTorch computes."""
    count = len(found.maps_beyond)
    maps = f"{count} map" if count == 1 else f"{count} maps"
    return _SENTENCES[found.verdict].format(explainer=explainer, bundle=bundle, images=found.images, maps=maps)


def print_report(found: Verification, speeds: Sequence[Speed], threads: int, console: Console) -> None:
    """Print how far every output is from PyTorch's, which maps differ and why, and how long both take."""
    console.print(_comparison_table(found))
    if found.maps_beyond:
        console.print(_maps_table(found))
        console.print(_explanation(found), soft_wrap=True, highlight=False)
    console.print(_speed_table(speeds, threads))


def _comparison_table(found: Verification) -> Table:
    sizes = ", ".join(map(str, found.batch_sizes))
    table = Table(
        title=f"ONNX Runtime beside PyTorch: {found.images} images in batches of {sizes}",
        caption="The largest difference of an image: of logits, |a - b| / max(1, |b|); of maps, ‖a - b‖ / ‖b‖; of all "
        "others, how many elements are not the same.",
    )
    table.add_column("output")
    for heading in ("difference", "tolerance", "images beyond"):
        table.add_column(heading, justify="right")
    table.add_column("verdict")
    for each in found.outputs:
        difference = f"{each.largest:.1e}" if each.measure.tolerance else f"{each.largest:.0f}"
        tolerance = f"{each.measure.tolerance:g}"
        table.add_row(each.output, difference, tolerance, str(each.images_beyond), _verdict(found, each))
    differing = ", ".join(found.differing_metadata)
    verdict = "[red]differs[/red]" if differing else "[green]equal[/green]"
    table.add_row("metadata", differing or "none", "-", "-", verdict)
    return table


def _verdict(found: Verification, output: OutputComparison) -> str:
    if output.equal:
        return "[green]equal[/green]"
    return "[yellow]at kinks[/yellow]" if found.at_kinks(output) else "[red]differs[/red]"


def _maps_table(found: Verification) -> Table:
    # What no kink explains comes first.
    maps = sorted(found.maps_beyond, key=lambda each: (each.at_kink, -each.distance))
    table = Table(title=f"Maps that differ by more than {Measure.MAP.tolerance:g}")
    if len(maps) > LONGEST_TABLE:
        table.caption = f"and {len(maps) - LONGEST_TABLE} more"
    table.add_column("image", overflow="fold")
    table.add_column("map", no_wrap=True)
    for heading in ("ONNX to\nPyTorch", "ONNX to\nfloat64", "PyTorch to\nfloat64", "is float64's\nif moved by"):
        table.add_column(heading, justify="right")
    for each in maps[:LONGEST_TABLE]:
        distances = (each.distance, each.onnx_from_float64, each.torch_from_float64)
        never = "never" if each.same_pathway else "other mask"
        moved = never if each.nudge is None else f"{each.nudge:g}"
        table.add_row(escape(each.image), each.source.value, *(f"{distance:.1e}" for distance in distances), moved)
    return table


def _explanation(found: Verification) -> str:
    maps, tolerance = found.maps_beyond, Measure.MAP.tolerance
    at_kinks = sum(each.at_kink for each in maps)
    own = sum(each.torch_from_float64 > tolerance for each in maps)
    return (
        f"At kinks: {at_kinks} of {len(maps)}. There the gradient jumps within rounding (ReLU at 0); with the image "
        f"moved by at most {NUDGES[-1]:g} of its largest value, ONNX has PyTorch's float64 map.\n"
        f"PyTorch's own float32 map is as far from its float64 map (beyond {tolerance:g}) in {own} of {len(maps)}."
    )


def _speed_table(speeds: Sequence[Speed], threads: int) -> Table:
    noun = "thread" if threads == 1 else "threads"
    table = Table(
        title=f"Milliseconds per image, {threads} {noun} each",
        caption=f"Medians of at least {min(speed.rounds for speed in speeds)} runs, which take turns.",
    )
    for heading in ("images at once", "ONNX Runtime", "PyTorch", "PyTorch / ONNX Runtime"):
        table.add_column(heading, justify="right")
    for speed in speeds:
        table.add_row(str(speed.batch_size), f"{speed.onnx_runtime:.3g}", f"{speed.torch:.3g}", f"{speed.ratio:.2f}")
    return table


def to_json(
    found: Verification, speeds: Sequence[Speed], threads: int, session: ExplainerSession, bundle_sha256: str
) -> str:
    """Return all figures as JSON; a value that is not finite is null."""
    values = {
        "verdict": found.verdict.value,
        "explainer": {
            "sha256": hashlib.sha256(session.path.read_bytes()).hexdigest(),
            **session.metadata.model_dump(
                mode="json", include={"name", "classifier_sha256", "bundle_sha256", "sources", "pathlens_version"}
            ),
        },
        "bundle_sha256": bundle_sha256,
        **asdict(found),
        "outputs": [
            {
                **asdict(output),
                "measure": output.measure.value,
                "tolerance": output.measure.tolerance,
                "equal": output.equal,
            }
            for output in found.outputs
        ],
        "maps_beyond": [
            {**asdict(each), "source": each.source.value, "at_kink": each.at_kink} for each in found.maps_beyond
        ],
        "speed": {
            "unit": "milliseconds per image",
            "threads": threads,
            "batches": [{**asdict(speed), "ratio": speed.ratio} for speed in speeds],
        },
        "versions": {"pathlens": __version__, "torch": torch.__version__, "onnxruntime": onnxruntime.__version__},
    }
    return json.dumps(_finite(values), indent=2) + "\n"


def _finite(value: Any) -> Any:
    """Replace infinity, which JSON cannot hold, by null."""
    if isinstance(value, dict):
        return {key: _finite(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
