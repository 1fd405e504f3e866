"""What an operator gets of a real service: its log, with the lines of TorchServe and its handlers, and its traces."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import grpc
import psutil
import pytest
import trustme

from collector import Collector, SeenSpan
from pathlens.bundle.archive import pack
from pathlens.bundle.store import save_bundle
from pathlens.client import Client, Connection, TransportSecurity
from pathlens.errors import PathlensError
from pathlens.explanation import ExplanationOptions, Targets
from pathlens.wire.requests import image_to_message
from pathlens.wire.v1 import explanation_service_pb2 as messages
from pathlens.wire.v1.explanation_service_pb2_grpc import ExplanationServiceStub
from tiny_bundle import pixels, png, tensor, tiny_bundle

PATHLENS = "from pathlens.cli import main; main()"
TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
TRACEPARENT = ("traceparent", f"00-{TRACE}-{PARENT}-01")
PATIENCE_SECONDS = 30
TOKEN = "correct-horse-battery-staple"  # noqa: S105 - of the tests alone
WRONG_TOKEN = "incorrect-horse-battery-staple"  # noqa: S105 - of the tests alone
TEXT = "text of a caller " * 10


class Operated:
    """`pathlens serve` with a collector, as an operator runs it."""

    def __init__(self, archive: Path, folder: Path, collector: Collector) -> None:
        self.collector = collector
        authority = trustme.CA()
        self.roots = authority.cert_pem.bytes()
        self._roots = folder / "authority.pem"
        self._roots.write_bytes(self.roots)
        certificate = authority.issue_cert("localhost", "127.0.0.1")
        certificate.cert_chain_pems[0].write_to_path(folder / "tls.crt")
        certificate.private_key_pem.write_to_path(folder / "tls.key")
        (folder / "tokens").write_text(f"shop:{TOKEN}\n")
        for secret in ("tls.key", "tokens"):
            (folder / secret).chmod(0o600)
        self.secrets = [TOKEN, WRONG_TOKEN]
        self.secrets += [line for line in (folder / "tls.key").read_text().splitlines() if "-----" not in line]
        options = {
            "--log-level": "debug",
            "--trace-endpoint": collector.endpoint,
            "--tls-certificate": folder / "tls.crt",
            "--tls-private-key": folder / "tls.key",
            "--token-file": folder / "tokens",
            "--port": 0,
            "--metrics-port": 0,
        }
        words = [str(word) for option in options.items() for word in option]
        # A short path: the workers' sockets lie below it.
        self.temporary = Path(tempfile.mkdtemp(prefix="sv"))
        self.log = folder / "log"
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-c", PATHLENS, "serve", str(archive), *words],
                env=os.environ | {"TMPDIR": str(self.temporary), "OTEL_BSP_SCHEDULE_DELAY": "100"},
                text=True,
                stdout=subprocess.PIPE,
                stderr=log,
            )
        assert self.process.stdout is not None
        self.address = self.process.stdout.readline().split()[1]

    def client(self, model: str = "", token: str = TOKEN) -> Client:
        security = TransportSecurity(root_certificates=self._roots)
        return Client(Connection(self.address, security, token), model, timeout=PATIENCE_SECONDS)

    @property
    def records(self) -> list[dict[str, Any]]:
        """All records so far; a line that is none is an error."""
        *lines, _ = self.log.read_text().split("\n")
        return [json.loads(line) for line in lines]

    def until(self, count: int = 1, **fields: object) -> list[dict[str, Any]]:
        """Wait for records with such fields."""
        end = time.monotonic() + PATIENCE_SECONDS
        while True:
            found = [record for record in self.records if fields.items() <= record.items()]
            if len(found) >= count:
                return found
            assert time.monotonic() < end, self.log.read_text()
            time.sleep(0.05)

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        code = self.process.wait(60)
        self.process.communicate()
        return code


@pytest.fixture(scope="module")
def operated(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Operated]:
    folder = tmp_path_factory.mktemp("logs")
    save_bundle(tiny_bundle(), folder / "bundle")
    with Collector() as collector:
        running = Operated(pack(folder / "bundle", folder), folder, collector)
        yield running
        if running.process.poll() is None:
            running.process.kill()
            running.process.communicate()
        shutil.rmtree(running.temporary)


def explain(operated: Operated, *metadata: tuple[str, str]) -> None:
    request = messages.ExplainRequest(image=image_to_message(png(pixels(0))))
    metadata = (*metadata, ("authorization", f"Bearer {TOKEN}"))
    credentials = grpc.ssl_channel_credentials(operated.roots)
    with grpc.secure_channel(operated.address, credentials) as channel:
        ExplanationServiceStub(channel).Explain(request, metadata=metadata, timeout=PATIENCE_SECONDS)


def test_a_call_is_found_by_its_id_in_the_lines_of_the_gateway_and_of_the_handler(operated: Operated) -> None:
    with operated.client() as client:
        client.predict(tensor(), request_id="seven")
    (access,) = operated.until(logger="pathlens.access", request_id="seven")
    assert (access["method"], access["code"], access["model"]) == ("Predict", "OK", "tiny")
    (handled,) = operated.until(logger="torchserve", request_id="seven")
    assert handled["source"] == "pathlens_handler"
    assert handled["level"] == "debug"
    assert handled["thread_name"].startswith("W-")
    assert handled["event"].startswith("Answered 1 requests in ")


def test_an_error_of_the_client_has_the_id_of_the_log(operated: Operated) -> None:
    with operated.client("nowhere") as client, pytest.raises(PathlensError) as caught:
        client.predict(tensor())
    (access,) = operated.until(request_id=caught.value.metadata["request_id"])
    assert access["reason"] == "MODEL_NOT_FOUND"


def test_what_a_worker_says_about_its_end_reaches_the_log(operated: Operated) -> None:
    before = len(operated.until(logger="torchserve", event="Torch worker started."))
    (worker,) = [
        process
        for process in psutil.Process(operated.process.pid).children(recursive=True)
        if "model_service_worker.py" in " ".join(process.cmdline())
    ]
    worker.kill()
    operated.until(before + 1, logger="torchserve", event="Torch worker started.")
    assert [record for record in operated.records if record["logger"] == "torchserve" and record["level"] != "info"]
    with operated.client() as client:
        client.predict(tensor())


def test_the_spans_of_a_call_lie_within_each_other(operated: Operated) -> None:
    explain(operated, TRACEPARENT, ("x-request-id", "traced"))

    def seen() -> dict[str, SeenSpan]:
        spans = [one for one in operated.collector.spans if one.span.trace_id.hex() == TRACE]
        return {one.span.name.rpartition(".")[2].rpartition("/")[2]: one for one in spans}

    end = time.monotonic() + PATIENCE_SECONDS
    expected = {"Explain", "admission", "Predictions", "handler", "decode", "predict", "pathway", "gradient", "encode"}
    while set(seen()) != expected:
        assert time.monotonic() < end, sorted(seen())
        time.sleep(0.05)
    spans = seen()
    assert spans["Explain"].span.parent_span_id.hex() == PARENT
    assert spans["admission"].lies_in(spans["Explain"])
    assert spans["Predictions"].lies_in(spans["Explain"])
    assert spans["handler"].lies_in(spans["Predictions"])
    stages = [spans[name] for name in ("decode", "predict", "pathway", "gradient", "encode")]
    assert all(stage.lies_in(spans["handler"]) for stage in stages)
    assert [one.span.start_time_unix_nano for one in stages[1:]] == [one.span.end_time_unix_nano for one in stages[:-1]]
    assert all(one.span.start_time_unix_nano < one.span.end_time_unix_nano for one in stages)
    (access,) = operated.until(request_id="traced", logger="pathlens.access")
    assert (access["trace_id"], access["span_id"]) == (TRACE, spans["Explain"].span.span_id.hex())


def test_no_line_holds_a_secret_or_what_a_caller_has_made_up(operated: Operated) -> None:
    marked = png(pixels(0)) + TEXT.encode()
    for model, token, options in (
        ("", TOKEN, ExplanationOptions(targets=Targets(labels=(TEXT,)))),
        ("", TOKEN, ExplanationOptions()),
        (TEXT, TOKEN, ExplanationOptions()),
        ("", WRONG_TOKEN, ExplanationOptions()),
    ):
        with operated.client(model, token) as client, suppress(PathlensError):
            client.explain(marked, options, request_id="the-bad")
        with operated.client(model, token) as client, suppress(PathlensError):
            client.explain(TEXT.encode(), options, request_id="the-bad")
    host, _, port = operated.address.partition(":")
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(f"GET /{TOKEN} HTTP/1.1\r\n\r\n".encode())
        connection.settimeout(PATIENCE_SECONDS)
        with suppress(ConnectionError):
            connection.recv(1)
    ended = operated.until(8, logger="pathlens.access", request_id="the-bad")
    assert {record["code"] for record in ended} == {"OK", "NOT_FOUND", "INVALID_ARGUMENT", "UNAUTHENTICATED"}
    written = operated.log.read_text()
    assert not [secret for secret in operated.secrets if secret in written]
    assert TEXT[:20] not in written


# The last one: it ends the service.
def test_every_line_is_a_record_to_the_end_and_the_last_spans_are_sent(operated: Operated) -> None:
    explain(operated, ("x-request-id", "the-last"))
    assert operated.stop() == 0
    assert operated.log.read_text().endswith("\n")
    records = operated.records
    assert [record["event"] for record in records if record["logger"] == "pathlens.cli.running"][-2:] == [
        "Stopping",
        "Stopped",
    ]
    assert all({"timestamp", "level", "logger", "event"} <= set(record) for record in records)
    assert [record for record in records if record.get("request_id") == "the-last" and record["logger"] == "torchserve"]
    last = [one for one in operated.collector.spans if one.attributes.get("pathlens.request_id") == "the-last"]
    assert len(last) == 1
