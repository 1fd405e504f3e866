"""Run the demonstration: `python -m pathlens.demo`, or `prepare` alone to build what it serves."""

import shlex
from pathlib import Path

import click
from rich.console import Console
from rich.progress import track
from rich.table import Table

from pathlens.cli import main as pathlens
from pathlens.cli.explain import add_row, explanation_table
from pathlens.client import Client
from pathlens.demo.contact_sheet import Cell, draw_contact_sheet
from pathlens.demo.digits import train
from pathlens.errors import PathlensError
from pathlens.explanation import ExplanationOptions, ExplanationResult, Output, PathwaySource
from pathlens.gateway import GatewaySettings
from pathlens.serving import Service
from pathlens.torchserve import TorchServeSettings

FOLDER = Path("build/digits")
MODEL_STORE = Path("model_store")
ARCHIVE = MODEL_STORE / "digits.mar"
SHEET = FOLDER / "contact-sheet.png"
SHOWN = 20
SOURCES = {
    PathwaySource.TRANSFERRED: "The stored pathway of the predicted class, transferred to each image",
    PathwaySource.GENERATED: "The pathway of the image itself, generated in one pass (GEN-CNP)",
}

FIT = (
    "fit --classifier pathlens.demo.digits:DigitsClassifier "
    f"--weights {FOLDER}/classifier.safetensors --images {FOLDER}/images "
    f"--held-out-images {FOLDER}/validation --size 8 --colour grey --ablation mean --class-steps 1000 "
    f"--generator-steps 500 --name digits --out {FOLDER}/bundle"
)
PACK = f"pack {FOLDER}/bundle --model-store {MODEL_STORE}"

console = Console()


@click.group(invoke_without_command=True)
@click.pass_context
def demo(context: click.Context) -> None:
    """Train a digits classifier, fit and pack it, serve it, and explain held-out digits over gRPC."""
    if context.invoked_subcommand is None:
        try:
            build()
            show()
        except PathlensError as error:
            raise click.ClickException(f"{error.message} [{error.reason}]") from error


@demo.command()
def prepare() -> None:
    """Build model_store/digits.mar and stop there."""
    build()


def build() -> None:
    """Build what is missing of classifier and bundle, and pack it."""
    if not (FOLDER / "classifier.safetensors").is_file():
        FOLDER.mkdir(parents=True, exist_ok=True)
        console.print(f"Accuracy on held-out digits: {train(FOLDER):.1%}")
    if not (FOLDER / "bundle" / "bundle.json").is_file():
        _run(FIT)
    # Packing takes no time, and the archive holds the handler, which may have changed.
    _run(PACK)


def _run(line: str) -> None:
    console.print(f"$ pathlens {line}", style="bold", soft_wrap=True)
    pathlens(shlex.split(line), standalone_mode=False)


def show() -> None:
    """Serve the archive, explain held-out digits through the public API from two sources, and stop everything again."""
    images = held_out_images()
    with console.status("Starting") as status:
        service = Service(
            TorchServeSettings(archives=(ARCHIVE,)), GatewaySettings(port=0, metrics_port=0), report=status.update
        )
        service.start()
    try:
        results = _explain_all(service.address, images)
    finally:
        with console.status("Stopping"):
            service.stop()
    for source, heading in SOURCES.items():
        console.print(_table(images, results[source], heading))
    cells = [
        Cell(image, result.explanations[0].overlay_png, _caption(image, result))
        for image, result in zip(images, results[PathwaySource.TRANSFERRED], strict=True)
    ]
    draw_contact_sheet(cells, SHEET)
    console.print(f"Pictures: {SHEET}. To leave the service running: make serve")


def _explain_all(address: str, images: list[Path]) -> dict[PathwaySource, list[ExplanationResult]]:
    with Client(address) as client:
        return {source: _explain(client, images, source) for source in SOURCES}


def _explain(client: Client, images: list[Path], source: PathwaySource) -> list[ExplanationResult]:
    options = ExplanationOptions(source=source, outputs=frozenset({Output.FAITHFULNESS, Output.OVERLAY}))
    tracked = track(images, f"Explaining digits, source {source.value}", console=console)
    return [client.explain(image, options) for image in tracked]


def held_out_images() -> list[Path]:
    """Return a few held-out images of every digit."""
    folders = sorted((FOLDER / "held-out").iterdir())
    return [image for folder in folders for image in sorted(folder.glob("*.png"))[: SHOWN // len(folders)]]


def _caption(image: Path, result: ExplanationResult) -> str:
    best, explanation = result.predictions[0], result.explanations[0]
    check = explanation.faithfulness
    alone = f", alone {check.pathway_confidence:.2f}" if check else ""
    sees = f"true {image.parent.name}, sees {best.label} ({best.probability:.2f})"
    return f"{sees}\n{explanation.sparsity:.0%} sparse{alone}"


def _table(images: list[Path], results: list[ExplanationResult], title: str) -> Table:
    table = explanation_table("true", title, stages=True)
    for image, result in zip(images, results, strict=True):
        for explanation in result.explanations:
            add_row(table, image.parent.name, result, explanation, stages=True)
    return table


if __name__ == "__main__":
    demo()
