"""`pathlens explain`."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click
import numpy as np
from google.protobuf.json_format import MessageToDict
from rich import box
from rich.console import Console
from rich.progress import track
from rich.table import Table

from pathlens.cli.connection import Connect, connection_options, timeout_option
from pathlens.errors import PathlensError
from pathlens.explanation import (
    STAGES,
    Ablation,
    Explanation,
    ExplanationOptions,
    ExplanationResult,
    Granularity,
    Output,
    PathwaySource,
    Reduction,
    Targets,
    Typicality,
)
from pathlens.wire.responses import explain_response

# What the messages can hold; what the model can answer is for the service to say.
_DEFAULT_STEPS = ExplanationOptions().integration_steps
_COUNT, _INDEX = click.IntRange(0, 2**32 - 1), click.IntRange(-(2**31), 2**31 - 1)

_REMOVED = {
    Ablation.ZERO: "zero",
    Ablation.MEAN: "their mean over the images of the fit",
    Ablation.OPTIMAL: "constants learned for the class",
}
"""What removed neurons put out."""

_T = TypeVar("_T", PathwaySource, Granularity, Output, Reduction)


def _choice(kind: type[_T]) -> click.Choice[str]:
    return click.Choice([member.value for member in kind])


@click.command("explain")
@click.argument("images", nargs=-1, required=True, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@connection_options
@timeout_option(help="For all images together.  [default: any time]")
@click.option("--model", default="", help="Name of the model; may be left out where only one is served.")
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), help="Folder for pictures, maps and results.")
@click.option("--format", "form", type=click.Choice(["table", "json"]), default="table", show_default=True)
@click.option("--source", type=_choice(PathwaySource), default="transferred", show_default=True, help="Of the pathway.")
@click.option("--sparsity", type=float, help="Fraction of neurons removed; for neuron_mct and neuron_intgrad.")
@click.option("--granularity", type=_choice(Granularity), help="Default: the model's own, as `pathlens models` says.")
@click.option("--reduction", type=_choice(Reduction), default="signed_maximum", show_default=True)
@click.option("--top-k", type=_COUNT, default=0, help="Explain the k most probable classes.")
@click.option("--class", "labels", multiple=True, help="Explain this class, by label; repeatable.")
@click.option("--class-index", "indices", type=_INDEX, multiple=True, help="Explain this class, by index; repeatable.")
@click.option("--steps", type=_COUNT, default=_DEFAULT_STEPS, show_default=True, help="Of source neuron_intgrad.")
@click.option("--linearity-radius", type=float, help="Check how linear the pathway is in a ball of this radius.")
@click.option("--top-neurons", type=_COUNT, default=0, help="List the neurons that contribute most.")
@click.option(
    "--output", "outputs", type=_choice(Output), multiple=True, help="Default: pathway, faithfulness; with --out all."
)
def command(
    connect: Connect,
    images: tuple[Path, ...],
    timeout: float | None,
    model: str,
    out: Path | None,
    form: str,
    source: str,
    sparsity: float | None,
    granularity: str | None,
    reduction: str,
    top_k: int,
    labels: tuple[str, ...],
    indices: tuple[int, ...],
    steps: int,
    linearity_radius: float | None,
    top_neurons: int,
    outputs: tuple[str, ...],
) -> None:
    """Explain IMAGES through a running service.

    JSON is the protobuf form of `ExplainResponse`, one object for each image, with bytes in base64. The exit code is 1
    if an image failed.

    \b
    Examples:
      pathlens explain cat.jpg --out explanations
      pathlens explain cat.jpg --source generated
      pathlens explain *.jpg --format json --source neuron_mct --sparsity 0.9 --class tabby
      pathlens explain cat.jpg --address pathlens.example.com:443 --tls --token-file token
    """  # noqa: D301
    if {"map", "heatmap", "overlay"} & set(outputs) and out is None and form == "table":
        raise click.UsageError("Maps and pictures need --out FOLDER, or --format json.")
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
    default = {Output.PATHWAY, Output.FAITHFULNESS}
    if out is not None:
        default |= {Output.MAP, Output.HEATMAP, Output.OVERLAY}
    options = ExplanationOptions(
        targets=Targets(top_k, indices, labels),
        source=PathwaySource(source),
        sparsity=sparsity,
        granularity=Granularity(granularity) if granularity else None,
        outputs=frozenset(Output(output) for output in outputs) or frozenset(default),
        reduction=Reduction(reduction),
        top_neurons=top_neurons,
        integration_steps=steps,
        linearity_radius=linearity_radius,
    )
    answers: dict[int, ExplanationResult | PathlensError] = {}
    try:
        with connect(model=model) as client:
            stream = client.stream_explain(images, options, timeout=timeout)
            for position, answer in _with_progress(stream, len(images)):
                answers[position] = answer
                if out is not None and isinstance(answer, ExplanationResult):
                    _write(out, _stem(images, position), answer)
    finally:
        # What came is shown even if the rest did not.
        if answers and form == "json":
            _print_json(images, answers)
        elif answers:
            _print_table(images, answers)
    if any(isinstance(answer, PathlensError) for answer in answers.values()):
        raise click.exceptions.Exit(1)


def _with_progress(
    stream: Iterator[tuple[int, ExplanationResult | PathlensError]], total: int
) -> Iterator[tuple[int, ExplanationResult | PathlensError]]:
    yield from track(stream, "Explaining", total, console=Console(stderr=True), transient=True)


def _stem(images: Sequence[Path], position: int) -> str:
    """Name the files of an image after it, with its number where names repeat."""
    repeated = len({image.stem for image in images}) < len(images)
    return f"{position}-{images[position].stem}" if repeated else images[position].stem


def _as_dict(result: ExplanationResult) -> dict[str, Any]:
    return MessageToDict(explain_response(result), preserving_proto_field_name=True)


def _write(folder: Path, name: str, result: ExplanationResult) -> None:
    (folder / f"{name}.json").write_text(json.dumps(_as_dict(result), indent=2) + "\n")
    for explanation in result.explanations:
        stem = f"{name}.class-{explanation.target.class_index}"
        if explanation.heatmap_png:
            (folder / f"{stem}.heatmap.png").write_bytes(explanation.heatmap_png)
        if explanation.overlay_png:
            (folder / f"{stem}.overlay.png").write_bytes(explanation.overlay_png)
        if explanation.map is not None:
            np.save(folder / f"{stem}.map.npy", explanation.map)


def _print_json(images: Sequence[Path], answers: dict[int, ExplanationResult | PathlensError]) -> None:
    documents = []
    for position, answer in sorted(answers.items()):
        image = images[position]
        if isinstance(answer, PathlensError):
            error = {"code": answer.code, "reason": answer.reason, "message": answer.message}
            documents.append({"image": str(image), "error": error})
        else:
            documents.append({"image": str(image), **_as_dict(answer)})
    click.echo(json.dumps(documents, indent=2))


def _print_table(images: Sequence[Path], answers: dict[int, ExplanationResult | PathlensError]) -> None:
    console = Console()
    results = [answer for answer in answers.values() if isinstance(answer, ExplanationResult)]
    explanations = [explanation for result in results for explanation in result.explanations]
    linearity = any(explanation.linearity for explanation in explanations)
    # All come from one source and one model, so they share the ablation.
    ablation = explanations[0].ablation if explanations else None
    table = explanation_table(linearity=linearity, ablation=ablation)
    for position, answer in sorted(answers.items()):
        image = images[position]
        if isinstance(answer, PathlensError):
            Console(stderr=True).print(f"{image}: {answer.message} [{answer.reason}]", markup=False)
            continue
        for explanation in answer.explanations:
            add_row(table, image.name, answer, explanation, linearity=linearity)
    if table.row_count:
        console.print(table)
    for position, answer in sorted(answers.items()):
        if isinstance(answer, ExplanationResult):
            _print_typicality(images[position], answer)
            _print_neurons(images[position], answer)


def _print_typicality(image: Path, answer: ExplanationResult) -> None:
    for explanation in answer.explanations:
        if explanation.typicality is not None:
            click.echo(f"{image.name}  {explanation.target.label}  {_in_words(explanation.typicality)}")


def _in_words(typicality: Typicality) -> str:
    ranks = {
        "sparsity": typicality.sparsity_rank,
        "IoU": typicality.class_pathway_iou_rank,
        "drop": typicality.confidence_drop_rank,
    }
    known = ", ".join(f"{name} rank {rank:.2f}" for name, rank in ranks.items() if rank is not None)
    images = typicality.class_images
    return f"among {images} held-out images of its class: {known}" if images else f"among all held-out images: {known}"


def _print_neurons(image: Path, answer: ExplanationResult) -> None:
    for explanation in answer.explanations:
        for neuron in explanation.top_neurons:
            place = ", ".join(map(str, neuron.index))
            click.echo(f"{image.name}  {explanation.target.label}  {neuron.tap}[{place}]  {neuron.contribution:+.4f}")


def explanation_table(
    first: str = "image",
    title: str | None = None,
    stages: bool = False,
    linearity: bool = False,
    ablation: Ablation | None = None,
) -> Table:
    """Make the table that `add_row` fills.

    Args:
        first: Heads the first column.
        title: Of the table.
        stages: Whether to split the time.
        linearity: Whether there is a column for the linearity check.
        ablation: What the caption says of removed neurons, if all rows have it.
    """
    table = Table(
        title=title,
        caption="p: probability in the classifier, q: in the pathway alone. IoU: with the stored class pathway. "
        + ("bent: relative error of the linear approximation. " if linearity else "")
        + (f"Removed neurons put out {_REMOVED[ablation]}. " if ablation else "")
        + f"On the right: milliseconds{' per stage' if stages else ''}.",
        box=box.SIMPLE_HEAD,
        padding=0,
        show_edge=False,
    )
    for heading in (first, "target"):
        table.add_column(heading, overflow="fold")
    checks = ("q", "bent") if linearity else ("q",)
    for heading in ("p", "sparse", "IoU", *checks, *(STAGES if stages else ("ms",))):
        table.add_column(heading, justify="right", no_wrap=True)
    return table


def add_row(
    table: Table,
    first: str,
    result: ExplanationResult,
    explanation: Explanation,
    stages: bool = False,
    linearity: bool = False,
) -> None:
    """Add one explanation to a table made by `explanation_table`."""
    milliseconds = [1e3 * result.stage_seconds.get(stage, 0.0) for stage in STAGES]
    check, iou = explanation.faithfulness, explanation.class_pathway_iou
    table.add_row(
        first,
        explanation.target.label,
        f"{explanation.target.probability:.2f}",
        f"{explanation.sparsity:.1%}",
        "-" if iou is None else f"{iou:.2f}",
        "-" if check is None else f"{check.pathway_confidence:.2f}",
        *([f"{explanation.linearity.relative_error:.3f}" if explanation.linearity else "-"] if linearity else []),
        *([f"{value:.1f}" for value in milliseconds] if stages else [f"{sum(milliseconds):.1f}"]),
    )
