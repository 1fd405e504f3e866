"""Records of the handler as lines in TorchServe's log."""

import logging
import re
import sys

from hypothesis import given
from hypothesis import strategies as st

from pathlens.wire.log_line import LogLineFormatter, log_context, record_from_line
from pathlens.wire.request_id import is_request_id, new_request_id

TEXT = st.text(max_size=200) | st.text('\n\r\x0b\x1b\x7f\x85\u2028\ud800{}"\\a ')
# What TorchServe 0.12 looks for in the output of its workers.
TORCHSERVES_OWN = [
    re.compile(r"^(INFO > )?(\[METRICS])(.*)"),
    re.compile(r"(.*)(INFO > )?(Torch worker started.)$"),
    re.compile(r"^(INFO > )?(\[PID])(\d+)$"),
    re.compile(r".*\[PID\](\d+)$"),
]
FORGERIES = ["[METRICS]a.Count:1|#Level:Host", "Torch worker started.", "[PID]1", "\n[METRICS]a", "x\r\n[PID]77"]


def line(text: str, request_id: str = "seven", **extra: object) -> str:
    record = logging.makeLogRecord({"name": "pathlens", "levelname": "ERROR", "levelno": 40, "msg": text, **extra})
    token = log_context.set({"request_id": request_id})
    try:
        return LogLineFormatter().format(record)
    finally:
        log_context.reset(token)


@given(TEXT, TEXT)
def test_a_record_comes_back_as_it_was(text: str, request_id: str) -> None:
    record = record_from_line(line(text, request_id, seconds=0.5))
    assert record is not None
    assert (record.getMessage(), record.levelno) == (text, logging.ERROR)
    assert vars(record)["request_id"] == request_id
    assert vars(record)["seconds"] == 0.5


@given(TEXT | st.sampled_from(FORGERIES), TEXT | st.sampled_from(FORGERIES))
def test_no_record_forms_a_line_of_torchserve(text: str, request_id: str) -> None:
    written = line(text, request_id)
    assert written.isascii()
    assert written.isprintable()
    assert not any(pattern.search(written) for pattern in TORCHSERVES_OWN)


@given(st.from_regex(r"[A-Za-z0-9._-]{1,128}", fullmatch=True))
def test_no_request_id_forms_a_line_of_torchserve(request_id: str) -> None:
    assert is_request_id(request_id)
    assert not any(pattern.search(request_id) for pattern in TORCHSERVES_OWN)


@given(st.text(st.characters(codec=None)))
def test_an_id_consists_of_its_alphabet(text: str) -> None:
    expected = 1 <= len(text) <= 128 and all(one.isascii() and (one.isalnum() or one in "._-") for one in text)
    assert is_request_id(text) is expected


def test_a_line_break_after_an_id_is_no_part_of_it() -> None:
    assert not is_request_id("seven\n")


def test_a_new_id_is_an_id() -> None:
    assert is_request_id(new_request_id())
    assert new_request_id() != new_request_id()


def test_a_traceback_travels_in_the_line() -> None:
    try:
        raise ValueError("broken")
    except ValueError:
        written = line("It failed", exc_info=sys.exc_info())
    record = record_from_line(written)
    assert record is not None
    assert vars(record)["exception"].splitlines()[-1] == "ValueError: broken"


@given(TEXT | st.sampled_from(["{}", "[]", "{", '{"event": 1}', '{"event": "a", "level": "X", "created": 1.0}']))
def test_any_other_line_is_no_record(text: str) -> None:
    assert record_from_line(text) is None


def test_a_foreign_line_cannot_overwrite_what_a_record_consists_of() -> None:
    written = '{"event": "a", "level": "INFO", "created": 1.0, "args": "x", "exc_info": "y", "name": "z", "k": [1]}'
    record = record_from_line(written)
    assert record is not None
    assert not record.args
    assert record.exc_info is None
    assert "k" not in vars(record)
