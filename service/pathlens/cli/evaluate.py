"""`pathlens evaluate`."""

import shlex
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

import click
import torch
from rich.console import Console
from rich.table import Table

from pathlens.bundle.store import Bundle, load_bundle
from pathlens.classifier.images import ImageSource
from pathlens.cli.devices import Device
from pathlens.cli.progress import with_progress
from pathlens.cli.ranges import FloatRange
from pathlens.errors import ImagesError
from pathlens.evaluation.annotations import (
    Annotation,
    read_annotations,
    read_folder_labels,
    read_npz_labels,
)
from pathlens.evaluation.evaluate import BY_FREQUENCY, TRANSFERRED, Evaluation
from pathlens.evaluation.journal import Journal
from pathlens.evaluation.loading import BatchLoader
from pathlens.evaluation.observation import Summary, summarise
from pathlens.evaluation.pathway_methods import GENERATED, PATHWAY_METHODS
from pathlens.evaluation.report.report import Report, write_report
from pathlens.evaluation.report.vocabulary import METHODS
from pathlens.evaluation.settings import EvaluationSettings
from pathlens.explanation import LINEARITY_RADII, Ablation, Granularity
from pathlens.version import __version__

_DEFAULTS = EvaluationSettings()
_WORK = "work"


@click.command("evaluate")
@click.argument("bundle", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--images", type=click.Path(path_type=Path), required=True, help="A folder, or an NPZ with 'images'.")
@click.option(
    "--labels",
    type=click.Path(path_type=Path),
    help="CSV with columns file (images[3] in an NPZ), label and boxes. Default: class folders, or an NPZ's 'labels'.",
)
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), required=True, help="Folder of the report.")
@click.option("--limit", type=click.IntRange(1), default=256, show_default=True, help="Most images, drawn at random.")
@click.option(
    "--sparsity",
    "sparsities",
    type=FloatRange(0, 1, max_open=True),
    multiple=True,
    default=_DEFAULTS.sparsities,
    show_default=True,
    help="Fraction of neurons removed; repeatable.",
)
@click.option(
    "--map-sparsity",
    type=FloatRange(0, 1, max_open=True),
    default=_DEFAULTS.map_sparsity,
    show_default=True,
    help="Of the pathways whose maps are drawn.",
)
@click.option(
    "--granularity",
    type=click.Choice([granularity.value for granularity in Granularity]),
    help="What a neuron is. Default: that of the bundle.",
)
@click.option(
    "--ablation",
    type=click.Choice([ablation.value for ablation in Ablation]),
    help="What stands in for removed neurons, whatever the method: zero, or that of the bundle, which is the default.",
)
@click.option(
    "--method",
    "methods",
    type=click.Choice(PATHWAY_METHODS),
    multiple=True,
    help="Pathways to compare; repeatable. neuron_mct is always measured. Default: all that the bundle can make.",
)
@click.option(
    "--steps", type=click.IntRange(1), default=_DEFAULTS.steps, show_default=True, help="Of NeuronIntGrad's integral."
)
@click.option(
    "--sample",
    type=click.IntRange(1),
    default=_DEFAULTS.sample,
    show_default=True,
    help="Images for what is expensive, in whole batches: randomised layers and linearity.",
)
@click.option(
    "--layers", type=click.IntRange(2), help="Look at so many randomised layers, evenly spread. Default: all."
)
@click.option(
    "--radius",
    "radii",
    type=FloatRange(*LINEARITY_RADII),
    multiple=True,
    default=_DEFAULTS.radii,
    show_default=True,
    help="Of a ball in which linearity is measured; repeatable.",
)
@click.option(
    "--minimum-images",
    type=click.IntRange(1),
    default=_DEFAULTS.minimum_images,
    show_default=True,
    help="Classes with fewer building images get no class pathway.",
)
@click.option(
    "--others",
    type=click.IntRange(1),
    default=_DEFAULTS.others,
    show_default=True,
    help="Images of other classes on which each class pathway is measured.",
)
@click.option("--batch-size", type=click.IntRange(2), default=_DEFAULTS.batch_size, show_default=True)
@click.option("--seed", type=int, default=_DEFAULTS.seed, show_default=True)
@click.option("--device", type=Device(), default="cpu", show_default=True, help="cpu or cuda.")
def command(
    bundle: Path,
    images: Path,
    labels: Path | None,
    out: Path,
    limit: int,
    sparsities: tuple[float, ...],
    map_sparsity: float,
    granularity: str | None,
    ablation: str | None,
    methods: tuple[str, ...],
    steps: int,
    sample: int,
    layers: int | None,
    radii: tuple[float, ...],
    minimum_images: int,
    others: int,
    batch_size: int,
    seed: int,
    device: str,
) -> None:
    """Measure how good the explanations of BUNDLE are, and write a report.

    Use images that did not fit the bundle: the report measures its class pathways as well. The work is kept in
    OUT/work as it is done: after an interruption the same command goes on where it stopped. With the same seed every
    figure but the time is the same. All methods are compared under one ablation, which every figure states.

    \b
    Examples:
      pathlens evaluate shop-bundle --images held-out/ --out report
      pathlens evaluate shop-bundle --images held-out.npz --labels boxes.csv --limit 64 --out report
    """  # noqa: D301
    console = Console(stderr=True)
    fitted = load_bundle(bundle)
    source = ImageSource(images)
    neuron = Granularity(granularity) if granularity else fitted.bank.granularity
    own_ablation = fitted.bank.replacement.ablation
    lacking = _why_not_generated(fitted, neuron)
    asked = methods or tuple(name for name in PATHWAY_METHODS if name != GENERATED or not lacking)
    try:
        settings = EvaluationSettings(
            granularity=neuron,
            sparsities=tuple(sorted({*sparsities, map_sparsity})),
            map_sparsity=map_sparsity,
            ablation=Ablation(ablation) if ablation else own_ablation,
            methods=tuple(name for name in PATHWAY_METHODS if name in asked or name == "neuron_mct"),
            steps=steps,
            sample=min(sample, limit),
            layers=layers,
            radii=tuple(sorted(set(radii))),
            minimum_images=minimum_images,
            others=others,
            batch_size=batch_size,
            seed=seed,
        )
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    classifier = fitted.classifier.to(device)
    annotations = _annotations(source, images, labels, fitted.labels, console)
    loader = BatchLoader(classifier, fitted.preprocessing, source, annotations, limit, batch_size, seed)
    bank = fitted.bank.to(classifier.device)
    evaluation = Evaluation(loader, fitted.labels, bank, settings, out / _WORK, fitted.generator)
    if lacking and not methods:
        console.print(f"{METHODS[GENERATED].label} is left out: {lacking}.")
    ablations = settings.ablation.value
    if settings.ablation is not own_ablation:
        ablations += f"; {own_ablation.value} for stored class pathways"
    facts = {
        "bundle": fitted.name,
        "bundle SHA-256": fitted.sha256,
        "classifier SHA-256": classifier.fingerprint,
        "images": f"{len(loader.order)} of {len(source)} in {images.name}",
        "neurons": f"{settings.granularity.value}s",
        "ablation": ablations,
        **({f"{METHODS[GENERATED].label} left out": lacking} if GENERATED not in settings.methods and lacking else {}),
        "steps of NeuronIntGrad": str(steps),
        "sample": f"{min(evaluation.sample, len(loader.order))} images for randomised layers and linearity",
        "left out": f"{len(source.skipped)} images that cannot be read",
        "seed": str(seed),
        "pathlens": __version__,
        "torch": torch.__version__,
        "command": shlex.join(["pathlens", *sys.argv[1:]]),
    }
    depends_on = {
        **settings.to_json(),
        "bundle": fitted.sha256,
        "images": loader.fingerprint,
        "pathlens": __version__,
        "torch": torch.__version__,
        "device": classifier.device.type,
    }
    journal = Journal(out / _WORK / "journal.jsonl", depends_on)
    try:
        observations = journal.run(with_progress(list(evaluation.tasks()), journal, console))
    except KeyboardInterrupt:
        console.print(f"Stopped. What is done is kept in {out / _WORK}: the same command goes on from there.")
        raise click.exceptions.Exit(130) from None
    summaries = summarise(observations)
    write_report(Report(f"Explanations of {fitted.name}", facts, summaries, observations), out)
    for skipped in source.skipped:
        console.print(f"Skipped {skipped}", markup=False)
    _print_summary(summaries, settings, console)
    click.echo(out / "report.html")


def _annotations(
    source: ImageSource, images: Path, labels: Path | None, names: tuple[str, ...], console: Console
) -> Mapping[str, Annotation]:
    if labels is not None:
        known = read_annotations(labels, names)
        files = {source.name(position) for position in range(len(source))}
        if not files & known.keys():
            raise ImagesError(
                f"{labels} describes no image of {images}: it names {next(iter(known), 'nothing')!r}, and the images "
                f"have names such as {source.name(0)!r}."
            )
        if strangers := known.keys() - files:
            console.print(f"{len(strangers)} lines of {labels} name no image, such as {min(strangers)!r}", markup=False)
        return known
    return read_folder_labels(source, names) if images.is_dir() else read_npz_labels(images, names) or {}


def _why_not_generated(bundle: Bundle, granularity: Granularity) -> str:
    """Say why there are no generated pathways; empty if there are."""
    if bundle.generator is None:
        return "the bundle has no generator; fit it with --source generated"
    if bundle.generator.granularity is not granularity:
        return f"the bundle's generator makes {bundle.generator.granularity.value} pathways"
    return ""


def _print_summary(summaries: Iterable[Summary], settings: EvaluationSettings, console: Console) -> None:
    found = {(each.measure, each.method, each.sparsity, each.control): each.mean for each in summaries}
    table = Table(
        title=f"Pathways at {settings.map_sparsity:.0%} sparsity, {settings.ablation.value} ablation",
        caption="forcing: share of images of another class that an image's pathway turns into its own. control: "
        "agreement of random pathways of the same size.",
        pad_edge=False,
    )
    table.add_column("pathways")
    for heading in ("removed", "agreement", "control", "drop", "forcing", "acIOU", "dead"):
        table.add_column(heading, justify="right")
    rows: list[tuple[str, float | None]] = [(method, settings.map_sparsity) for method in settings.methods]
    for method, sparsity in [*rows, (GENERATED, None), (TRANSFERRED, None), (BY_FREQUENCY, None)]:
        if ("agreement", method, sparsity, False) in found:
            values = [
                found.get((measure, method, sparsity, control))
                for measure, control in (
                    ("realised sparsity", False),
                    ("agreement", False),
                    ("agreement", True),
                    ("confidence drop", False),
                    ("instance forcing", False),
                    ("acIOU", False),
                    ("dead share", False),
                )
            ]
            label = METHODS[method].label + (", own" if (method, sparsity) == (GENERATED, None) else "")
            table.add_row(label, *("-" if value is None else f"{value:.0%}" for value in values))
    console.print(table)
