"""The log of TorchServe, followed as it is written, replaced and emptied."""

import json
import logging
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from captured_log import CapturedLog, captured_log
from pathlens.model_version import ModelVersion
from pathlens.torchserve.relay import LogRelay
from pathlens.torchserve.worker_restarts import WorkerRestarts
from pathlens.wire.log_line import LogLineFormatter

Write = Callable[[str], None]


def entry(message: str, level: str = "INFO", source: str = "MODEL_LOG") -> str:
    return f"2026-11-21T20:27:04,123 {level} [W-9000-digits_1.0-stdout] {source} - {message}\n"


def handler_line(message: str, **extra: Any) -> str:
    record = {"name": "pathlens_handler", "levelname": "ERROR", "levelno": logging.ERROR, "msg": message, **extra}
    return entry(LogLineFormatter().format(logging.makeLogRecord(record)))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "torchserve.log"


@pytest.fixture
def log() -> Iterator[CapturedLog]:
    with captured_log() as captured:
        yield captured


@pytest.fixture
def relay(path: Path, log: CapturedLog, monkeypatch: pytest.MonkeyPatch) -> Iterator[LogRelay]:
    monkeypatch.setattr("pathlens.torchserve.relay._POLL_SECONDS", 0.02)
    running = LogRelay(path)
    running.start()
    yield running
    running.stop()


@pytest.fixture
def still(path: Path, log: CapturedLog) -> Iterator[LogRelay]:
    """A relay without a thread, which looks at the file when it is told to."""
    relay = LogRelay(path)
    yield relay
    relay._stopping.set()
    relay._run()


@pytest.fixture
def append(path: Path) -> Write:
    def write(text: str) -> None:
        with path.open("a") as file:
            file.write(text)

    return write


def events(log: CapturedLog) -> list[str]:
    return [record["event"] for record in log.records("torchserve")]


def until(log: CapturedLog, count: int) -> list[dict[str, Any]]:
    end = time.monotonic() + 10
    while len(log.records("torchserve")) < count:
        assert time.monotonic() < end, log.text
        time.sleep(0.01)
    return log.records("torchserve")


def test_an_entry_is_a_record_with_its_time_level_thread_and_source(
    relay: LogRelay, log: CapturedLog, append: Write
) -> None:
    append(entry("Careful", "WARN", "ModelManager"))
    (record,) = until(log, 1)
    moment = datetime(2026, 11, 21, 20, 27, 4, 123000).astimezone(UTC)
    assert record == {
        "timestamp": moment.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        "level": "warning",
        "logger": "torchserve",
        "event": "Careful",
        "source": "ModelManager",
        "thread_name": "W-9000-digits_1.0-stdout",
    }


def test_a_record_of_the_handler_is_that_record_again(relay: LogRelay, log: CapturedLog, append: Write) -> None:
    append(handler_line("It failed\nin two lines", request_id="seven", exception="Traceback\n  a\nValueError: b"))
    (record,) = until(log, 1)
    assert record["event"] == "It failed\nin two lines"
    assert (record["level"], record["source"], record["request_id"]) == ("error", "pathlens_handler", "seven")
    assert record["exception"].splitlines() == ["Traceback", "  a", "ValueError: b"]
    assert record["thread_name"] == "W-9000-digits_1.0-stdout"


def test_lines_without_a_head_belong_to_the_entry_before_them(relay: LogRelay, log: CapturedLog, append: Write) -> None:
    append(entry("It broke", "ERROR", "Netty") + "java.io.IOException: x\n\tat a.b(C.java:1)\n" + entry("Next"))
    broken, following = until(log, 2)
    assert broken["exception"] == "java.io.IOException: x\n\tat a.b(C.java:1)"
    assert "exception" not in following


def look(relay: LogRelay) -> None:
    """Let a relay look at the file until it finds nothing new."""
    relay._poll()
    relay._poll()


def test_a_line_is_relayed_once_it_is_whole(still: LogRelay, log: CapturedLog, append: Write) -> None:
    whole = entry("A whole line")
    append(whole[:40])
    look(still)
    assert events(log) == []
    append(whole[40:])
    look(still)
    assert events(log) == ["A whole line"]


def test_nothing_is_lost_or_repeated_when_the_file_rolls_over(
    relay: LogRelay, log: CapturedLog, append: Write, path: Path
) -> None:
    append(entry("line 0"))
    until(log, 1)
    for number in range(1, 50):
        append(entry(f"line {number}"))
        if number % 10 == 9:
            path.rename(path.with_suffix(".log.1"))
            # As fast as log4j, which renames and goes on: the relay may not have seen the end of the old file.
            append(entry(f"after {number}"))
            until(log, number + 1 + number // 10 + 1)
    expected = [text for n in range(50) for text in ([f"line {n}"] + ([f"after {n}"] if n % 10 == 9 else []))]
    assert events(log) == expected


def test_an_emptied_file_is_read_from_its_beginning(
    relay: LogRelay, log: CapturedLog, append: Write, path: Path
) -> None:
    append(entry("The first of two long lines") * 2)
    until(log, 2)
    path.write_bytes(b"")
    append(entry("new"))
    until(log, 3)
    assert events(log)[2:] == ["new"]


def test_a_line_that_was_not_whole_when_the_file_was_emptied_is_part_of_no_other(
    still: LogRelay, log: CapturedLog, append: Write, path: Path
) -> None:
    append(entry("whole") + entry("a line that is cut off")[:60])
    look(still)
    path.write_bytes(b"")
    append(entry("new"))
    look(still)
    assert events(log) == ["whole", "new"]


def test_a_stop_relays_what_was_written_before(relay: LogRelay, log: CapturedLog, append: Write) -> None:
    append("".join(entry(f"line {number}") for number in range(1000)))
    relay.stop()
    assert len(events(log)) == 1000


def test_a_file_that_never_appears_is_no_error(relay: LogRelay, log: CapturedLog) -> None:
    relay.stop()
    assert log.records("torchserve") == []


def test_a_line_without_an_end_does_not_fill_the_memory(still: LogRelay, log: CapturedLog, append: Write) -> None:
    for _ in range(4):
        append("x" * 200_000)
        look(still)
        assert len(still._rest) <= 256 * 1024
    append("\n" + entry("after"))
    look(still)
    assert events(log) == ["after"]


def test_a_record_of_a_worker_cannot_pass_for_another_logger(relay: LogRelay, log: CapturedLog, append: Write) -> None:
    forged = {"event": "x", "level": "INFO", "created": 1.0, "logger": "pathlens.access", "name": "pathlens.access"}
    append(entry(json.dumps(forged)))
    (record,) = until(log, 1)
    assert record["logger"] == "torchserve"


def retried(worker: str, seconds: float = 0.0, source: str = "WorkerThread") -> str:
    moment = datetime.now() + timedelta(seconds=seconds)
    time_of_log = f"{moment:%Y-%m-%dT%H:%M:%S},{moment.microsecond // 1000:03}"
    return f"{time_of_log} INFO [{worker}] {source} - Retry worker: 9000 in 1 seconds.\n"


def test_workers_of_loaded_versions_that_are_started_again_are_counted(path: Path, append: Write) -> None:
    restarts = WorkerRestarts()
    relay = LogRelay(path, restarts)
    relay.start()
    restarts.loaded(ModelVersion("digits", "1.0"))
    # Two deaths between two looks of anybody.
    append(retried("W-9000-digits_1.0", 1) + retried("W-9001-digits_1.0", 1))
    # Before it was loaded; of versions that are not; and what a model has printed.
    append(retried("W-9000-digits_1.0", -1) + retried("W-9002-digits_2.0", 1) + retried("W-9000-other-digits_1.0", 1))
    append(retried("W-9000-digits_1.0", 1, "MODEL_LOG"))
    relay.stop()
    assert restarts.total == 2


def test_workers_of_versions_that_are_unloaded_are_not_counted() -> None:
    restarts = WorkerRestarts()
    one, other = ModelVersion("digits", "1.0"), ModelVersion("odd-name_x", "1.0")
    restarts.loaded(one)
    restarts.loaded(other)
    restarts.unloaded(one)
    restarts.retried("W-9000-digits_1.0", time.time() + 1)
    restarts.retried("W-9001-odd-name_x_1.0", time.time() + 1)
    assert restarts.total == 1
    restarts.unloaded()
    restarts.retried("W-9001-odd-name_x_1.0", time.time() + 1)
    assert restarts.total == 1
