"""Measure what predictions and explanations cost: `python -m benchmarks.bench`, or `make bench`."""

import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import click
import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from benchmarks.bench import cuda, end_to_end, growth, handler, in_process, memory
from benchmarks.bench.in_process import Row, Tell
from benchmarks.bench.machine import describe_machine
from benchmarks.bench.plots import plot_costs, plot_growth
from benchmarks.bench.report import markdown
from benchmarks.bench.settings import PARTS, Settings
from benchmarks.bench.subjects import DIGITS, NAMES, Subject, available, make_subject
from pathlens.explainer.kernels import keep_kernels
from pathlens.explainer.memory import keep_freed_memory

FOLDER = Path(__file__).parents[3] / "build" / "bench"
SCHEMA = 1

_MEASURES: Mapping[str, Callable[[Subject, Settings, Tell], Iterator[list[Row] | str]]] = {
    "in-process": in_process.measure,
    "handler": handler.measure,
    "end-to-end": end_to_end.measure,
    "memory": memory.measure,
    "growth": growth.measure,
}


@click.command()
@click.option("--part", "parts", multiple=True, type=click.Choice(PARTS), help="Measure this part alone; repeatable.")
@click.option("--network", "names", multiple=True, type=click.Choice(NAMES), help="Measure this one alone; repeatable.")
@click.option("--threads", default=1, show_default=True, type=click.IntRange(1), help="Of every pass on the CPU.")
@click.option("--device", default="cpu", show_default=True, help="Where passes run. On cuda: the first part alone.")
@click.option("--quick", is_flag=True, help="Everything once, in a minute: is it right? Times then mean nothing.")
@click.option("--seed", default=0, show_default=True, help="Of the order of the runs.")
@click.option("--out", default=FOLDER, type=click.Path(path_type=Path), help="Folder of the results.  [build/bench]")
def main(
    parts: tuple[str, ...], names: tuple[str, ...], threads: int, device: str, quick: bool, seed: int, out: Path
) -> None:
    """Measure what predictions and explanations cost, in units of one plain forward pass.

    Writes bench.json, bench.md and plots to the folder of the results. Ctrl-C ends it and keeps what was measured. The
    status is 1 if a result is wrong, whatever it cost.

    \b
    Examples:
      make bench
      make bench ARGS="--quick"
      make bench ARGS="--part in-process --network cifar_resnet20"
      make bench ARGS="--threads 2"
      make bench DEVICE=cuda
    """
    console = Console(stderr=True)
    settings = Settings(out, _device(device), threads, quick, seed)
    # Processes that this one starts count their threads by it.
    os.environ["OMP_NUM_THREADS"] = str(threads)
    torch.set_num_threads(threads)
    # As in the workers of the service.
    keep_freed_memory()
    keep_kernels()
    there, missing = available()
    if missing:
        console.print(missing)
    if unknown := set(names) - set(there):
        raise click.UsageError(f"{', '.join(sorted(unknown))} cannot be measured. {missing}")
    if quick and not names:
        names = (DIGITS,)
    wanted = [part for part in PARTS if part in parts or not parts]
    if settings.device.type != "cpu":
        if set(parts) - {"in-process"}:
            raise click.UsageError(f"On {device} only the part in-process is measured: leave --part out.")
        wanted = ["in-process"]
    report = {
        "schema": SCHEMA,
        "machine": describe_machine(settings.device, threads),
        "quick": quick,
        "finished": False,
        "networks": {},
        "wrong": [],
    }
    out.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    try:
        with Progress(
            TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), console=console, transient=True
        ) as progress:
            task = progress.add_task("", total=len(wanted) * len(names or there))
            for name in names or there:
                _measure(name, wanted, settings, report, progress, task)
        report["finished"] = True
    except KeyboardInterrupt:
        console.print("Interrupted; what was measured is kept.")
    finally:
        report["seconds"] = round(time.monotonic() - started, 1)
        _write(report, out)
    click.echo(markdown(report))
    console.print(f"Written: {out / 'bench.json'}, bench.md and plots", markup=False)
    if not report["finished"]:
        sys.exit(130)
    sys.exit(bool(report["wrong"]))


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise click.UsageError(
            f"--device is {name!r}, on which this torch {torch.__version__} cannot compute here: "
            f"{str(error).splitlines()[0]}. Leave it out to measure the CPU."
        ) from error
    return device


def _measure(
    name: str, parts: list[str], settings: Settings, report: dict[str, Any], progress: Progress, task: TaskID
) -> None:
    def tell(what: str) -> None:
        progress.update(task, description=f"{name}: {what}")
        if not progress.console.is_terminal:
            # A bar that is redrawn would be nothing but the last line of a file.
            progress.console.print(f"{name}: {what}", markup=False)

    tell("images and masks")
    subject = make_subject(name, settings.folder / DIGITS, settings.quick)
    measured: dict[str, list[Row]] = {}
    report["networks"][name] = measured
    for part in parts:
        rows = measured.setdefault(part, [])
        measures = [_MEASURES[part]] if settings.device.type == "cpu" else [in_process.measure, cuda.measure]
        for measure in measures:
            for found in measure(subject, settings, tell):
                if isinstance(found, str):
                    report["wrong"].append(f"{name}: {found}")
                else:
                    rows += found
                # Whatever ends it, what was measured is kept.
                _save(report, settings.folder)
        progress.advance(task)


def _write(report: dict[str, Any], folder: Path) -> None:
    _save(report, folder)
    (folder / "bench.md").write_text(markdown(report))
    plot_costs(report, folder / "costs.png")
    for name, measured in report["networks"].items():
        if rows := measured.get("growth"):
            plot_growth(name, rows, folder / f"growth-{name}.png")


def _save(report: dict[str, Any], folder: Path) -> None:
    (folder / "bench.json").write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
