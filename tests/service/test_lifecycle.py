"""A real service whose model store changes while it is asked: what callers see, and what is loaded in the end."""

import hashlib
import itertools
import json
import os
import re
import shutil
import signal
import tempfile
import threading
import time
import urllib.request
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import psutil
import pytest
import torch
from grpc_health.v1 import health_pb2, health_pb2_grpc

from pathlens.bundle.archive import pack
from pathlens.bundle.store import save_bundle
from pathlens.classifier.captured import CapturedClassifier
from pathlens.client import Client
from pathlens.errors import NotFoundError, PathlensError
from pathlens.explanation import ExplanationResult
from pathlens.gateway import GatewaySettings
from pathlens.serving import Service
from pathlens.torchserve import TorchServeSettings
from pathlens.wire.internal.v1.torchserve_pb2 import DescribeModelRequest, ManagementResponse
from tiny_bundle import tensor, tiny_bundle

SERVING = health_pb2.HealthCheckResponse.SERVING
PATIENCE_SECONDS = 120  # on a busy machine; a version loads in about three on an idle one
IMAGES = [tensor(seed) for seed in range(4)]
NUMBERS = itertools.count(1)
PAUSE_SECONDS = 0.02  # between two calls of a caller, so that there is time left for a model to load
# Handlers of models that never come to be asked anything.
HANDLER = """
import time
class Handler:
    def initialize(self, context):
        {statement}
    def handle(self, rows, context):
        raise AssertionError("a model that has not loaded was asked")
"""
SLOW = HANDLER.format(statement="time.sleep(600)")
RAISING = HANDLER.format(statement="raise ValueError('weights of another model')")


@dataclass(frozen=True)
class Release:
    """A version of the tiny model, packed, and what it answers."""

    version: str
    archive: Path
    probabilities: list[dict[int, float]]

    def answered(self, result: ExplanationResult, image: int) -> None:
        """Check an answer."""
        assert result.model.version == self.version
        found = {one.class_index: one.probability for one in result.predictions}
        assert found == pytest.approx(self.probabilities[image], abs=1e-5)


class Shop:
    """A service on a model store, and what the archive `tiny.mar` of the store holds."""

    def __init__(self, folder: Path, *, pinned: bool = False) -> None:
        self._folder = folder
        self.store = folder / "store"
        self.path = self.store / "tiny.mar"
        self.current = self.release()
        put(self.current, self.path)
        sha256 = hashlib.sha256(self.path.read_bytes()).hexdigest()
        settings = TorchServeSettings(
            model_store=self.store,
            archive_sha256={"tiny.mar": sha256} if pinned else {},
            poll_seconds=0.2,
            heap_megabytes=768,
            max_restarts=100,
        )
        self.service = Service(settings, GatewaySettings(port=0, metrics_port=0))

    def release(self, *, with_nan: bool = False) -> Release:
        """Make a version, newer than those before, and of other weights."""
        number = next(NUMBERS)
        bundle = tiny_bundle()
        factor = float("nan") if with_nan else 0.5 + number / 4
        weights = {name: weight * factor for name, weight in bundle.classifier.weights.items()}
        changed = CapturedClassifier(bundle.classifier.program, weights)
        with torch.no_grad():
            logits = changed(torch.from_numpy(np.stack(IMAGES)))
        save_bundle(replace(bundle, classifier=changed), self._folder / f"bundle-{number}")
        archive = pack(self._folder / f"bundle-{number}", self._folder / f"packed-{number}", f"1.{number}")
        return Release(f"1.{number}", archive, [dict(enumerate(row)) for row in logits.softmax(1).tolist()])

    def switch(self, new: Release) -> None:
        """Replace the archive and wait until the new version serves alone."""
        put(new, self.path)
        self.current = new
        wait_until(lambda: listed(self.service)[:1] == [new.version])
        wait_until(lambda: loaded(self.service) == set(listed(self.service)) == informed(self.service))

    def add(self, new: Release) -> Path:
        """Put an archive beside the other one and wait until both serve."""
        put(new, self.store / "tiny-beside.mar")
        wait_until(lambda: listed(self.service) == [new.version, self.current.version])
        return self.store / "tiny-beside.mar"


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    made = Shop(tmp_path_factory.mktemp("shop"))
    with made.service:
        yield made


@pytest.fixture
def service(shop: Shop) -> Service:
    """The service, ready, whatever the test before has done to it."""
    wait_until(lambda: is_ready(shop.service))
    # Tests count workers: none may be left of what has just been unloaded.
    wait_until(lambda: len(workers(shop.service)) == len(loaded(shop.service)) == len(listed(shop.service)))
    return shop.service


@pytest.fixture(scope="module")
def pinned(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    """A service that serves one pinned archive."""
    made = Shop(tmp_path_factory.mktemp("pinned"), pinned=True)
    with made.service:
        yield made


def put(what: Release | bytes, target: Path) -> None:
    """Put an archive there as `pathlens pack` does: whole, and in place of what was there."""
    target.parent.mkdir(exist_ok=True)
    scratch = target.with_suffix(".new")
    if isinstance(what, Release):
        shutil.copy(what.archive, scratch)
    else:
        scratch.write_bytes(what)
    scratch.rename(target)


def wait_until(condition: Callable[[], bool]) -> None:
    started = time.monotonic()
    while not condition():
        assert time.monotonic() - started < PATIENCE_SECONDS
        time.sleep(0.05)


def ask(service: Service, image: int = 0, version: str = "", model: str = "tiny") -> ExplanationResult:
    with Client(service.address, model, version, timeout=PATIENCE_SECONDS, retries=None) as client:
        return client.predict(IMAGES[image])


def listed(service: Service, model: str = "tiny") -> list[str]:
    with Client(service.address, retries=None) as client:
        return [one.model.version for one in client.list_models() if one.model.name == model]


def loaded(service: Service, model: str = "tiny") -> set[str]:
    """Ask TorchServe itself which versions it has."""
    with grpc.insecure_channel(service.torchserve.management_address) as channel:
        describe = channel.unary_unary(
            "/org.pytorch.serve.grpc.management.ManagementAPIsService/DescribeModel",
            request_serializer=DescribeModelRequest.SerializeToString,
            response_deserializer=ManagementResponse.FromString,
        )
        reply = describe(DescribeModelRequest(model_name=model, model_version="all"), timeout=10)
    return {one["modelVersion"] for one in json.loads(reply.msg)}


def metrics(service: Service) -> str:
    with urllib.request.urlopen(f"http://{service.metrics_address}/metrics") as response:
        return str(response.read().decode())


def changes(service: Service, result: str) -> int:
    (value,) = re.findall(rf'^pathlens_model_changes_total{{result="{result}"}} (\S+)$', metrics(service), re.MULTILINE)
    return int(float(value))


def informed(service: Service, model: str = "tiny") -> set[str]:
    return set(re.findall(rf'^pathlens_model_info{{model="{model}",version="([^"]+)"}} 1.0$', metrics(service), re.M))


def is_ready(service: Service) -> bool:
    with grpc.insecure_channel(service.address) as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        return bool(stub.Check(health_pb2.HealthCheckRequest(service="readiness"), timeout=5).status == SERVING)


class Load:
    """Callers who ask without a pause and without retries, until `finish`."""

    def __init__(self, service: Service, *releases: Release) -> None:
        self.seen: list[list[str]] = []
        self.errors: list[BaseException] = []
        self._releases = {one.version: one for one in releases}
        self._ended = threading.Event()
        self._client = Client(service.address, "tiny", timeout=PATIENCE_SECONDS, retries=None)
        self._threads = [
            threading.Thread(target=self._run, args=(call,)) for call in (self._one, self._one, self._batch)
        ]
        self._threads.append(threading.Thread(target=self._run, args=(self._stream,)))
        for thread in self._threads:
            thread.start()

    def finish(self) -> list[list[str]]:
        """Return the versions that each caller has heard, in order."""
        self._ended.set()
        for thread in self._threads:
            thread.join(PATIENCE_SECONDS)
            assert not thread.is_alive()
        self._client.close()
        if self.errors:
            raise self.errors[0]
        return self.seen

    def _run(self, call: Callable[[list[str]], None]) -> None:
        heard: list[str] = []
        self.seen.append(heard)
        try:
            while not self._ended.wait(PAUSE_SECONDS):
                call(heard)
        except BaseException as error:
            self.errors.append(error)

    def _one(self, heard: list[str]) -> None:
        image = len(heard) % len(IMAGES)
        heard.append(self._checked(self._client.predict(IMAGES[image]), image))

    def _batch(self, heard: list[str]) -> None:
        # More than one chunk, all by one version.
        results = self._client.batch_explain([IMAGES[number % 4] for number in range(20)])
        (version,) = {self._checked(result, number % 4) for number, result in enumerate(results)}
        heard.append(version)

    def _stream(self, heard: list[str]) -> None:
        images = itertools.takewhile(lambda _: not self._ended.wait(PAUSE_SECONDS), itertools.cycle(IMAGES))
        for position, result in self._client.stream_explain(images):
            heard.append(self._checked(result, position % 4))

    def _checked(self, result: ExplanationResult | PathlensError, image: int) -> str:
        if isinstance(result, PathlensError):
            raise result
        self._releases[result.model.version].answered(result, image)
        return result.model.version


def test_a_new_version_takes_over_without_a_failed_call(service: Service, shop: Shop) -> None:
    old, new = shop.current, shop.release()
    load = Load(service, old, new)
    time.sleep(1)
    shop.switch(new)
    time.sleep(1)
    for heard in load.finish():
        # Both versions have answered each caller.
        assert {old.version, new.version} == set(heard)
    assert loaded(service) == {new.version}
    assert informed(service) == {new.version}
    with pytest.raises(NotFoundError):
        ask(service, version=old.version)


def test_versions_side_by_side_are_named_by_their_callers(service: Service, shop: Shop) -> None:
    old, new = shop.current, shop.release()
    beside = shop.add(new)
    old.answered(ask(service, 1, old.version), 1)
    new.answered(ask(service, 1, new.version), 1)
    new.answered(ask(service, 1), 1)
    with Client(service.address, "tiny", old.version) as client:
        assert client.get_model().model.version == old.version
    beside.unlink()
    wait_until(lambda: loaded(service) == {old.version})
    old.answered(ask(service, 1), 1)


def with_handler(release: Release, handler: str) -> bytes:
    """Put a handler into an archive that goes before the one in it."""
    content = BytesIO()
    with zipfile.ZipFile(release.archive) as source, zipfile.ZipFile(content, "w") as changed:
        for name in source.namelist():
            changed.writestr(name, source.read(name).replace(b"pathlens_handler.py", b"other_handler.py"))
        changed.writestr("other_handler.py", handler)
    return content.getvalue()


FAULTS: dict[str, tuple[Callable[[Shop], Release | bytes], str]] = {
    "no archive": (lambda _: b"half a file", "is not a plain zip file"),
    "handler": (lambda shop: with_handler(shop.release(), RAISING), "weights of another model"),
    "weights": (lambda shop: shop.release(with_nan=True), "a prediction failed"),
    "same version": (lambda shop: with_handler(shop.current, RAISING), "pathlens pack --version"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_broken_archive_is_refused_while_the_former_one_serves_on(
    service: Service, shop: Shop, caplog: pytest.LogCaptureFixture, fault: str
) -> None:
    broken, words = FAULTS[fault]
    refused, family = changes(service, "refused"), workers(service)
    put(broken(shop), shop.path)
    ready: set[bool] = set()

    def is_refused() -> bool:
        ready.add(is_ready(service))
        shop.current.answered(ask(service, 2), 2)
        return changes(service, "refused") > refused

    wait_until(is_refused)
    (line,) = [record.getMessage() for record in caplog.records if "is refused" in record.getMessage()]
    assert str(shop.path) in line
    assert words in line
    assert ready == {True}
    assert listed(service) == [shop.current.version]
    assert loaded(service) == {shop.current.version}
    wait_until(lambda: workers(service) == family)
    # Not tried again, until it is another one.
    time.sleep(1)
    assert changes(service, "refused") == refused + 1


def workers(service: Service) -> set[int]:
    family = psutil.Process(service.torchserve.pid).children(recursive=True)
    return {process.pid for process in family if is_worker(process)}


def is_worker(process: psutil.Process) -> bool:
    try:
        return "model_service_worker.py" in " ".join(process.cmdline())
    except psutil.NoSuchProcess:
        # It has ended since; a zombie is one of these, too.
        return False


def test_a_refused_archive_is_followed_by_a_good_one(service: Service, shop: Shop) -> None:
    shop.switch(shop.release())
    shop.current.answered(ask(service), 0)


def test_a_killed_jvm_comes_back_with_what_was_served_even_if_the_archive_is_broken_meanwhile(
    service: Service, shop: Shop
) -> None:
    old, new = shop.current, shop.release()
    beside = shop.add(new)
    refused = changes(service, "refused")
    put(b"half a file", beside)
    wait_until(lambda: changes(service, "refused") > refused)
    kill(service)
    assert loaded(service) == {old.version, new.version}
    old.answered(ask(service, 3, old.version), 3)
    new.answered(ask(service, 3), 3)
    beside.unlink()
    wait_until(lambda: listed(service) == [old.version])


def kill(service: Service) -> None:
    """Kill the JVM and wait until the next one serves."""
    os.kill(service.torchserve.pid, signal.SIGKILL)
    wait_until(lambda: not is_ready(service))
    wait_until(lambda: is_ready(service))


def test_a_restart_forgets_what_was_half_loaded_and_a_load_that_ends_two_jvms_is_refused(
    service: Service, shop: Shop, caplog: pytest.LogCaptureFixture
) -> None:
    before = workers(service)
    put(with_handler(shop.release(), SLOW), shop.path)
    wait_until(lambda: len(workers(service)) > len(before))
    kill(service)
    shop.current.answered(ask(service), 0)
    wait_until(lambda: len(workers(service)) > len(before))
    assert listed(service) == [shop.current.version]
    kill(service)
    wait_until(lambda: "2 times while tiny" in caplog.text)
    assert loaded(service) == {shop.current.version}
    shop.current.answered(ask(service), 0)


def test_an_emptied_store_takes_nothing_down(service: Service, shop: Shop, caplog: pytest.LogCaptureFixture) -> None:
    new = shop.release()
    shop.add(new)
    for archive in shop.store.glob("*.mar"):
        archive.unlink()
    wait_until(lambda: loaded(service) == {new.version})
    wait_until(lambda: f"No archive of tiny {new.version} is left" in caplog.text)
    new.answered(ask(service), 0)
    # The next one takes its place as if the store had never been empty.
    shop.switch(shop.release())
    assert loaded(service) == {shop.current.version}


def test_a_pinned_archive_that_was_changed_is_refused(pinned: Shop, caplog: pytest.LogCaptureFixture) -> None:
    put(pinned.release(), pinned.path)
    wait_until(lambda: changes(pinned.service, "refused") == 1)
    assert "it is not the archive that was pinned" in caplog.text
    pinned.current.answered(ask(pinned.service), 0)


def test_where_there_are_pins_an_archive_that_none_names_is_refused(
    pinned: Shop, caplog: pytest.LogCaptureFixture
) -> None:
    refused = changes(pinned.service, "refused")
    put(pinned.release(), pinned.store / "tiny-beside.mar")
    wait_until(lambda: changes(pinned.service, "refused") == refused + 1)
    assert "[ARCHIVE_NOT_PINNED]" in caplog.text
    pinned.current.answered(ask(pinned.service), 0)


def test_a_stop_breaks_off_a_load_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # A short path: the workers' sockets lie below it.
    with tempfile.TemporaryDirectory(prefix="lc") as temporary:
        monkeypatch.setattr(tempfile, "tempdir", temporary)
        shop = Shop(tmp_path)
        with shop.service:
            put(with_handler(shop.release(), SLOW), shop.store / "tiny-beside.mar")
            wait_until(lambda: len(workers(shop.service)) == 2)
            family = psutil.Process(shop.service.torchserve.pid).children(recursive=True)
            began = time.monotonic()
            shop.service.stop()
            assert time.monotonic() - began < 10
        assert not any(process.is_running() and process.status() != psutil.STATUS_ZOMBIE for process in family)
        assert list(Path(temporary).iterdir()) == []
