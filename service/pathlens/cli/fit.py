"""`pathlens fit`."""

import shutil
from enum import Enum
from pathlib import Path
from typing import Any

import click
import torch
from rich.console import Console

from pathlens.bundle.store import check_destination, save_bundle
from pathlens.classifier.capture import capture
from pathlens.classifier.captured import CapturedClassifier
from pathlens.classifier.images import ImageSource
from pathlens.classifier.preprocessing import Colour, Interpolation, Preprocessing
from pathlens.classifier.sources import load_classifier
from pathlens.cli.devices import Device
from pathlens.cli.fit_report import print_summary, warn
from pathlens.cli.progress import FitBars
from pathlens.cli.ranges import FloatRange
from pathlens.description import ClassPathwaySelection
from pathlens.errors import FitError
from pathlens.explanation import Ablation, Granularity, PathwaySource
from pathlens.fitting.fit import fit
from pathlens.fitting.progress import Silence
from pathlens.fitting.settings import FitSettings
from pathlens.fitting.subject import FitSubject
from pathlens.generator.parallel import local_device, process_group
from pathlens.onnx_import.network import OnnxNetwork

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


def _names(kind: type[Enum]) -> click.Choice[str]:
    return click.Choice([member.value.replace("_", "-") for member in kind])


@click.command("fit")
@click.option("--classifier", "source", required=True, help="package.module:factory, a .pt2 archive, or an .onnx file.")
@click.option("--weights", type=click.Path(path_type=Path), help="Safetensors, or a state dict saved by torch.save.")
@click.option("--input-name", help="Input of an ONNX file that takes the images. Default: the one that logits need.")
@click.option("--output-name", help="Output of an ONNX file that gives the logits. Default: the only one.")
@click.option("--images", type=click.Path(path_type=Path), required=True, help="A folder, or an NPZ with 'images'.")
@click.option(
    "--held-out-images",
    type=click.Path(path_type=Path),
    help="Images that the classifier was not trained on, likewise.  [default: a fifth of --images]",
)
@click.option(
    "--labels",
    type=click.Path(path_type=Path),
    help="Text file, one label a line. Default: the class folders in alphabetical order if there are as many as "
    "classes, else numbers.",
)
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder of the bundle to write.")
@click.option("--name", help="Name to serve it under. Default: the last part of --out.")
@click.option("--size", type=_Size(), default="224", show_default=True, help="Input of the classifier.")
@click.option("--resize", type=int, help="Shorter side before the centre crop. Default: warp to --size.")
@click.option("--interpolation", type=_names(Interpolation), default="bilinear", show_default=True)
@click.option("--colour", type=_names(Colour), default="rgb", show_default=True, help="Channels of the classifier.")
@click.option("--mean", type=_Numbers(), help="Default: ImageNet's, or 0 for grey.")
@click.option("--std", type=_Numbers(), help="Default: ImageNet's, or 1 for grey.")
@click.option(
    "--source",
    "pathways",
    type=click.Choice(["generated", "neuron-mct"]),
    default="generated",
    show_default=True,
    help="Where the pathways of single images come from: a generator that is trained now, or their contributions.",
)
@click.option(
    "--class-pathways",
    type=_names(ClassPathwaySelection),
    default="two-sided",
    show_default=True,
    help="Trained to tell a class from all others, or what the pathways of its images have in common.",
)
@click.option("--granularity", type=_names(Granularity), default="channel", show_default=True, help="What a neuron is.")
@click.option(
    "--ablation",
    type=_names(Ablation),
    default=_DEFAULTS.ablation.value,
    show_default=True,
    help="What stands in for a removed neuron: zero, its mean, or a constant learned for each class.",
)
@click.option(
    "--agreement",
    type=FloatRange(0, 1, min_open=True, max_open=True),
    help="Share of images whose class their generated pathway is to keep; the price of sparsity is searched for it.",
)
@click.option(
    "--price",
    type=FloatRange(0.01, 100),
    default=_DEFAULTS.price,
    show_default=True,
    help="What keeping all neurons costs the generator, in nats. With --agreement, where the search begins.",
)
@click.option(
    "--class-agreement",
    type=FloatRange(0, 1, min_open=True, max_open=True),
    default=_DEFAULTS.class_agreement,
    show_default=True,
    help="Share of a class's images that are to keep it under a two-sided class pathway.",
)
@click.option(
    "--class-forcing",
    type=FloatRange(0, 1, min_open=True, max_open=True),
    default=_DEFAULTS.class_forcing,
    show_default=True,
    help="Share of other images that may get the class under it.",
)
@click.option(
    "--generator-steps",
    type=click.IntRange(1),
    default=_DEFAULTS.generator_steps,
    show_default=True,
    help="Steps of training the generator.",
)
@click.option(
    "--class-steps",
    type=click.IntRange(2),
    default=_DEFAULTS.class_steps,
    show_default=True,
    help="Steps of training two-sided class pathways: enough for ten classes, and of many more in proportion.",
)
@click.option(
    "--training-batch",
    type=click.IntRange(1),
    default=_DEFAULTS.training_batch,
    show_default=True,
    help="Images in one step of a training, over all processes.",
)
@click.option(
    "--precision",
    type=click.Choice(["float32", "bfloat16"]),
    default=_DEFAULTS.precision,
    show_default=True,
    help="What trainings compute the classifier in.",
)
@click.option(
    "--sparsity",
    type=FloatRange(0, 1, max_open=True),
    default=_DEFAULTS.sparsity,
    show_default=True,
    help="Fraction of neurons that a pathway by contribution removes.",
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
@click.option("--workers", type=click.IntRange(0), default=1, show_default=True, help="Processes that read images.")
@click.option("--seed", type=click.IntRange(0, 2**32 - 1), default=_DEFAULTS.seed, show_default=True)
@click.option("--device", type=Device(), default="cpu", show_default=True, help="cpu or cuda.")
@click.option("--restart", is_flag=True, help="Discard an unfinished fit instead of going on with it.")
def command(
    source: str,
    weights: Path | None,
    input_name: str | None,
    output_name: str | None,
    images: Path,
    held_out_images: Path | None,
    labels: Path | None,
    out: Path,
    name: str | None,
    size: tuple[int, int],
    resize: int | None,
    interpolation: str,
    colour: str,
    mean: tuple[float, ...] | None,
    std: tuple[float, ...] | None,
    pathways: str,
    class_pathways: str,
    granularity: str,
    ablation: str,
    workers: int,
    device: str,
    restart: bool,
    **numbers: Any,
) -> None:
    """Capture a classifier, train its pathway generator, find and test the pathways of its classes.

    The images need no labels: what counts is what the classifier sees in them. A fifth of them, at most
    2,048, is held out: they test the class pathways and tell what explanations look like, so that the service notices
    when they look otherwise. If the classifier was trained on --images, give --held-out-images that it was not trained
    on: they do this instead, as a classifier knows its own images better than any to come. An interrupted fit goes on
    where it stopped when the command is repeated.

    An ONNX file (opset 13 to 21; older ones are converted) must compute, on random images, what ONNX Runtime computes.
    A Softmax at its end is taken off. Reading it needs: pip install 'pathlens[onnx]'

    \b
    Examples:
      pathlens fit --classifier shop.models:resnet --weights resnet.safetensors --images photos/ --out shop-bundle
      pathlens fit --classifier resnet.pt2 --images trained-on/ --held-out-images others/ --out shop-bundle
      pathlens fit --classifier resnet.pt2 --images photos.npz --labels labels.txt --resize 256 --out shop-bundle
      pathlens fit --classifier model.onnx --output-name logits --images photos/ --size 224 --out shop-bundle
      pathlens fit --classifier resnet.pt2 --images photos/ --agreement 0.95 --ablation mean --out shop-bundle
      pathlens fit --classifier resnet.pt2 --images photos/ --source neuron-mct --class-pathways frequency --out quick
      torchrun --nproc-per-node 4 --no-python pathlens fit --device cuda --precision bfloat16 ...
    """  # noqa: D301
    name = name or out.name
    check_destination(out, name)
    preprocessing = _preprocessing(size, resize, interpolation, Colour(colour), mean, std)
    try:
        settings = FitSettings(
            name=name,
            source=PathwaySource(_value(pathways)),
            selection=ClassPathwaySelection(_value(class_pathways)),
            granularity=Granularity(granularity),
            ablation=Ablation(ablation),
            **numbers,
        )
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    image_source = ImageSource(images)
    held_out = None if held_out_images is None else _held_out(held_out_images, images)
    console = Console(stderr=True)
    place = local_device(torch.device(device))
    with process_group(place) as group:
        # One process speaks for all.
        console.quiet = not group.is_first
        with console.status("Capturing the classifier"):
            example = torch.rand(2, preprocessing.channels, *size)
            model = load_classifier(source, weights, example, input_name, output_name)
            classifier = capture(model, example).to(place)
        for remark in model.remarks if isinstance(model, OnnxNetwork) else ():
            console.print(remark, markup=False)
        console.print(f"Captured {source}: {classifier.classes} classes, {len(classifier.taps)} taps")
        unfinished = out.with_name(f"{out.name}.unfinished")
        try:
            names = _read_labels(labels, image_source, classifier)
            subject = FitSubject(classifier, preprocessing, names, image_source, workers, held_out)
            progress = FitBars(console) if group.is_first else Silence()
            bundle = fit(subject, settings, unfinished, progress, group, restart)
        except KeyboardInterrupt:
            console.print(f"Interrupted. The same command goes on from {unfinished}.", style="yellow")
            raise click.exceptions.Exit(130) from None
        if bundle is None:
            return
        digest = save_bundle(bundle, out)
        shutil.rmtree(unfinished)
    for skipped in subject.skipped:
        console.print(f"Skipped {skipped}", markup=False)
    print_summary(bundle, console)
    warn(bundle, console)
    click.echo(f"{out}  SHA-256 {digest}")


def _preprocessing(
    size: tuple[int, int],
    resize: int | None,
    interpolation: str,
    colour: Colour,
    mean: tuple[float, ...] | None,
    std: tuple[float, ...] | None,
) -> Preprocessing:
    grey = colour is Colour.GREY
    try:
        return Preprocessing(
            *size,
            mean=mean or ((0.0,) if grey else IMAGENET_MEAN),
            std=std or ((1.0,) if grey else IMAGENET_STD),
            resize_shorter_side=resize,
            interpolation=Interpolation(interpolation),
            colour=colour,
        )
    except ValueError as error:
        raise click.UsageError(str(error)) from error


def _held_out(path: Path, images: Path) -> ImageSource:
    held_out, building = path.resolve(), images.resolve()
    nested = path.is_dir() and images.is_dir() and (held_out in building.parents or building in held_out.parents)
    if held_out == building or nested:
        raise click.UsageError(f"--held-out-images {path} and --images {images} share images; keep them apart.")
    return ImageSource(path)


def _value(name: str) -> str:
    return name.replace("-", "_")


def _read_labels(path: Path | None, images: ImageSource, classifier: CapturedClassifier) -> tuple[str, ...]:
    if path is not None:
        try:
            return tuple(path.read_text(encoding="utf-8").splitlines())
        except (OSError, UnicodeDecodeError) as error:
            raise FitError(f"The labels {path} cannot be read: {error}.") from error
    if len(images.class_names) == classifier.classes:
        return images.class_names
    return tuple(str(index) for index in range(classifier.classes))
