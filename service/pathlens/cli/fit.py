"""`pathlens fit`."""

from collections.abc import Iterable
from pathlib import Path

import click
import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table

from pathlens.bundle.store import Bundle, check_destination, save_bundle
from pathlens.classifier.capture import capture
from pathlens.classifier.captured import CapturedClassifier
from pathlens.classifier.images import ImageSource
from pathlens.classifier.preprocessing import Colour, Interpolation, Preprocessing
from pathlens.classifier.sources import load_classifier
from pathlens.cli.devices import Device
from pathlens.cli.ranges import FloatRange
from pathlens.errors import FitError
from pathlens.explanation import Granularity
from pathlens.fitting.fit import FitSettings, fit

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_DEFAULTS = FitSettings("")


class _Numbers(click.ParamType[tuple[float, ...]]):
    """Numbers with commas between them."""

    name = "numbers"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> tuple[float, ...]:
        try:
            return tuple(float(part) for part in str(value).split(","))
        except ValueError:
            self.fail(f"{value!r} is not a list of numbers such as 0.5,0.5,0.5", param, ctx)


class _Size(click.ParamType[tuple[int, int]]):
    """A side, or height and width."""

    name = "size"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, int]:
        sides = str(value).lower().split("x")
        if len(sides) > 2 or not all(side.isdecimal() for side in sides):
            self.fail(f"{value!r} is not a size such as 224 or 224x320 (height x width)", param, ctx)
        return int(sides[0]), int(sides[-1])


def _names(kind: type[Colour] | type[Interpolation] | type[Granularity]) -> click.Choice[str]:
    return click.Choice([member.value for member in kind])


@click.command("fit")
@click.option("--classifier", "source", required=True, help="package.module:factory, or a .pt2 archive.")
@click.option("--weights", type=click.Path(path_type=Path), help="Safetensors, or a state dict saved by torch.save.")
@click.option("--images", type=click.Path(path_type=Path), required=True, help="A folder, or an NPZ with 'images'.")
@click.option("--labels", type=click.Path(path_type=Path), help="Text file, one label a line. Default: class folders.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder of the bundle to write.")
@click.option("--name", help="Name to serve it under. Default: the last part of --out.")
@click.option("--size", type=_Size(), default="224", show_default=True, help="Input of the classifier.")
@click.option("--resize", type=int, help="Shorter side before the centre crop. Default: warp to --size.")
@click.option("--interpolation", type=_names(Interpolation), default="bilinear", show_default=True)
@click.option("--colour", type=_names(Colour), default="rgb", show_default=True, help="Channels of the classifier.")
@click.option("--mean", type=_Numbers(), help="Default: ImageNet's, or 0 for grey.")
@click.option("--std", type=_Numbers(), help="Default: ImageNet's, or 1 for grey.")
@click.option("--granularity", type=_names(Granularity), default="channel", show_default=True, help="What a neuron is.")
@click.option(
    "--sparsity",
    type=FloatRange(0, 1, max_open=True),
    default=_DEFAULTS.sparsity,
    show_default=True,
    help="Fraction of neurons that an instance pathway removes.",
)
@click.option(
    "--threshold",
    type=FloatRange(0, 1, min_open=True),
    default=_DEFAULTS.threshold,
    show_default=True,
    help="Share of a class's pathways that must keep a neuron.",
)
@click.option(
    "--minimum-images",
    type=click.IntRange(1),
    default=_DEFAULTS.minimum_images,
    show_default=True,
    help="Classes with fewer images get no pathway.",
)
@click.option(
    "--others",
    type=click.IntRange(1),
    default=_DEFAULTS.others,
    show_default=True,
    help="Held-out images of other classes that test a class pathway.",
)
@click.option("--batch-size", type=click.IntRange(1), default=_DEFAULTS.batch_size, show_default=True)
@click.option("--seed", type=int, default=_DEFAULTS.seed, show_default=True)
@click.option("--device", type=Device(), default="cpu", show_default=True, help="cpu or cuda.")
def command(
    source: str,
    weights: Path | None,
    images: Path,
    labels: Path | None,
    out: Path,
    name: str | None,
    size: tuple[int, int],
    resize: int | None,
    interpolation: str,
    colour: str,
    mean: tuple[float, ...] | None,
    std: tuple[float, ...] | None,
    granularity: str,
    sparsity: float,
    threshold: float,
    minimum_images: int,
    others: int,
    batch_size: int,
    seed: int,
    device: str,
) -> None:
    """Capture a classifier, find the pathways of its predictions on images, and build its class-pathway bank.

    The images need no labels: what counts is what the classifier sees in them. A fifth of them, at most 512, is
    held out and tests the bank.

    \b
    Examples:
      pathlens fit --classifier shop.models:resnet --weights resnet.safetensors --images photos/ --out shop-bundle
      pathlens fit --classifier resnet.pt2 --images photos.npz --labels labels.txt --resize 256 --out shop-bundle
    """  # noqa: D301
    name = name or out.name
    check_destination(out, name)
    torch.manual_seed(seed)
    grey = colour == Colour.GREY.value
    try:
        preprocessing = Preprocessing(
            *size,
            mean=mean or ((0.0,) if grey else IMAGENET_MEAN),
            std=std or ((1.0,) if grey else IMAGENET_STD),
            resize_shorter_side=resize,
            interpolation=Interpolation(interpolation),
            colour=Colour(colour),
        )
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    image_source = ImageSource(images)
    console = Console(stderr=True)
    with console.status("Capturing the classifier"):
        example = torch.rand(2, preprocessing.channels, *size)
        classifier = capture(load_classifier(source, weights), example).to(device)
    console.print(f"Captured {source}: {classifier.classes} classes, {len(classifier.taps)} taps")
    bundle = fit(
        classifier,
        preprocessing,
        _read_labels(labels, image_source, classifier),
        image_source,
        FitSettings(
            name=name,
            granularity=Granularity(granularity),
            sparsity=sparsity,
            threshold=threshold,
            minimum_images=minimum_images,
            others=others,
            batch_size=batch_size,
            seed=seed,
        ),
        lambda positions, description, total: _track(positions, description, total, console),
    )
    digest = save_bundle(bundle, out)
    for skipped in image_source.skipped:
        console.print(f"Skipped {skipped}", markup=False)
    _print_summary(bundle, console)
    _warn(bundle, console)
    click.echo(f"{out}  SHA-256 {digest}")


def _track(positions: Iterable[int], description: str, total: int, console: Console) -> Iterable[int]:
    return track(positions, description, total, console=console)


def _read_labels(path: Path | None, images: ImageSource, classifier: CapturedClassifier) -> tuple[str, ...]:
    if path is not None:
        try:
            return tuple(path.read_text(encoding="utf-8").splitlines())
        except (OSError, UnicodeDecodeError) as error:
            raise FitError(f"The labels {path} cannot be read: {error}.") from error
    if len(images.class_names) == classifier.classes:
        return images.class_names
    return tuple(str(index) for index in range(classifier.classes))


def _print_summary(bundle: Bundle, console: Console) -> None:
    table = Table(title=f"{len(bundle.bank)} of {len(bundle.labels)} classes have a pathway")
    for heading in ("class", "images", "sparsity", "agreement", "forcing", "random agreement", "random forcing"):
        table.add_column(heading, justify="left" if heading == "class" else "right")
    for label, statistics in list(bundle.bank.statistics.items())[:20]:
        figures, control = statistics.figures, statistics.random_control
        table.add_row(
            bundle.labels[label],
            str(statistics.image_count),
            f"{float(bundle.bank.transfer([label]).sparsity[0]):.1%}",
            *map(_percent, (figures.agreement, figures.forcing, control.agreement, control.forcing)),
        )
    if len(bundle.bank) > 20:
        table.caption = f"and {len(bundle.bank) - 20} more"
    console.print(table)


def _warn(bundle: Bundle, console: Console) -> None:
    """Say what is wrong with a bundle that can be served all the same."""
    statistics = bundle.bank.statistics
    agreement = {label: known.figures.agreement for label, known in statistics.items()}
    lost = [label for label, share in agreement.items() if share is not None and share < 0.5]
    if lost:
        names = ", ".join(bundle.labels[label] for label in lost)
        console.print(
            f"The pathway of {names} keeps less than half of its own class: lower --sparsity or --threshold.",
            style="yellow",
        )
    largest = max(statistics, key=lambda label: statistics[label].image_count)
    share = statistics[largest].image_count / bundle.fit.images
    if share > 0.5 and len(bundle.labels) > 2:
        console.print(
            f"{share:.0%} of the images are seen as {bundle.labels[largest]}: do --size, --mean, --std and --colour "
            "fit the classifier?",
            style="yellow",
        )


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.0%}"
