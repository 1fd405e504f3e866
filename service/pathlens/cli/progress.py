"""The progress bar of a long run of tasks."""

from collections.abc import Iterator, Sequence

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from pathlens.evaluation.journal import Journal, Task


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
