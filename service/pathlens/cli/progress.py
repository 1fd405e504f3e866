"""The progress bars of long work."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from pathlens.evaluation.journal import Journal, Task
from pathlens.fitting.progress import Stage


def with_progress(tasks: Sequence[Task], journal: Journal, console: Console) -> Iterator[Task]:
    """Yield tasks while a bar shows which stage is at work and how far the whole is.

    Args:
        tasks: All of them; what the journal holds already counts as done.
        journal: Runs the tasks.
        console: Where to show the bar.
    """
    width = max((len(task.stage) for task in tasks), default=0)
    columns = (
        TextColumn(f"{{task.description:<{width}}}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as progress:
        bar = progress.add_task("", total=len(tasks), completed=sum(task in journal for task in tasks))
        for task in tasks:
            done_before = task in journal
            progress.update(bar, description=task.stage)
            yield task
            if not done_before:
                progress.advance(bar)


class FitBars:
    """A bar for each stage of a fit, with the latest figures of a training beside it.

    Args:
        console: Where to show them.
    """

    def __init__(self, console: Console) -> None:
        self._console = console

    @contextmanager
    def stage(self, name: str, total: int, done: int = 0) -> Iterator[Stage]:
        """Show a bar while the stage is under way."""
        columns = (
            TextColumn("{task.description:<22}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[figures]}"),
        )
        with Progress(*columns, console=self._console) as progress:
            yield _Bar(progress, progress.add_task(name, total=total, completed=done, figures=""))


class _Bar:
    def __init__(self, progress: Progress, task: TaskID) -> None:
        self._progress, self._task = progress, task

    def advance(self, count: int, figures: Mapping[str, float] | None = None) -> None:
        shown = "  ".join(_figure(name, value) for name, value in (figures or {}).items())
        self._progress.update(self._task, advance=count, figures=shown)


def _figure(name: str, value: float) -> str:
    return f"{name} {value:.3f}" if name == "loss" else f"{name} {value:.1%}"
