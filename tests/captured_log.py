"""The log of this process, as `pathlens serve` writes it."""

import io
import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from pathlens.observability import LoggingSettings, configure_logging


@contextmanager
def logging_to(stream: io.StringIO, **settings: Any) -> Iterator[None]:
    """Write what is logged to a stream."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    # They are pytest's own, which `configure_logging` would close.
    root.handlers = []
    try:
        configure_logging(LoggingSettings(**settings), stream)
        yield
    finally:
        logging.captureWarnings(False)
        root.handlers = handlers
        root.setLevel(level)


class CapturedLog:
    """Records of the log, read from their JSON.

    Attributes:
        text: All that was written.
    """

    def __init__(self) -> None:
        self._stream = io.StringIO()

    @contextmanager
    def capturing(self, level: str = "debug") -> Iterator["CapturedLog"]:
        with logging_to(self._stream, format="json", level=level):
            yield self

    @property
    def text(self) -> str:
        return self._stream.getvalue()

    def records(self, logger: str = "") -> list[dict[str, Any]]:
        """Return the records of loggers whose name begins so."""
        read = [json.loads(line) for line in self.text.splitlines()]
        return [record for record in read if record["logger"].startswith(logger)]


@contextmanager
def captured_log(level: str = "debug") -> Iterator[CapturedLog]:
    """Capture what is logged."""
    with CapturedLog().capturing(level) as log:
        yield log
