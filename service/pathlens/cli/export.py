"""`pathlens export`."""

import shlex
from pathlib import Path

import click
import onnxscript  # noqa: F401 - PyTorch's exporter needs it; that it is missing shall show at once
from rich.console import Console
from rich.table import Table

from pathlens.bundle.store import load_bundle
from pathlens.explanation import PathwaySource
from pathlens.onnx_export.export import (
    ExportedExplainer,
    available_sources,
    check_destination,
    check_sources,
    export_explainer,
)
from pathlens.onnx_export.graph_file import DEFAULT_OPSET
from pathlens.onnx_export.metadata import ExplainerMetadata
from pathlens.onnx_export.subject import ExplainedClassifier

_SOURCES = {
    "transferred": (PathwaySource.TRANSFERRED,),
    "generated": (PathwaySource.GENERATED,),
    "both": (PathwaySource.TRANSFERRED, PathwaySource.GENERATED),
}


@click.command("export")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.argument("explainer", type=click.Path(dir_okay=False, path_type=Path), metavar="EXPLAINER.onnx")
@click.option(
    "--source", type=click.Choice([*_SOURCES]), help="Where pathways come from.  [default: all that the bundle has]"
)
@click.option(
    "--opset",
    type=click.IntRange(18, 21),
    default=DEFAULT_OPSET,
    show_default=True,
    help="Version of the ONNX operators; an older ONNX Runtime may need a lower one.",
)
def command(bundle: Path, explainer: Path, source: str | None, opset: int) -> None:
    """Write the whole explanation of BUNDLE as one ONNX graph that needs neither pathlens nor PyTorch.

    The graph takes preprocessed images, as many as you like at once, and returns logits, the top class, the pathway of
    every image and its pathway-gradient map. Labels, preprocessing and taps are in the metadata of the file. The same
    bundle gives the same bytes. An explainer that was exported to this path before is replaced.

    \b
    Examples:
      pathlens export build/digits/bundle digits.onnx
      pathlens export build/digits/bundle digits.onnx --source generated --opset 20
      pathlens verify digits.onnx build/digits/bundle --images build/digits/images
    """  # noqa: D301
    console = Console(stderr=True)
    try:
        _export(bundle, explainer, source, opset, console)
    except KeyboardInterrupt:
        console.print(f"Interrupted. {explainer} was not written.", style="yellow", markup=False, soft_wrap=True)
        raise click.exceptions.Exit(130) from None


def _export(bundle: Path, explainer: Path, source: str | None, opset: int, console: Console) -> None:
    check_destination(explainer)
    fitted = load_bundle(bundle)
    subject = ExplainedClassifier(fitted.classifier, fitted.bank, fitted.generator)
    sources = _SOURCES[source] if source else available_sources(subject)
    check_sources(subject, sources)
    metadata = ExplainerMetadata.of(subject, fitted.labels, fitted.preprocessing, fitted.name, fitted.sha256, sources)
    with console.status("Differentiating and exporting the explanation"):
        exported = export_explainer(subject, metadata, explainer, opset)
    console.print(_table(exported, metadata))
    verify = shlex.join(["pathlens", "verify", str(explainer), str(bundle), "--images"])
    console.print(f"Compare it with PyTorch: {verify} PATH", markup=False, highlight=False, soft_wrap=True)
    click.echo(f"{explainer}  {exported.size / 1e6:.1f} MB  SHA-256 {exported.sha256}")


def _table(exported: ExportedExplainer, metadata: ExplainerMetadata) -> Table:
    sources = " and ".join(source.value for source in metadata.sources)
    table = Table(title=f"{metadata.name}: {sources} pathways, opset {exported.opset}")
    for heading in ("", "name", "type", "shape"):
        table.add_column(heading)
    for direction, tensors in (("input", exported.inputs), ("output", exported.outputs)):
        for tensor in tensors:
            table.add_row(direction, tensor.name, tensor.kind, f"\\[{', '.join(map(str, tensor.shape))}]")
    return table
