"""The log of the service: every record of every library in one form, on one line."""

import json
import logging
import math
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, TextIO

import structlog
from structlog.stdlib import ExtraAdder, ProcessorFormatter
from structlog.typing import EventDict

from pathlens.observability.settings import LoggingSettings

# No record of ours comes near these; they bound what others put into one.
_LONGEST_VALUE = 4096
_LONGEST_TRACEBACK = 32768

_EXTRA = ExtraAdder()
_INDENT = "    "


def writes_json(settings: LoggingSettings, stream: TextIO | None = None) -> bool:
    """Tell whether the log is one for programs.

    Args:
        settings: What the operator chose.
        stream: Where the log goes; None means standard error.

    Returns:
        Whether each record is a JSON object.
    """
    return settings.format == "json" or (settings.format == "auto" and not (stream or sys.stderr).isatty())


def configure_logging(settings: LoggingSettings, stream: TextIO | None = None) -> None:
    """Let everything that is logged in this process, by us and by libraries, go to one stream in one form.

    Whatever a value holds, a record is one line; in text, a traceback follows in lines that begin with a space. What
    is bound by `structlog.contextvars`, such as the id of a request, is part of each record.

    Args:
        settings: What the operator chose.
        stream: Where the log goes; None means standard error.
    """
    target = stream or sys.stderr
    handler = logging.StreamHandler(target)
    handler.setFormatter(_formatter(writes_json(settings, target), target.isatty()))
    logging.basicConfig(level=settings.level.upper(), handlers=[handler], force=True)
    logging.captureWarnings(True)


def _formatter(as_json: bool, colours: bool) -> logging.Formatter:
    if as_json:
        rendering: tuple[Callable[..., Any], ...] = (_to_json,)
    else:
        plain = structlog.dev.plain_traceback
        console = structlog.dev.ConsoleRenderer(
            colors=colours, exception_formatter=plain, sort_keys=False, pad_event_to=0
        )
        rendering = (_printable, console)
    return ProcessorFormatter(
        processors=[
            _stamped,
            structlog.contextvars.merge_contextvars,
            _with_extra,
            structlog.processors.format_exc_info,
            structlog.processors.StackInfoRenderer(),
            ProcessorFormatter.remove_processors_meta,
            _bounded,
            *rendering,
        ]
    )


def _stamped(_logger: object, _name: str, event: EventDict) -> EventDict:
    record = event["_record"]
    moment = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
    head: EventDict = {
        "timestamp": moment.replace("+00:00", "Z"),
        "level": record.levelname.lower(),
        "logger": record.name,
    }
    return {**head, **event}


def _with_extra(logger: Any, name: str, event: EventDict) -> EventDict:
    # A field must not pass for the head of a record.
    extra = _EXTRA(logger, name, {"_record": event["_record"]})
    return {**event, **{key: value for key, value in extra.items() if key not in event}}


def _bounded(_logger: object, _name: str, event: EventDict) -> EventDict:
    for key, value in event.items():
        # JSON knows no infinity and no NaN.
        if value is None or isinstance(value, bool | int) or (isinstance(value, float) and math.isfinite(value)):
            continue
        text = value if isinstance(value, str) else repr(value)
        longest = _LONGEST_TRACEBACK if key == "exception" else _LONGEST_VALUE
        if len(text) > longest:
            # The end of a traceback names the error.
            text = f"…{text[1 - longest :]}" if key == "exception" else f"{text[: longest - 1]}…"
        event[key] = text
    return event


def _to_json(_logger: object, _name: str, event: EventDict) -> str:
    # JSON in ASCII escapes every control character but this one.
    return json.dumps(event).replace("\x7f", "\\u007f")


def _printable(_logger: object, _name: str, event: EventDict) -> EventDict:
    for key, value in event.items():
        if isinstance(value, str):
            lines = value.splitlines() if key in ("exception", "stack") else [value]
            shown = [_escaped(line) for line in lines]
            event[key] = shown[0] if key not in ("exception", "stack") else "\n".join(_INDENT + one for one in shown)
    return event


def _escaped(line: str) -> str:
    if line.isprintable():
        return line
    return "".join(one if one.isprintable() else repr(one)[1:-1] for one in line)
