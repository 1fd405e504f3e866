"""How a fit shows how far it is."""

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol


class Stage(Protocol):
    """One stage of a fit, under way."""

    def advance(self, count: int, figures: Mapping[str, float] | None = None) -> None:
        """Note that so many more units of work are done, with figures of the work to show."""
        ...


class FitProgress(Protocol):
    """Shows the stages of a fit."""

    def stage(self, name: str, total: int, done: int = 0) -> AbstractContextManager[Stage]:
        """Begin a stage of so many units of work, of which some were done before; it ends with the context."""
        ...


class Silence:
    """Shows nothing."""

    @contextmanager
    def stage(self, name: str, total: int, done: int = 0) -> Iterator[Stage]:  # noqa: ARG002
        """Begin a stage and show nothing of it."""
        yield self

    def advance(self, count: int, figures: Mapping[str, float] | None = None) -> None:
        """Show nothing."""
