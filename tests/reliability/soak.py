"""Chaos for as long as one likes: a real service under load, faults and departures, and which promises it keeps.

    python tests/reliability/soak.py --minutes 10 --seed 0

Prints tables, writes build/reliability/soak.json and soak.png, and exits with 1 when a promise was broken. Ctrl-C ends
the run early, in order: it drains and writes what was measured.
"""

import asyncio
import signal
import sys
import tempfile
from pathlib import Path

import click
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

# Beside this file lie modules that the tests use, too.
sys.path.insert(0, str(Path(__file__).parents[1]))

from reliability.chaos import Chaos, Plan, run_interruptibly
from reliability.report import tables, write
from reliability.verdict import judge

FOLDER = Path(__file__).parents[2] / "build" / "reliability"
INTERRUPTED = 130


@click.command(help=__doc__)
@click.option("--minutes", type=click.FloatRange(0.5), default=10.0, show_default=True, help="Length of the run.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of requests, callers and kills.")
def main(minutes: float, seed: int) -> None:
    """Run the command."""
    console = Console()
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with tempfile.TemporaryDirectory() as folder, Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("", total=1.0)
        chaos = Chaos(
            Plan.of_minutes(minutes),
            seed,
            Path(folder),
            lambda words, part: progress.update(task, description=words, completed=part),
        )
        observations = asyncio.run(run_interruptibly(chaos, signal.SIGINT))
    promises = judge(observations)
    write(observations, promises, FOLDER)
    console.print(tables(observations, promises))
    console.print(f"Written to {FOLDER}; seed {seed}")
    if chaos.interrupted:
        sys.exit(INTERRUPTED)
    sys.exit(0 if all(promise.kept for promise in promises) else 1)


if __name__ == "__main__":
    main()
