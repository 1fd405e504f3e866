"""A real TorchServe with real little model archives: how it starts, what it shows, and that nothing of it remains."""

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import grpc
import psutil
import pytest

from pathlens.errors import BundleError, ServerStartError
from pathlens.model_version import ModelVersion
from pathlens.torchserve import TorchServe, TorchServeSettings, process
from pathlens.torchserve.instance import InstanceFolder, free_ports
from pathlens.wire.internal.v1.torchserve_pb2 import (
    DescribeModelRequest,
    ManagementResponse,
    PredictionResponse,
    PredictionsRequest,
)

ECHO = """
import json, os, time

class Echo:
    def initialize(self, context):
        pass

    def handle(self, rows, context):
        return [self.answer(bytes(row.get("data") or row.get("body"))) for row in rows]

    def answer(self, data):
        if data == b"pid":
            return str(os.getpid()).encode()
        if data == b"environment":
            return json.dumps(dict(os.environ)).encode()
        if data == b"library":
            import library
            return library.ORIGIN.encode()
        if data.startswith(b"sleep "):
            time.sleep(float(data[6:]))
            return b"slept"
        return data
"""

BROKEN = """
import os, signal

class Broken:
    def initialize(self, context):
        {statement}

    def handle(self, rows, context):
        return rows
"""

STARTED_SECONDS = 60  # on a busy machine; a few seconds on an idle one


def make_archive(path: Path, name: str, handler: str = ECHO) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        model = {"modelName": name, "modelVersion": "1.0", "handler": "handler.py"}
        manifest = {
            "createdOn": "01/01/2026 00:00:00",
            "runtime": "python",
            "archiverVersion": "0.12.0",
            "model": model,
        }
        archive.writestr("MAR-INF/MANIFEST.json", json.dumps(manifest))
        archive.writestr("handler.py", handler)
    return path


def channel(address: str) -> grpc.Channel:
    options = [("grpc.enable_http_proxy", 0), ("grpc.max_receive_message_length", -1)]
    return grpc.insecure_channel(address, options=options)


def predict(server: TorchServe, model: str, data: bytes, timeout: float = 60) -> bytes:
    with channel(server.inference_address) as connection:
        call = connection.unary_unary(
            "/org.pytorch.serve.grpc.inference.InferenceAPIsService/Predictions",
            request_serializer=PredictionsRequest.SerializeToString,
            response_deserializer=PredictionResponse.FromString,
        )
        reply = call(PredictionsRequest(model_name=model, input={"data": data}), timeout=timeout)
    return reply.prediction


def canary_of(server: TorchServe) -> Callable[[ModelVersion], None]:
    def canary(version: ModelVersion) -> None:
        assert predict(server, version.name, b"canary") == b"canary"

    return canary


def family_of(server: TorchServe) -> list[psutil.Process]:
    jvm = psutil.Process(server.pid)
    return [jvm, *jvm.children(recursive=True)]


def wait_until(condition: Callable[[], bool], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def all_gone(processes: list[psutil.Process]) -> bool:
    return not any(one.is_running() and one.status() != psutil.STATUS_ZOMBIE for one in processes)


class Sleeper(threading.Thread):
    """A caller who waits for a slow answer."""

    def __init__(self, server: TorchServe, seconds: float) -> None:
        super().__init__(daemon=True)
        self.answer: bytes | grpc.StatusCode | None = None
        self._server = server
        self._seconds = seconds
        self.start()
        time.sleep(0.5)  # until the handler has it

    def run(self) -> None:
        try:
            self.answer = predict(self._server, "echo", f"sleep {self._seconds}".encode())
        except grpc.RpcError as error:
            self.answer = error.code()


@pytest.fixture(scope="module")
def echo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_archive(tmp_path_factory.mktemp("one") / "echo.mar", "echo")


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_archive(tmp_path_factory.mktemp("two") / "any name, even =this.mar", "other-model.v2")


@pytest.fixture(scope="module")
def server(echo: Path, other: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TorchServe]:
    """One TorchServe with two models for all tests that leave it as it is, started in a hostile environment."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAVA_TOOL_OPTIONS", "-XX:NoSuchOption")
        patch.setenv("TS_CONFIG_FILE", "/nonexistent")
        for name in ("http_proxy", "https_proxy", "grpc_proxy"):
            patch.setenv(name, "http://127.0.0.1:9")
        patch.setenv("PATHLENS_TEST", "reaches the worker")
        other_handler = tmp_path_factory.mktemp("other_handler")
        (other_handler / "handler.py").write_text(BROKEN.format(statement="raise ValueError('not of the archive')"))
        (other_handler / "library.py").write_text("ORIGIN = 'the environment'")
        patch.setenv("PYTHONPATH", os.pathsep.join([str(other_handler), os.environ.get("PYTHONPATH", "")]))
        with TorchServe(TorchServeSettings(archives=(echo, other))) as server:
            server.wait_until_ready(canary_of(server), timeout=STARTED_SECONDS)
            yield server


@pytest.fixture
def fresh(echo: Path) -> Iterator[TorchServe]:
    """A TorchServe of the test's own, ready."""
    with TorchServe(TorchServeSettings(archives=(echo,))) as server:
        server.wait_until_ready(canary_of(server), timeout=STARTED_SECONDS)
        yield server


@pytest.fixture
def temporary(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder in which the folders of instances are made, for tests that never learn an instance's folder."""
    with tempfile.TemporaryDirectory(prefix="t") as folder:
        monkeypatch.setattr(tempfile, "tempdir", folder)
        yield Path(folder)


def test_a_prediction_comes_back_over_grpc(server: TorchServe) -> None:
    assert predict(server, "echo", b"\x00\xff any bytes") == b"\x00\xff any bytes"


def test_a_prediction_comes_back_over_http(server: TorchServe) -> None:
    connection = http.client.HTTPConnection(server.http_inference_address, timeout=20)
    try:
        connection.request("PUT", "/predictions/echo", body=b"an image")
        assert connection.getresponse().read() == b"an image"
    finally:
        connection.close()


def test_archives_from_different_folders_are_served_under_their_manifests_names(server: TorchServe) -> None:
    assert server.models == ("echo", "other-model.v2")
    assert predict(server, "other-model.v2", b"hello") == b"hello"


def test_messages_of_20_mebibytes_pass_both_ways(server: TorchServe) -> None:
    data = b"0123456789abcdef" * (20 * 2**16)
    assert predict(server, "echo", data) == data


def test_every_listener_is_on_loopback_and_belongs_to_our_jvm(server: TorchServe) -> None:
    listeners = {
        (one.laddr.ip, one.laddr.port, member.pid)
        for member in family_of(server)
        for one in member.net_connections("inet")
        if one.status == psutil.CONN_LISTEN or one.type == socket.SOCK_DGRAM
    }
    ports = {port for _, port, _ in listeners}
    promised = (server.inference_address, server.management_address, server.http_inference_address)
    assert {ip for ip, _, _ in listeners} == {"127.0.0.1"}
    assert {pid for _, _, pid in listeners} == {server.pid}
    assert {int(address.removeprefix("127.0.0.1:")) for address in promised} < ports
    assert len(ports) == 4


def test_requests_are_never_batched_together(server: TorchServe) -> None:
    with channel(server.management_address) as connection:
        describe = connection.unary_unary(
            "/org.pytorch.serve.grpc.management.ManagementAPIsService/DescribeModel",
            request_serializer=DescribeModelRequest.SerializeToString,
            response_deserializer=ManagementResponse.FromString,
        )
        reply = describe(DescribeModelRequest(model_name="echo"), timeout=20)
    (description,) = json.loads(reply.msg)
    assert (description["batchSize"], description["minWorkers"], description["maxWorkers"]) == (1, 1, 1)
    assert (description["responseTimeout"], description["startupTimeout"]) == (120, 300)


def test_the_workers_environment_holds_what_is_passed_on_and_nothing_else(server: TorchServe) -> None:
    environment = json.loads(predict(server, "echo", b"environment"))
    assert environment["PATHLENS_TEST"] == "reaches the worker"
    assert environment["TMPDIR"] == environment["TEMP"] == str(server.log_path.parent / "t")
    assert environment.keys().isdisjoint({"JAVA_TOOL_OPTIONS", "TS_CONFIG_FILE", "http_proxy", "https_proxy"})


def test_the_archives_handler_goes_before_one_on_the_pythonpath_from_which_libraries_come(server: TorchServe) -> None:
    # The handler there would not even load.
    assert predict(server, "echo", b"hello") == b"hello"
    assert predict(server, "echo", b"library") == b"the environment"


def test_the_clients_text_is_in_no_file(server: TorchServe) -> None:
    predict(server, "echo", b"confidential")
    with pytest.raises(grpc.RpcError):
        predict(server, "no-model-confidential", b"confidential")
    connection = http.client.HTTPConnection(server.http_inference_address, timeout=20)
    try:
        connection.request("GET", "/no-path-confidential?confidential=%zz", headers={"confidential": "confidential"})
        assert connection.getresponse().status >= 400
    finally:
        connection.close()
    files = [path for path in server.log_path.parent.rglob("*") if path.is_file()]
    assert server.log_path in files
    assert [path for path in files if b"confidential" in path.read_bytes()] == []


def test_the_log_gains_no_line_per_request(server: TorchServe) -> None:
    before = server.log_path.read_text()
    for _ in range(5):
        predict(server, "echo", b"hello")
    assert server.log_path.read_text() == before


def test_paths_are_short_enough_for_the_workers_sockets(server: TorchServe) -> None:
    (path, *_) = (server.log_path.parent / "t").glob(".ts.sock.*")
    assert len(str(path)) < 90


def test_the_jvm_leads_a_session_of_its_own_so_that_ctrl_c_does_not_reach_it(server: TorchServe) -> None:
    assert os.getsid(server.pid) == server.pid


def test_starting_what_runs_changes_nothing(server: TorchServe) -> None:
    pid = server.pid
    server.start()
    assert server.pid == pid


def test_waiting_tells_its_progress(server: TorchServe) -> None:
    heard: list[str] = []
    server.wait_until_ready(canary_of(server), progress=heard.append)
    assert heard == [
        *("loading echo 1.0", "echo 1.0 is ready"),
        *("loading other-model.v2 1.0", "other-model.v2 1.0 is ready"),
    ]


def test_a_canary_that_keeps_failing_ends_the_wait_with_its_reason(server: TorchServe) -> None:
    def canary(_version: ModelVersion) -> None:
        raise ValueError("the logits are NaN")

    with pytest.raises(ServerStartError, match=r"echo 1.0 has loaded, but a prediction failed: the logits are NaN"):
        server.wait_until_ready(canary)


def test_a_killed_worker_is_replaced_and_can_be_waited_for(server: TorchServe) -> None:
    worker = int(predict(server, "echo", b"pid"))
    os.kill(worker, signal.SIGKILL)
    wait_until(lambda: not psutil.pid_exists(worker))
    server.wait_until_ready(canary_of(server), timeout=STARTED_SECONDS)
    assert int(predict(server, "echo", b"pid")) != worker


def test_stopping_leaves_no_process_and_no_folder_and_says_nothing(
    fresh: TorchServe, capfd: pytest.CaptureFixture[str]
) -> None:
    family, folder = family_of(fresh), fresh.log_path.parent
    assert len(family) >= 2
    assert folder.is_dir()
    fresh.stop()
    assert [one.pid for one in family if psutil.pid_exists(one.pid)] == []
    assert not folder.exists()
    assert not fresh.is_running
    assert capfd.readouterr() == ("", "")


def test_stopping_waits_for_the_answer_in_flight(fresh: TorchServe) -> None:
    caller = Sleeper(fresh, 2)
    fresh.stop()
    caller.join(5)
    assert caller.answer == b"slept"


def test_stopping_kills_a_handler_that_outlasts_the_drain(fresh: TorchServe) -> None:
    caller = Sleeper(fresh, 600)
    family = family_of(fresh)
    begin = time.monotonic()
    fresh.stop(drain_seconds=1)
    assert time.monotonic() - begin < 10
    assert all_gone(family)
    caller.join(10)
    assert isinstance(caller.answer, grpc.StatusCode)


def test_stopping_ends_the_busy_worker_of_a_jvm_that_was_killed(fresh: TorchServe) -> None:
    Sleeper(fresh, 600)
    family, folder = family_of(fresh), fresh.log_path.parent
    os.kill(fresh.pid, signal.SIGKILL)
    wait_until(lambda: not fresh.is_running)
    fresh.stop()
    assert all_gone(family)
    assert not folder.exists()


def test_a_jvm_that_ends_while_it_is_waited_for_is_reported_at_once(fresh: TorchServe) -> None:
    def canary(_version: ModelVersion) -> None:
        os.kill(fresh.pid, signal.SIGKILL)
        raise ConnectionError

    begin = time.monotonic()
    with pytest.raises(ServerStartError, match="TorchServe has ended"):
        fresh.wait_until_ready(canary)
    assert time.monotonic() - begin < 10


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_exception_in_the_body_leaves_no_process_and_no_folder(echo: Path, error: type[BaseException]) -> None:
    seen: list[tuple[list[psutil.Process], Path]] = []

    def body() -> None:
        with TorchServe(TorchServeSettings(archives=(echo,))) as server:
            seen.append((family_of(server), server.log_path.parent))
            raise error

    with pytest.raises(error):
        body()
    ((family, folder),) = seen
    assert all_gone(family)
    assert not folder.exists()


def test_it_can_be_started_again_after_a_stop_and_stopped_twice(echo: Path) -> None:
    server = TorchServe(TorchServeSettings(archives=(echo,)))
    server.stop()
    server.start()
    first = server.pid
    server.stop(drain_seconds=0)
    server.stop()
    with server:
        assert server.is_running
        assert server.pid != first
        server.stop(drain_seconds=0)


def test_a_taken_port_makes_it_start_on_others(echo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        ports = free_ports()
        offers = [replace(ports, inference=taken.getsockname()[1]), free_ports()]
        monkeypatch.setattr(process, "free_ports", lambda *_: offers.pop(0))
        expected = f"127.0.0.1:{offers[1].inference}"
        server = TorchServe(TorchServeSettings(archives=(echo,)))
        try:
            server.start()
            assert server.inference_address == expected
        finally:
            server.stop(drain_seconds=0)


def test_nothing_remains_when_our_own_process_is_killed(echo: Path) -> None:
    program = f"""
import sys, time
from pathlib import Path
from pathlens.model_version import ModelVersion
from pathlens.torchserve import TorchServe, TorchServeSettings
server = TorchServe(TorchServeSettings(archives=(Path({str(echo)!r}),)))
server.start()
print(server.pid, server.log_path.parent, flush=True)
time.sleep(600)
"""
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as owner:
        try:
            assert owner.stdout is not None
            pid, folder = owner.stdout.readline().split()
            family = [psutil.Process(int(pid)), *psutil.Process(int(pid)).children(recursive=True)]
        finally:
            owner.kill()
    wait_until(lambda: all_gone(family) and not Path(folder).exists())


def test_a_start_and_a_restart_wait_for_each_model_as_long_as_the_settings_say(tmp_path: Path) -> None:
    archive = make_archive(tmp_path / "slow.mar", "slow", BROKEN.format(statement="import time; time.sleep(600)"))
    server = TorchServe(TorchServeSettings(archives=(archive,), load_timeout_seconds=2))
    with server:
        for _ in range(2):
            with pytest.raises(ServerStartError, match="is not ready after 2 s"):
                server.wait_until_ready(canary_of(server))
            server.end(drain_seconds=0)
            server.start()


@pytest.mark.parametrize(
    ("statement", "quoted"),
    [
        ("raise RuntimeError('weights of another model')", "RuntimeError: weights of another model"),
        ("raise ValueError('weights of another model')", "ValueError: weights of another model"),
        ("import no_such_library", "ModuleNotFoundError: No module named 'no_such_library'"),
        ("os.kill(os.getpid(), signal.SIGKILL)", "ended from outside"),
    ],
)
def test_a_model_that_cannot_be_loaded_is_reported_soon_and_with_its_reason(
    tmp_path: Path, statement: str, quoted: str
) -> None:
    archive = make_archive(tmp_path / "broken.mar", "broken", BROKEN.format(statement=statement))
    with TorchServe(TorchServeSettings(archives=(archive,))) as server:
        begin = time.monotonic()
        with pytest.raises(ServerStartError, match=r"The model broken 1\.0 cannot be loaded") as caught:
            server.wait_until_ready(canary_of(server), timeout=280)
        assert time.monotonic() - begin < STARTED_SECONDS
        assert quoted in caught.value.message
        assert caught.value.reason == "MODEL_LOAD_FAILED"
        family, folder = family_of(server), server.log_path.parent
        server.stop(drain_seconds=0)
    assert all_gone(family)
    assert not folder.exists()


def test_a_model_that_loads_for_too_long_is_reported_when_the_time_is_up(tmp_path: Path) -> None:
    archive = make_archive(tmp_path / "slow.mar", "slow", BROKEN.format(statement="import time; time.sleep(600)"))
    server = TorchServe(TorchServeSettings(archives=(archive,)))
    try:
        server.start()
        with pytest.raises(ServerStartError, match=r"not ready after 1 s; it has 0 of 1 workers ready"):
            server.wait_until_ready(canary_of(server), timeout=1)
    finally:
        server.stop(drain_seconds=0)


def test_an_archive_with_a_damaged_member_is_reported_with_javas_reason(tmp_path: Path) -> None:
    archive = make_archive(tmp_path / "bent.mar", "bent")
    content = archive.read_bytes()
    archive.write_bytes(content.replace(b"class Echo", b"class Ohce"))
    server = TorchServe(TorchServeSettings(archives=(archive,)))
    try:
        server.start()
        with pytest.raises(ServerStartError, match=r"(?s)bent 1.0 was refused by TorchServe.*invalid entry CRC"):
            server.wait_until_ready(canary_of(server))
    finally:
        server.stop(drain_seconds=0)


def test_a_missing_archive_is_refused_before_java_starts(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"There is no model archive .*absent.mar: make it with `pathlens pack`"):
        TorchServe(TorchServeSettings(archives=(tmp_path / "absent.mar",)))


def test_a_file_that_is_no_zip_is_refused_before_java_starts(tmp_path: Path) -> None:
    archive = tmp_path / "text.mar"
    archive.write_text("not an archive")
    with pytest.raises(BundleError, match=r"text.mar is not a plain zip file, or is damaged"):
        TorchServe(TorchServeSettings(archives=(archive,)))


@pytest.mark.parametrize(
    ("member", "content", "complaint"),
    [
        ("readme.txt", "hello", "holds no MAR-INF/MANIFEST.json with"),
        ("MAR-INF/MANIFEST.json", "{", "holds a MAR-INF/MANIFEST.json that is not JSON"),
        ("MAR-INF/MANIFEST.json", "[]", "holds no MAR-INF/MANIFEST.json with"),
        ("MAR-INF/MANIFEST.json", '{"model": {"handler": "h.py"}}', "with a model's modelName and handler"),
        ("MAR-INF/MANIFEST.json", '{"model": {"modelName": "../x", "handler": "h.py"}}', "has the model name '../x'"),
        ("MAR-INF/MANIFEST.json", '{"model": {"modelName": "x", "handler": 1}}', "is not a text"),
    ],
)
def test_an_archive_whose_manifest_names_no_model_is_refused_before_java_starts(
    tmp_path: Path, member: str, content: str, complaint: str
) -> None:
    path = tmp_path / "odd.mar"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(member, content)
    with pytest.raises(BundleError) as caught:
        TorchServe(TorchServeSettings(archives=(path,)))
    assert complaint in caught.value.message


def test_two_archives_with_one_model_name_are_refused(tmp_path: Path) -> None:
    archives = (make_archive(tmp_path / "a.mar", "twin"), make_archive(tmp_path / "b.mar", "twin"))
    with pytest.raises(ServerStartError, match="2 archives hold a model named 'twin'"):
        TorchServe(TorchServeSettings(archives=archives))


@pytest.mark.parametrize("setting", ["workers", "job_queue_size", "response_timeout_seconds", "heap_megabytes"])
def test_a_setting_out_of_range_is_refused_with_the_range(setting: str) -> None:
    with pytest.raises(ServerStartError, match=rf"{setting} is 0: choose a value from"):
        replace(TorchServeSettings(archives=(Path("x.mar"),)), **{setting: 0})  # type: ignore[arg-type]


def test_a_missing_java_home_is_refused_with_the_remedy(echo: Path, tmp_path: Path, temporary: Path) -> None:
    server = TorchServe(TorchServeSettings(archives=(echo,), java_home=tmp_path / "nowhere"))
    with pytest.raises(ServerStartError, match=r"nowhere.*leave java_home out to use the one that comes with"):
        server.start()
    assert list(temporary.iterdir()) == []


def test_a_missing_python_is_refused_with_the_remedy(echo: Path, tmp_path: Path, temporary: Path) -> None:
    server = TorchServe(TorchServeSettings(archives=(echo,), python=tmp_path / "nopython"))
    with pytest.raises(ServerStartError, match=r"nopython is not a program: set python to the interpreter"):
        server.start()
    assert list(temporary.iterdir()) == []


@pytest.mark.parametrize(
    ("script", "complaint"),
    [
        ("#!/bin/sh\necho 'no room for the heap' >&2\nexit 3\n", r"(?s)ended with status 3.*no room for the heap"),
        ("\x7fELF of another machine", r"java cannot be run \(Exec format error\): set java_home to a Java"),
    ],
)
def test_a_java_that_does_not_run_is_reported_and_leaves_no_folder(
    echo: Path, tmp_path: Path, temporary: Path, script: str, complaint: str
) -> None:
    java = tmp_path / "bin" / "java"
    java.parent.mkdir()
    java.write_text(script)
    java.chmod(0o755)
    with pytest.raises(ServerStartError, match=complaint):
        TorchServe(TorchServeSettings(archives=(echo,), java_home=tmp_path)).start()
    assert list(temporary.iterdir()) == []


def test_the_address_of_what_was_not_started_is_refused(echo: Path) -> None:
    server = TorchServe(TorchServeSettings(archives=(echo,)))
    with pytest.raises(ServerStartError, match=r"call start\(\) first"):
        _ = server.inference_address


def test_a_long_temporary_folder_is_left_for_a_short_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / ("long" * 20)))
    folder = InstanceFolder(tmp_path)
    try:
        assert len(str(folder.path)) < 60
    finally:
        folder.remove()


def test_torch_is_never_imported() -> None:
    program = "import sys, pathlens.torchserve; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
