"""What TorchServe wrote to its log: who failed to load, and what to quote when the start fails."""

import re
from collections import Counter
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from pathlens.torchserve.archive import ArchivedModel

_ENTRY = re.compile(r"\S+ [A-Z]+ \[(?P<thread>[^\]]*)\] (?P<logger>\S+) - (?P<message>.*)")
_QUOTED_LINES = 30
# A chain of two exceptions from a handler that imports a library fits.
_QUOTED_TRACEBACK_LINES = 100
# What TorchServe's worker program prints first, with a UNIX and with a TCP socket.
_WORKER_BEGINS = ("s_name_part0=", "Listening on addr:port")
# What it prints before it hands over to the handler.
_HANDLER_BEGINS = "model_name: "
# With a RuntimeError it prints the handler's traceback under the first line and one of its own under the second; with
# any other exception it prints only the second line, followed by the handler's traceback.
_LOAD_FAILED = "Failed to load model"
_WORKER_DIED = "Backend worker process died"
_UNDERLINE = re.compile(r"[ ~^]*")


@dataclass(frozen=True)
class _Entry:
    thread: str
    logger: str
    message: str


@dataclass(frozen=True)
class LoadFailures:
    """How often a worker has failed to load its model.

    Args:
        count: How often; 0 if none has failed.
        words: What the worker printed about it; empty if it ended in silence.
    """

    count: int
    words: str


class Journal:
    """The log files of one TorchServe.

    Args:
        log: The file that TorchServe's loggers write.
        console: The file with what the JVM itself prints.
    """

    def __init__(self, log: Path, console: Path) -> None:
        self.log = log
        self._console = console

    def size(self) -> int:
        """Give the present length of the log in bytes, for `since`."""
        return self.log.stat().st_size if self.log.exists() else 0

    def load_failures(self, model: ArchivedModel, since: int) -> LoadFailures:
        """Find out how often a worker of a model has ended and was started anew.

        Args:
            model: The model.
            since: Only what was written after this many bytes counts.

        Returns:
            The failures of the worker that failed most often.
        """
        entries = self._entries(model, since)
        retries = Counter(entry.thread for entry in entries if entry.message.startswith("Retry worker"))
        if not retries:
            return LoadFailures(0, "")
        worker, count = retries.most_common(1)[0]
        printed = [
            entry.message
            for entry in entries
            if entry.logger == "MODEL_LOG" and entry.thread.removesuffix("-stdout").removesuffix("-stderr") == worker
        ]
        return LoadFailures(count, _first_failure(printed))

    def rejection(self, file_name: str) -> str:
        """Find out whether TorchServe refused an archive outright.

        Args:
            file_name: Name of the archive in TorchServe's model store.

        Returns:
            What TorchServe said; empty if it took the archive.
        """
        lines = self._lines(self.log)
        for number, line in enumerate(lines):
            if "Failed to load model" in line and file_name in line:
                return "\n".join(lines[number : number + 3])
        return ""

    def last_words(self, model: ArchivedModel) -> str:
        """Quote the end of what a model's workers printed.

        Args:
            model: The model.

        Returns:
            At most 30 lines.
        """
        printed = [entry.message for entry in self._entries(model) if entry.logger == "MODEL_LOG"]
        return "\n".join(printed[-_QUOTED_LINES:]) or self.tail()

    def tail(self) -> str:
        """Quote the end of what the JVM and its loggers wrote.

        Returns:
            At most 30 lines of each.
        """
        parts = [self._lines(path)[-_QUOTED_LINES:] for path in (self._console, self.log)]
        return "\n".join(line for part in parts for line in part) or "(nothing)"

    def could_not_bind(self) -> bool:
        """Tell whether the JVM ended because another process held one of its ports."""
        return any("Address already in use" in line for path in (self._console, self.log) for line in self._lines(path))

    def _lines(self, path: Path, since: int = 0) -> list[str]:
        if not path.exists():
            return []
        with path.open("rb") as file:
            # A log that has become shorter was rolled over: all of it is new.
            file.seek(since if since <= path.stat().st_size else 0)
            return file.read().decode(errors="replace").splitlines()

    def _entries(self, model: ArchivedModel, since: int = 0) -> list[_Entry]:
        """Read what concerns a model's workers; their threads are named so."""
        worker = re.compile(rf"W-\d+-{re.escape(model.name)}_{re.escape(model.version)}(-stdout|-stderr)?")
        matches = (_ENTRY.fullmatch(line) for line in self._lines(self.log, since))
        return [_Entry(**match.groupdict()) for match in matches if match and worker.fullmatch(match["thread"])]


def _first_failure(printed: list[str]) -> str:
    """Cut the first failure of which something is known out of all that a worker has printed.

    TorchServe notices the end of a worker before it has read all its output, and then forgets the rest: any of the
    worker's lives may be cut short, and the last one may still be going on.
    """
    begins = [number for number, message in enumerate(printed) if message.startswith(_WORKER_BEGINS)]
    lives = [printed[begin:end] for begin, end in pairwise([*begins, len(printed)])] or [printed]
    return next(filter(None, map(_words, lives)), "")


def _words(life: list[str]) -> str:
    """Return what a worker printed about its failure during one life; empty if it did not get so far."""
    begins = [number for number, message in enumerate(life) if message.startswith(_HANDLER_BEGINS)]
    failed = any(message.startswith(_LOAD_FAILED) for message in life)
    if not begins and not failed:
        return ""
    life = life[begins[0] + 1 :] if begins else life
    if failed:
        died = [number for number, message in enumerate(life) if message.startswith(_WORKER_DIED)]
        life = life[: died[0]] if died else life
    words = [message for message in life if not _UNDERLINE.fullmatch(message)]
    return "\n".join(words[-_QUOTED_TRACEBACK_LINES:])
