"""Log records of the handler on their way through the log of TorchServe, which keeps lines and nothing else."""

import json
import logging
import sys
from collections.abc import Mapping
from contextvars import ContextVar

log_context: ContextVar[Mapping[str, object]] = ContextVar("log_context", default={})  # noqa: B039 - never changed
"""What every record says beside its message: the id of the request that is being answered."""

# What a record consists of; anything else was given as `extra`.
_OWN = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


def write_log_lines(level: int, *names: str) -> None:
    """Let loggers write their records as lines to the standard output, where TorchServe reads them.

    Args:
        level: What is less important is left out.
        names: Names of the loggers.
    """
    output = logging.StreamHandler(sys.stdout)
    output.setFormatter(LogLineFormatter())
    for name in names:
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [output], False
        logger.setLevel(level)


class LogLineFormatter(logging.Formatter):
    """Writes a record, with its traceback, as one line of JSON in ASCII.

    TorchServe looks for lines of its own among those of its workers, such as metrics. None of them begins with a brace
    and ends with one.
    """

    def format(self, record: logging.LogRecord) -> str:
        """Write the line."""
        extra = {key: value for key, value in vars(record).items() if key not in _OWN}
        fields = {
            "event": record.getMessage(),
            "level": record.levelname,
            "created": record.created,
            "source": record.name,
            **log_context.get(),
            **extra,
        }
        if record.exc_info:
            fields["exception"] = self.formatException(record.exc_info)
        return json.dumps(fields, default=repr)


def record_from_line(line: str) -> logging.LogRecord | None:
    """Read a line back.

    Args:
        line: A line of a worker.

    Returns:
        The record, of no logger's name; None if the line is no such record.
    """
    if not (line.startswith("{") and line.endswith("}")):
        return None
    try:
        fields = json.loads(line)
    except (ValueError, RecursionError):
        return None
    event, level, created = (fields.pop(key, None) for key in ("event", "level", "created"))
    number = logging.getLevelNamesMapping().get(level) if isinstance(level, str) else None
    if not isinstance(event, str) or number is None or not isinstance(created, float):
        return None
    plain = {
        key: value
        for key, value in fields.items()
        if key not in _OWN and isinstance(value, str | int | float | bool | None)
    }
    return logging.makeLogRecord({"msg": event, "levelno": number, "levelname": level, "created": created, **plain})
