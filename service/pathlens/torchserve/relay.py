"""What TorchServe and its workers log, as records of our own log."""

import logging
import os
import re
import threading
from datetime import datetime
from pathlib import Path
from typing import BinaryIO

from pathlens.torchserve.worker_restarts import WorkerRestarts
from pathlens.wire.log_line import record_from_line

LOGGER = "torchserve"
"""Name of the logger of these records."""

_POLL_SECONDS = 0.2
_CHUNK_BYTES = 1024 * 1024
# A line of ours is far shorter; one without an end must not fill the memory.
_LONGEST_LINE = 256 * 1024
# As many lines as a chain of Java's exceptions has.
_LONGEST_ENTRY = 300
_ENTRY = re.compile(r"(?P<time>\S+) (?P<level>[A-Z]+) \[(?P<thread>[^\]]*)\] (?P<source>\S+) - (?P<message>.*)")
# What TorchServe says before it starts a worker again, whoever has ended the one before.
_WORKER, _RETRY = "WorkerThread", "Retry worker"
_LEVELS = {
    "TRACE": logging.DEBUG,
    "DEBUG": logging.DEBUG,
    "INFO": logging.INFO,
    "WARN": logging.WARNING,
    "ERROR": logging.ERROR,
    "FATAL": logging.CRITICAL,
}

_logger = logging.getLogger(LOGGER)


class LogRelay:
    """Follows the log file of a TorchServe, in a thread of its own, through every rollover.

    A line that the handler wrote as a record becomes that record again. Lines that belong to no entry, such as the
    frames of a Java exception, become the `exception` of the entry before them.

    Args:
        log: The file. It may appear later, and be replaced or emptied.
        restarts: Is told of every worker that TorchServe starts again.
    """

    def __init__(self, log: Path, restarts: WorkerRestarts | None = None) -> None:
        self._log = log
        self._restarts = restarts
        self._file: BinaryIO | None = None
        self._rest = b""
        self._entry: logging.LogRecord | None = None
        self._following: list[str] = []
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="torchserve-log", daemon=True)

    def start(self) -> None:
        """Begin to follow."""
        self._thread.start()

    def stop(self) -> None:
        """Relay what has been written so far, and end."""
        self._stopping.set()
        self._thread.join()

    def _run(self) -> None:
        stopped = False
        while not stopped:
            stopped = self._stopping.wait(_POLL_SECONDS)
            try:
                self._poll()
            except OSError as error:
                _logger.warning("The log of TorchServe cannot be read: %s", error)
        self._emit()
        if self._file is not None:
            self._file.close()

    def _poll(self) -> None:
        # First what is left of the file that was open, which may have been renamed since.
        read = self._read()
        if self._is_another():
            self._reopen()
            read = self._read() or read
        if not read:
            # Whoever writes an entry writes all of it at once: nothing follows it any more.
            self._emit()

    def _read(self) -> bool:
        if self._file is None:
            return False
        if os.fstat(self._file.fileno()).st_size < self._file.tell():
            self._file.seek(0)
            self._rest = b""
        read = False
        while chunk := self._file.read(_CHUNK_BYTES):
            read = True
            *lines, self._rest = (self._rest + chunk).split(b"\n")
            for line in lines:
                self._take(line.decode(errors="replace").removesuffix("\r"))
            if len(self._rest) > _LONGEST_LINE:
                self._take(self._rest.decode(errors="replace"))
                self._rest = b""
        return read

    def _is_another(self) -> bool:
        try:
            present = self._log.stat()
        except FileNotFoundError:
            return False
        return self._file is None or not os.path.samestat(present, os.fstat(self._file.fileno()))

    def _reopen(self) -> None:
        if self._file is not None:
            self._file.close()
        self._file = self._log.open("rb")
        self._rest = b""

    def _take(self, line: str) -> None:
        match = _ENTRY.fullmatch(line)
        if match is None:
            if self._entry is not None and len(self._following) < _LONGEST_ENTRY:
                self._following.append(line)
            return
        self._emit()
        self._entry = _record(match)
        if self._restarts is not None and match["source"] == _WORKER and match["message"].startswith(_RETRY):
            self._restarts.retried(match["thread"], self._entry.created)

    def _emit(self) -> None:
        record, self._entry = self._entry, None
        lines, self._following = self._following, []
        if record is None or not _logger.isEnabledFor(record.levelno):
            return
        if lines and not hasattr(record, "exception"):
            record.exception = "\n".join(lines)
        _logger.handle(record)


def _record(match: re.Match[str]) -> logging.LogRecord:
    message = match["message"]
    record = record_from_line(message) if match["source"] == "MODEL_LOG" else None
    if record is None:
        level = _LEVELS.get(match["level"], logging.INFO)
        record = logging.makeLogRecord(
            {
                "msg": message,
                "levelno": level,
                "levelname": logging.getLevelName(level),
                "source": match["source"],
                **_created(match["time"]),
            }
        )
    record.name = LOGGER
    record.thread_name = match["thread"]
    return record


def _created(text: str) -> dict[str, float]:
    # The JVM writes the local time, which is ours.
    try:
        return {"created": datetime.strptime(text, "%Y-%m-%dT%H:%M:%S,%f").astimezone().timestamp()}
    except ValueError:
        return {}
