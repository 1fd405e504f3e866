"""`pathlens roar`."""

import hashlib
import shlex
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path, PurePosixPath

import click
import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor, nn

from pathlens.attribution.pathway_gradient import pathway_gradient
from pathlens.bundle.store import Bundle, load_bundle
from pathlens.classifier.captured import CapturedClassifier
from pathlens.classifier.images import ImageSource
from pathlens.classifier.preprocessing import Preprocessing
from pathlens.classifier.sources import load_classifier
from pathlens.cli.devices import Device
from pathlens.cli.progress import with_progress
from pathlens.cli.ranges import FloatRange
from pathlens.errors import EvaluationError, ImagesError
from pathlens.evaluation.annotations import read_annotations, read_npz_labels
from pathlens.evaluation.journal import Journal
from pathlens.evaluation.map_methods import MapMethod, comparison_maps
from pathlens.evaluation.observation import Summary, summarise
from pathlens.evaluation.report.report import Report, write_report
from pathlens.evaluation.roar import Roar, RoarSettings
from pathlens.pathways.neuron_mct import neuron_mct
from pathlens.version import __version__

LARGEST_IMAGES = 4 * 2**30
"""Bytes of preprocessed images; beside them, a copy without the removed pixels is in memory."""

_COMPARED = ("gradient", "gradient_times_input", "integrated_gradients", "random")
_DEFAULTS = RoarSettings()


class _Fractions(click.ParamType[tuple[float, ...]]):
    """Numbers between 0 and 1 with commas between them."""

    name = "numbers"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> tuple[float, ...]:
        try:
            fractions = tuple(sorted({float(part) for part in str(value).split(",")}))
            return RoarSettings(fractions).fractions
        except ValueError:
            self.fail(f"{value!r} is not a list of numbers between 0 and 1, both excluded, as 0.1,0.5", param, ctx)


@click.command("roar")
@click.argument("bundle_folder", metavar="BUNDLE", type=click.Path(path_type=Path))
@click.option("--classifier", "source", required=True, help="package.module:factory, which makes an untrained network.")
@click.option("--images", type=click.Path(path_type=Path), required=True, help="Class folders, or an NPZ file.")
@click.option("--labels", type=click.Path(path_type=Path), help="CSV file with the columns file and label.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder of the report and the journal.")
@click.option(
    "--fractions",
    type=_Fractions(),
    default=",".join(map(str, _DEFAULTS.fractions)),
    show_default=True,
    help="Shares of the pixels to remove; none removed is always measured too.",
)
@click.option(
    "--seeds",
    type=click.IntRange(1),
    default=_DEFAULTS.seeds,
    show_default=True,
    help="Retrainings for each map and fraction.",
)
@click.option("--epochs", type=click.IntRange(1), default=_DEFAULTS.epochs, show_default=True)
@click.option("--batch-size", type=click.IntRange(2), default=_DEFAULTS.batch_size, show_default=True)
@click.option(
    "--learning-rate",
    type=FloatRange(0, 1, min_open=True),
    default=_DEFAULTS.learning_rate,
    show_default=True,
    help="Of Adam.",
)
@click.option(
    "--held-out",
    type=FloatRange(0, 1, min_open=True, max_open=True),
    default=_DEFAULTS.held_out,
    show_default=True,
    help="Share of the images that measure the accuracy.",
)
@click.option("--seed", type=click.IntRange(0), default=_DEFAULTS.seed, show_default=True)
@click.option("--device", type=Device(), default="cpu", show_default=True, help="cpu or cuda.")
def command(
    bundle_folder: Path,
    source: str,
    images: Path,
    labels: Path | None,
    out: Path,
    fractions: tuple[float, ...],
    seeds: int,
    epochs: int,
    batch_size: int,
    learning_rate: float,
    held_out: float,
    seed: int,
    device: str,
) -> None:
    """Remove and retrain (ROAR): remove the pixels that maps call important, and train new classifiers without them.

    The better a map, the faster the accuracy falls with the share of pixels removed; a random map is the control.
    Compared are the pathway gradient (NeuronMCT, as the bundle was fitted), the gradient, gradient times input and
    integrated gradients. Removed pixels become the mean pixel of the training images. The shape
    of what is missing can tell the class as well: where much is removed, a map may keep more accuracy than the random
    one.

    Each classifier is trained from nothing by Adam, and there are many: this is meant for small data sets. All images
    are kept in memory, preprocessed and at most 4 GiB of them. The labels are the class folders, the array 'labels' of
    the NPZ file, or --labels. What is done is in OUT/journal.jsonl: the same command goes on after an interruption.

    \b
    Example, after `make demo`:
      pathlens roar build/digits/bundle --classifier pathlens.demo.digits:DigitsClassifier \\
        --images build/digits/images --out build/digits/roar
    """  # noqa: D301 - \b tells click to keep the lines
    console = Console(stderr=True)
    settings = RoarSettings(fractions, seeds, epochs, batch_size, learning_rate, held_out, seed)
    bundle = load_bundle(bundle_folder)
    image_source = ImageSource(images)
    # Images take long to read; a mistake in the name of the factory should show before.
    _make(source)
    pixels, classes = _read(image_source, _labels(image_source, images, labels, bundle), bundle.preprocessing, console)
    methods = _maps(bundle, seed)
    roar = Roar(bundle.classifier.to(device), lambda: _make(source), pixels, classes, methods, settings)
    journal = Journal(
        out / "journal.jsonl",
        {
            "bundle": bundle.sha256,
            "classifier": source,
            "images": _digest(pixels, classes),
            "maps": list(methods),
            "device": roar.classifier.device.type,
            "torch": torch.__version__,
            **asdict(settings),
        },
    )
    tasks = roar.tasks()
    try:
        observations = journal.run(with_progress(tasks, journal, console))
    except KeyboardInterrupt:
        done = sum(task in journal for task in tasks)
        console.print(f"Stopped after {done} of {len(tasks)} retrainings. The same command goes on from there.")
        raise click.exceptions.Exit(130) from None
    summaries = summarise(observations)
    training, testing = roar.split()
    facts = {
        "bundle": bundle.name,
        "bundle SHA-256": bundle.sha256,
        "retrained": source,
        "images": f"{len(training)} to train on and {len(testing)} held out, of {images.name}",
        "pathways": f"NeuronMCT, sparsity {bundle.instance_sparsity:g}, neurons are {bundle.bank.granularity.value}s, "
        "removed ones are zero",
        "retrainings": f"{seeds} for each map and fraction, {len(tasks)} in all",
        "training": f"Adam, {epochs} epochs, batch size {batch_size}, learning rate {learning_rate:g}",
        "seed": str(seed),
        "pathlens": __version__,
        "torch": torch.__version__,
        "command": shlex.join(["pathlens", *sys.argv[1:]]),
    }
    write_report(Report(f"ROAR of {bundle.name}", facts, summaries, observations), out)
    console.print(_table(summaries, [*methods], fractions))
    click.echo(out / "report.html")


def _maps(bundle: Bundle, seed: int) -> Mapping[str, MapMethod]:
    def by_pathway(classifier: CapturedClassifier, images: Tensor, target: Tensor) -> Tensor:
        contributions = neuron_mct(classifier, images, target, bundle.bank.granularity)
        return pathway_gradient(classifier, images, target, contributions.select(bundle.instance_sparsity))

    compared = comparison_maps(bundle.classifier, seed)
    return {"neuron_mct": by_pathway, **{name: compared[name] for name in _COMPARED}}


def _make(source: str) -> nn.Module:
    network = load_classifier(source)
    if not isinstance(network, nn.Module):
        raise EvaluationError(f"{source} cannot be trained anew; give package.module:factory as --classifier.")
    return network


def _labels(source: ImageSource, images: Path, annotations: Path | None, bundle: Bundle) -> list[int]:
    """Return the class of each image of the source."""
    names = [source.name(position) for position in range(len(source))]
    if annotations is not None:
        known = read_annotations(annotations, bundle.labels)
    elif images.is_file():
        known = read_npz_labels(images, bundle.labels) or {}
    else:
        return _class_folders(source, names, bundle)
    return _complete([known[name].label if name in known else None for name in names], names)


def _class_folders(source: ImageSource, names: list[str], bundle: Bundle) -> list[int]:
    if len(source.class_names) > len(bundle.labels):
        raise ImagesError(
            f"The images are in {len(source.class_names)} class folders, and the bundle's classifier has "
            f"{len(bundle.labels)} classes."
        )
    # The new classifiers do not know the bundle's labels: any number does, as long as each class has its own.
    numbers = {name: number for number, name in enumerate(source.class_names)}
    return _complete([numbers.get(PurePosixPath(name).parent.name) for name in names], names)


def _complete(labels: list[int | None], names: list[str]) -> list[int]:
    without = [name for name, label in zip(names, labels, strict=True) if label is None]
    if without:
        raise ImagesError(
            f"{len(without)} of {len(names)} images have no label, such as {without[0]}. Put each image into a folder "
            "of its class, add an array 'labels' to the NPZ file, or give --labels."
        )
    return [label for label in labels if label is not None]


def _read(
    source: ImageSource, labels: list[int], preprocessing: Preprocessing, console: Console
) -> tuple[Tensor, Tensor]:
    shape = (preprocessing.channels, preprocessing.height, preprocessing.width)
    size = 4 * len(source) * shape[0] * shape[1] * shape[2]
    if size > LARGEST_IMAGES:
        raise EvaluationError(
            f"{len(source)} images of {' x '.join(map(str, shape))} need {size / 2**30:.1f} GiB of memory, and their "
            f"copies without pixels as much again; at most {LARGEST_IMAGES / 2**30:g} GiB of images can be compared."
        )
    pixels = torch.empty(len(source), *shape)
    read: list[int] = []
    for position, picture in track(source, "Reading images", len(source), console=console):
        pixels[len(read)] = torch.from_numpy(preprocessing.apply(picture))
        read.append(labels[position])
    for skipped in source.skipped:
        console.print(f"Skipped {skipped}", markup=False)
    if not read:
        raise ImagesError(f"None of the {len(source)} images could be read: {source.skipped[0]}")
    return pixels[: len(read)], torch.tensor(read)


def _digest(images: Tensor, labels: Tensor) -> str:
    digest = hashlib.sha256(images.numpy().data)
    digest.update(labels.numpy().data)
    return digest.hexdigest()


def _table(summaries: list[Summary], methods: list[str], fractions: tuple[float, ...]) -> Table:
    means = {(summary.method, summary.detail): summary.mean for summary in summaries}
    table = Table(
        title="Mean accuracy after retraining, by the share of pixels removed",
        caption="The better a map, the faster the accuracy falls; random is the control.",
    )
    table.add_column("map")
    for fraction in (0, *fractions):
        table.add_column(f"{100 * fraction:g} %", justify="right")
    for method in methods:
        figures = [means["", "0"], *(means[method, f"{fraction:g}"] for fraction in fractions)]
        table.add_row(method, *(f"{figure:.1%}" for figure in figures))
    return table
