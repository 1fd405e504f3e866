"""A real service whose JVM and workers are killed: what callers and probes see, and that it comes back by itself."""

import json
import os
import re
import signal
import threading
import time
import urllib.request
import zipfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import psutil
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from pathlens.bundle.archive import HANDLER, pack
from pathlens.bundle.store import save_bundle
from pathlens.client import Client, RetryPolicy
from pathlens.errors import PathlensError, UnavailableError
from pathlens.gateway import GatewaySettings
from pathlens.serving import Service
from pathlens.torchserve import TorchServeSettings
from reliability.served_process import ServedProcess
from tiny_bundle import tensor, tiny_bundle

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
READINESS = ("readiness", "", "pathlens.v1.ExplanationService")
RECOVERY_SECONDS = 30  # on a busy machine; about four on an idle one
PAUSE_SECONDS = 0.05


# A worker that finds this file removes it, and answers no image from then on, as after a sticky error of CUDA.
BREAKABLE = """
_encode_well, _broken = _encode_answer, []


def _encode_answer(answer, explaining):
    if (fault := Path({fault!r})).exists():
        fault.unlink()
        _broken.append(True)
    if _broken:
        return worker_pb2.WorkerReply(status=status_from_error(RuntimeError("CUDA error: device-side assert")))
    return _encode_well(answer, explaining)
"""


@pytest.fixture(scope="module")
def fault(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file that breaks the worker."""
    return tmp_path_factory.mktemp("faults") / "sticky"


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory, fault: Path) -> Path:
    folder = tmp_path_factory.mktemp("supervised")
    save_bundle(tiny_bundle(), folder / "bundle")
    packed = pack(folder / "bundle", folder / "packed")
    breakable = folder / packed.name
    with zipfile.ZipFile(packed) as source, zipfile.ZipFile(breakable, "w") as target:
        for entry in source.infolist():
            content = source.read(entry)
            if entry.filename == HANDLER:
                content += BREAKABLE.format(fault=str(fault)).encode()
            # Under its own name: a worker finds the installed handler first.
            name = entry.filename.replace(HANDLER, "breakable_handler.py")
            target.writestr(name, content.replace(HANDLER.encode(), b"breakable_handler.py"))
    return breakable


@pytest.fixture(scope="module")
def service(archive: Path) -> Iterator[Service]:
    settings = TorchServeSettings(archives=(archive,), deaf_seconds=1, heap_megabytes=768)
    with Service(settings, GatewaySettings(port=0, metrics_port=0)) as running:
        yield running


@pytest.fixture
def well(service: Service) -> Service:
    """The service, ready, whatever the test before has done to it."""
    wait_until(lambda: status(service, "readiness") == SERVING)
    return service


def status(service: Service, name: str) -> int:
    with grpc.insecure_channel(service.address) as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        return int(stub.Check(health_pb2.HealthCheckRequest(service=name), timeout=5).status)


def wait_until(condition: Callable[[], bool], seconds: float = RECOVERY_SECONDS) -> None:
    started = time.monotonic()
    while not condition():
        assert time.monotonic() - started < seconds
        time.sleep(0.02)


def restarts(service: Service, reason: str) -> float:
    with urllib.request.urlopen(f"http://{service.metrics_address}/metrics") as response:
        text = response.read().decode()
    (value,) = re.findall(rf'^pathlens_torchserve_restarts_total{{reason="{reason}"}} (\S+)$', text, re.MULTILINE)
    return float(value)


def worker(service: Service) -> psutil.Process:
    (found,) = [
        process
        for process in psutil.Process(service.torchserve.pid).children(recursive=True)
        if "model_service_worker.py" in " ".join(process.cmdline())
    ]
    return found


class Trickle(threading.Thread):
    """Asks for predictions without retries, one after the other, from its start to `finish`."""

    def __init__(self, service: Service) -> None:
        super().__init__(daemon=True)
        self.outcomes: list[list[float] | PathlensError] = []
        self.slowest = 0.0
        self._ended = threading.Event()
        self._client = Client(service.address, timeout=RECOVERY_SECONDS, retries=None)
        self._images = [tensor(seed) for seed in range(4)]
        self._expected = [self._probabilities(image) for image in self._images]
        self.start()

    def run(self) -> None:
        while not self._ended.wait(PAUSE_SECONDS):
            number = len(self.outcomes) % len(self._images)
            began = time.monotonic()
            try:
                probabilities = self._probabilities(self._images[number])
                assert np.allclose(probabilities, self._expected[number], atol=1e-6)
                self.outcomes.append(probabilities)
            except PathlensError as error:
                self.outcomes.append(error)
            self.slowest = max(self.slowest, time.monotonic() - began)

    def finish(self) -> list[list[float] | PathlensError]:
        self._ended.set()
        self.join(RECOVERY_SECONDS)
        assert not self.is_alive()
        self._client.close()
        return self.outcomes

    def _probabilities(self, image: Any) -> list[float]:
        return [one.probability for one in self._client.predict(image).predictions]


class HealthWatch:
    """The statuses that a `Watch` of the health service has sent."""

    def __init__(self, service: Service, name: str) -> None:
        self.seen: list[int] = []
        self._channel = grpc.insecure_channel(service.address)
        stub: Any = health_pb2_grpc.HealthStub(self._channel)
        self._call = stub.Watch(health_pb2.HealthCheckRequest(service=name))
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        try:
            for response in self._call:
                self.seen.append(int(response.status))
        except grpc.RpcError:
            return

    def close(self) -> None:
        self._channel.close()


def refusals(outcomes: list[list[float] | PathlensError]) -> list[PathlensError]:
    return [one for one in outcomes if isinstance(one, PathlensError)]


def check_outcomes(outcomes: list[list[float] | PathlensError]) -> None:
    """All are correct answers, or UNAVAILABLE with a time to try again after, and the last ones are answers."""
    for refusal in refusals(outcomes):
        assert isinstance(refusal, UnavailableError), refusal
        assert refusal.retry_after is not None, refusal
    assert not refusals(outcomes[-3:])


def test_a_killed_jvm_is_replaced_behind_the_same_port(well: Service) -> None:
    address, pid, before = well.address, well.torchserve.pid, restarts(well, "ended")
    watches = {name: HealthWatch(well, name) for name in READINESS}
    liveness = HealthWatch(well, "liveness")
    trickle = Trickle(well)
    time.sleep(0.5)
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: status(well, "readiness") == NOT_SERVING)
    wait_until(lambda: status(well, "readiness") == SERVING)
    time.sleep(0.5)
    outcomes = trickle.finish()
    check_outcomes(outcomes)
    reasons = {refusal.reason for refusal in refusals(outcomes)}
    assert "TORCHSERVE_RESTARTING" in reasons
    assert reasons <= {"TORCHSERVE_RESTARTING", "WORKER_RESTARTING"}
    # While it is restarted, calls are refused and do not wait.
    assert trickle.slowest < 5
    for watch in watches.values():
        assert watch.seen == [SERVING, NOT_SERVING, SERVING]
        watch.close()
    assert liveness.seen == [SERVING]
    liveness.close()
    assert well.address == address
    assert well.torchserve.pid != pid
    assert restarts(well, "ended") == before + 1


def test_a_killed_worker_is_replaced_without_a_restart(well: Service) -> None:
    address, pid = well.address, well.torchserve.pid
    trickle = Trickle(well)
    time.sleep(0.5)
    killed = worker(well)
    killed.kill()
    count = len(trickle.outcomes)
    # Calls that TorchServe has queued are answered by the next worker.
    wait_until(lambda: any(not isinstance(one, PathlensError) for one in trickle.outcomes[count + 3 :]))
    time.sleep(0.5)
    check_outcomes(trickle.finish())
    assert worker(well).pid != killed.pid
    assert status(well, "readiness") == SERVING
    assert well.address == address
    assert well.torchserve.pid == pid


def test_a_deaf_jvm_is_replaced(well: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pathlens.gateway.watch._PERIOD_SECONDS", 0.2)
    monkeypatch.setattr("pathlens.gateway.watch._PATIENCE_SECONDS", 1.0)
    monkeypatch.setattr("pathlens.gateway.watch._PING_SECONDS", 0.5)
    pid, before = well.torchserve.pid, restarts(well, "deaf")
    trickle = Trickle(well)
    time.sleep(0.5)
    os.kill(pid, signal.SIGSTOP)
    wait_until(lambda: status(well, "readiness") == NOT_SERVING)
    wait_until(lambda: status(well, "readiness") == SERVING)
    time.sleep(0.5)
    check_outcomes(trickle.finish())
    assert not psutil.pid_exists(pid)
    assert restarts(well, "deaf") == before + 1


def test_a_worker_that_answers_and_predicts_nothing_is_replaced(
    well: Service, fault: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pathlens.gateway.watch._PERIOD_SECONDS", 0.2)
    broken, before = worker(well).pid, restarts(well, "deaf")
    fault.touch()
    wait_until(lambda: status(well, "readiness") == NOT_SERVING)
    with Client(well.address, retries=None) as client:
        # Its description still comes from its memory.
        assert client.list_models()
    wait_until(lambda: status(well, "readiness") == SERVING)
    assert worker(well).pid != broken
    assert restarts(well, "deaf") == before + 1
    with Client(well.address, retries=None) as client:
        assert client.predict(tensor()).predictions


@pytest.fixture
def serve(archive: Path, tmp_path: Path) -> Iterator[Callable[..., ServedProcess]]:
    with ExitStack() as made:
        yield lambda **settings: made.enter_context(ServedProcess(archive, tmp_path, settings))


def jvm(serving: ServedProcess) -> psutil.Process:
    found = serving.jvm()
    assert found is not None
    return found


def test_a_second_signal_ends_everything_at_once(serve: Callable[..., ServedProcess]) -> None:
    serving = serve(GATEWAY__DRAIN_SECONDS=60)
    with Client(serving.address, timeout=60, retries=None) as client:
        client.predict(tensor())
        # An answer that never comes keeps the drain going.
        jvm(serving).suspend()
        asking = threading.Thread(target=expect_unavailable, args=(client,))
        asking.start()
        time.sleep(0.5)
        serving.terminate()
        time.sleep(1.0)
        assert serving.status() is None
        serving.terminate()
        assert serving.status(5) == 128 + signal.SIGTERM
        asking.join(10)
        assert not asking.is_alive()
    wait_until(lambda: not serving.leftovers(), seconds=2)


def test_a_signal_breaks_off_a_restart(serve: Callable[..., ServedProcess]) -> None:
    serving = serve()
    killed = jvm(serving)
    killed.kill()
    wait_until(lambda: serving.jvm() not in (None, killed))
    # By itself, this one would never listen.
    jvm(serving).suspend()
    serving.terminate()
    assert serving.status(20) == 0
    wait_until(lambda: not serving.leftovers(), seconds=2)


def test_a_jvm_that_ends_again_and_again_ends_the_service(serve: Callable[..., ServedProcess]) -> None:
    serving = serve(TORCHSERVE__MAX_RESTARTS=1)
    # The attempts of the default are over before a busy machine has restarted anything.
    with Client(serving.address, timeout=RECOVERY_SECONDS, retries=RetryPolicy(attempts=20)) as client:
        jvm(serving).kill()
        # Repeated until the restart is done.
        assert client.predict(tensor()).predictions
    jvm(serving).kill()
    assert serving.status(10) == 1
    records = [json.loads(line) for line in serving.log.read_text().splitlines()]
    critical = [record for record in records if record["level"] == "critical"]
    assert [record["logger"] for record in critical] == ["pathlens.supervision", "pathlens.cli.running"]
    assert critical[1]["reason"] == "TORCHSERVE_DIED"
    wait_until(lambda: not serving.leftovers(), seconds=2)


def expect_unavailable(client: Client) -> None:
    with pytest.raises(UnavailableError):
        client.predict(tensor())
