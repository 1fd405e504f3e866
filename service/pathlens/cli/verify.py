"""`pathlens verify`."""

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import BinaryIO

import click
import torch
from rich.console import Console
from torch import Tensor

from pathlens.bundle.store import Bundle, load_bundle
from pathlens.classifier.images import ImageSource
from pathlens.cli.progress import FitBars
from pathlens.cli.verify_report import print_report, to_json, verdict_line
from pathlens.errors import ImagesError
from pathlens.files import write_whole
from pathlens.fitting.reading import ImageReader
from pathlens.onnx_export.metadata import ExplainerMetadata
from pathlens.onnx_export.session import ExplainerSession
from pathlens.onnx_export.speed import measure_speed, torch_threads
from pathlens.onnx_export.subject import ExplainedClassifier
from pathlens.onnx_export.verification import Verdict, check_belongs, verify


@click.command("verify")
@click.argument("explainer", type=click.Path(path_type=Path), metavar="EXPLAINER.onnx")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--images", type=click.Path(path_type=Path), required=True, help="A folder, or an NPZ with 'images'.")
@click.option("--limit", type=click.IntRange(1), default=64, show_default=True, help="Most images, drawn at random.")
@click.option("--batch-size", type=click.IntRange(1), default=8, show_default=True)
@click.option(
    "--threads", type=click.IntRange(1), help="Of both ONNX Runtime and PyTorch.  [default: as many as PyTorch takes]"
)
@click.option("--json", "json_file", type=click.Path(dir_okay=False, path_type=Path), help="File for all figures.")
def command(
    explainer: Path,
    bundle: Path,
    images: Path,
    limit: int,
    batch_size: int,
    threads: int | None,
    json_file: Path | None,
) -> None:
    """Compare EXPLAINER.onnx in ONNX Runtime with PyTorch on BUNDLE, output by output, and time both.

    Ends with 0 if everything is equal and with 1 if something differs: a logit by more than 0.0001 (of its size, if
    that is above 1), any neuron of a mask, or a map by more than 0.001 of its L2 norm. The first image goes alone, the
    others in batches, so that both are compared. It needs PyTorch and images, best of the kind that will be explained.

    Where the gradient of the classifier jumps within the rounding of float32, such as at ReLU's kink, no two programs
    have the same map. Such maps are counted, and the graph still counts as equal if, for each of them, it has
    PyTorch's map in float64 once the image is moved by at most 0.003 of its largest value.

    \b
    Examples:
      pathlens verify digits.onnx build/digits/bundle --images build/digits/images
      pathlens verify shop.onnx shop-bundle --images photos/ --limit 500 --threads 4 --json verified.json
    """  # noqa: D301
    console = Console(stderr=True)
    try:
        with (
            torch_threads(threads or torch.get_num_threads()),
            # Opened first, so that a folder in which nothing may be written shows before the work.
            write_whole(json_file) if json_file is not None else nullcontext() as figures,
        ):
            equal = _compare(explainer, bundle, images, limit, batch_size, figures, console)
    except KeyboardInterrupt:
        console.print("Interrupted.", style="yellow")
        raise click.exceptions.Exit(130) from None
    if not equal:
        raise click.exceptions.Exit(1)


def _compare(
    explainer: Path, bundle: Path, images: Path, limit: int, batch_size: int, figures: BinaryIO | None, console: Console
) -> bool:
    """Compare, time, and tell whether the explainer is equal, at kinks perhaps excepted."""
    threads = torch.get_num_threads()
    session = ExplainerSession(explainer, threads)
    fitted = load_bundle(bundle)
    subject = ExplainedClassifier(fitted.classifier, fitted.bank, fitted.generator)
    expected = ExplainerMetadata.of(
        subject, fitted.labels, fitted.preprocessing, fitted.name, fitted.sha256, session.metadata.sources
    )
    check_belongs(session, subject, expected)
    if session.metadata.bundle_sha256 != fitted.sha256:
        console.print(
            f"{explainer} was exported from bundle {session.metadata.bundle_sha256}, and {bundle} is {fitted.sha256}: "
            "the same classifier, fitted anew? Its pathways may differ.",
            style="yellow",
            markup=False,
            highlight=False,
            soft_wrap=True,
        )
    source = ImageSource(images)
    batches = _Batches(source, fitted, limit, batch_size, console)
    found = verify(session, subject, expected, batches)
    with console.status("Timing"):
        speeds = [measure_speed(session, subject, torch.cat(batches.kept), size) for size in sorted({1, batch_size})]
    for skipped in source.skipped:
        console.print(f"Skipped {skipped}", markup=False, highlight=False, soft_wrap=True)
    print_report(found, speeds, threads, console)
    click.echo(verdict_line(found, explainer, bundle))
    if figures is not None:
        figures.write(to_json(found, speeds, threads, session, fitted.sha256).encode())
    return found.verdict is not Verdict.DIFFERS


class _Batches:
    """Batches to compare, with a progress bar; what is timed later is kept.

    Args:
        source: The images.
        bundle: Says how they become input.
        limit: Most images.
        batch_size: Images in every batch but the first, which has one, and the last.
        console: Where to show the bar.
    """

    def __init__(self, source: ImageSource, bundle: Bundle, limit: int, batch_size: int, console: Console) -> None:
        self._source, self._batch_size, self._console = source, batch_size, console
        self._reader = ImageReader(source, bundle.preprocessing, workers=0)
        # At random, because the images of a class lie together; the same ones every time.
        order = torch.randperm(len(source), generator=torch.Generator().manual_seed(0))[:limit].tolist()
        later = [order[start : start + batch_size] for start in range(1, len(order), batch_size)]
        self._positions = [order[:1], *later]
        self.kept: list[Tensor] = []

    def __iter__(self) -> Iterator[tuple[Sequence[str], Tensor]]:
        total = sum(map(len, self._positions))
        with FitBars(self._console).stage("Comparing images", total) as stage:
            for positions, inputs in self._reader.read(self._positions):
                if sum(map(len, self.kept)) < self._batch_size:
                    self.kept.append(inputs)
                yield [self._source.name(position) for position in positions], inputs
                stage.advance(len(positions))
        if not self.kept:
            raise ImagesError(f"None of the images can be read: {'; '.join(self._source.skipped[:3])}")
