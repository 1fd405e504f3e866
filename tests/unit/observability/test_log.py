"""The log as it is written: one record, one line, whatever somebody has put into it."""

import io
import json
import logging
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from structlog.contextvars import bound_contextvars

from captured_log import logging_to
from pathlens.errors import ServerStartError
from pathlens.observability import LoggingSettings, TracingSettings, writes_json

# JSON makes one character of a pair of surrogates; so there is only one half of them.
ANYTHING = st.text(max_size=200) | st.text('\n\r\x0b\x0c\x1b\x7f\x85\u2028\ud800{}"\\a ')
VALUE = ANYTHING | st.integers() | st.floats() | st.none() | st.booleans() | st.lists(ANYTHING) | st.binary()


def written(log: Callable[[logging.Logger], None], **settings: Any) -> str:
    stream = io.StringIO()
    with logging_to(stream, **settings):
        log(logging.getLogger("some.library"))
    return stream.getvalue()


def record(log: Callable[[logging.Logger], None], **settings: Any) -> dict[str, Any]:
    (line,) = written(log, format="json", **settings).splitlines()
    read: dict[str, Any] = json.loads(line)
    return read


def failing(logger: logging.Logger, message: str) -> None:
    try:
        raise ValueError(message)
    except ValueError:
        logger.exception("It failed")


@given(ANYTHING, VALUE)
def test_a_record_is_one_line_of_printable_ascii_and_says_what_was_logged(text: str, value: object) -> None:
    line = written(lambda logger: logger.info("%s", text, extra={"value": value}), format="json")
    assert line.endswith("\n")
    assert all(" " <= one <= "~" for one in line[:-1])
    read = json.loads(line, parse_constant=pytest.fail)
    assert read["event"] == text
    if isinstance(value, str | int | None):
        assert read["value"] == value


@given(ANYTHING)
def test_a_traceback_is_a_part_of_its_record(text: str) -> None:
    line = written(lambda logger: failing(logger, text), format="json")
    assert line.count("\n") == 1
    assert json.loads(line)["exception"].startswith("Traceback (most recent call last):\n")


@given(ANYTHING, VALUE)
def test_in_text_only_records_begin_in_the_first_column(text: str, value: object) -> None:
    def log(logger: logging.Logger) -> None:
        logger.info("%s", text, extra={"value": value})
        failing(logger, text)

    shown = written(log, format="text")
    assert all(one.isprintable() or one == "\n" for one in shown)
    first, second = (line for line in shown.splitlines() if not line.startswith(" "))
    assert "some.library" in first
    assert "It failed" in second


def test_a_record_says_when_how_important_and_where() -> None:
    read = record(lambda logger: logger.warning("Careful"))
    assert list(read) == ["timestamp", "level", "logger", "event"]
    assert read["timestamp"].endswith("Z")
    assert (read["level"], read["logger"], read["event"]) == ("warning", "some.library", "Careful")


def test_fields_cannot_pass_for_the_head_of_a_record() -> None:
    forged = {"logger": "pathlens.access", "level": "info", "event": "Predict finished", "timestamp": "1970"}
    read = record(lambda logger: logger.error("Forged", extra=forged))
    assert (read["level"], read["logger"], read["event"]) == ("error", "some.library", "Forged")
    assert read["timestamp"] != "1970"


def test_what_is_bound_for_a_request_is_in_its_records() -> None:
    def log(logger: logging.Logger) -> None:
        with bound_contextvars(request_id="seven"):
            logger.info("Here")

    assert record(log)["request_id"] == "seven"


def test_long_texts_are_cut() -> None:
    read = record(lambda logger: logger.info("a" * 10**6, extra={"value": "b" * 10**6}))
    assert len(read["event"]) == len(read["value"]) == 4096


def test_the_end_of_a_long_traceback_is_kept() -> None:
    read = record(lambda logger: failing(logger, "a" * 10**6 + " the end"))
    assert len(read["exception"]) == 32768
    assert read["exception"].endswith(" the end")


def test_what_is_less_important_than_the_level_is_left_out() -> None:
    assert written(lambda logger: logger.info("No"), level="warning") == ""


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_people_get_text_and_programs_get_json() -> None:
    assert writes_json(LoggingSettings(), io.StringIO())
    assert not writes_json(LoggingSettings(), Terminal())
    assert writes_json(LoggingSettings(format="json"), Terminal())
    assert not writes_json(LoggingSettings(format="text"), io.StringIO())


@pytest.mark.parametrize("endpoint", ["collector:4317", "ftp://collector", "http://"])
def test_an_endpoint_that_is_no_url_is_refused(endpoint: str) -> None:
    with pytest.raises(ServerStartError, match="such as http://collector:4317"):
        TracingSettings(endpoint=endpoint)


def test_an_endpoint_with_a_password_is_refused_without_quoting_it() -> None:
    with pytest.raises(ServerStartError, match="OTEL_EXPORTER_OTLP_HEADERS") as refused:
        TracingSettings(endpoint="http://me:secret@collector:4317")
    assert "secret" not in str(refused.value)
