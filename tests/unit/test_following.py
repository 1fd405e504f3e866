"""How a gateway follows a TorchServe of somebody else; the real one is in tests/service."""

import logging
import os
import signal
import socket
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from pathlens.client import Client
from pathlens.errors import NotFoundError, UnavailableError
from pathlens.gateway import GatewaySettings
from pathlens.model_version import ModelVersion
from pathlens.serving import GatewayService, follower
from pathlens.serving.loop_thread import LoopThread
from pathlens.torchserve import TorchServeSettings
from pathlens.torchserve.management import Management
from pathlens.wire.v1 import explanation_service_pb2 as messages
from pathlens.wire.v1 import explanation_service_pb2_grpc
from unit.gateway.fault_injector import FaultInjector
from unit.scripted_management import ScriptedManagement

SETTINGS = GatewaySettings(port=0, metrics_port=0, health_port=0, drain_seconds=2)


class Following:
    """A gateway, and all that it sees of TorchServe."""

    def __init__(self, management: ScriptedManagement, injector: FaultInjector) -> None:
        self.management = management
        self.injector = injector
        torchserve = TorchServeSettings(
            inference_port=int(injector.address.rpartition(":")[2]), management_port=management.port
        )
        self.service = GatewayService(torchserve, SETTINGS)

    def endpoint(self, what: str) -> str:
        return dict(self.service.endpoints)[what]

    def served(self) -> list[str]:
        """What callers are shown; nothing while they are told to come back."""
        with grpc.insecure_channel(self.endpoint("gRPC")) as channel:
            stub: Any = explanation_service_pb2_grpc.ExplanationServiceStub(channel)
            try:
                listed = stub.ListModels(messages.ListModelsRequest(), timeout=5).models
            except grpc.RpcError as error:
                if error.code() is not grpc.StatusCode.UNAVAILABLE:
                    raise
                return []
        return [str(ModelVersion(one.model.name, one.model.version)) for one in listed]

    def health(self, name: str) -> int:
        with grpc.insecure_channel(self.endpoint("health")) as channel:
            stub: Any = health_pb2_grpc.HealthStub(channel)
            return int(stub.Check(health_pb2.HealthCheckRequest(service=name), timeout=5).status)

    def is_ready(self) -> bool:
        return self.health("readiness") == health_pb2.HealthCheckResponse.SERVING


def until(condition: Callable[[], bool]) -> None:
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < 10
        time.sleep(0.02)


@pytest.fixture
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(follower, "_POLL_SECONDS", 0.02)
    monkeypatch.setattr(follower, "_VERSIONS_SECONDS", 0.05)


@pytest.fixture
def following(hurried: None) -> Iterator[Following]:
    loop, injector = LoopThread(), FaultInjector()

    async def enter() -> None:
        await injector.__aenter__()

    loop.run(enter())
    with ScriptedManagement() as management:
        management.models = {"digits": {"1.0": True}}
        made = Following(management, injector)
        try:
            yield made
        finally:
            made.service.stop(0)
            loop.run(injector.__aexit__())
            loop.close()


def test_a_version_is_shown_when_its_workers_have_loaded_it_and_it_has_answered(following: Following) -> None:
    with following.service:
        following.management.models["digits"]["2.0"] = False
        time.sleep(0.3)
        assert following.served() == ["digits 1.0"]
        following.management.models["digits"]["2.0"] = True
        until(lambda: following.served() == ["digits 2.0", "digits 1.0"])
        assert following.injector.canaries


def test_a_version_that_answers_nothing_keeps_no_other_one_away(following: Following) -> None:
    with following.service:
        following.injector.failing.add("broken")
        following.management.models = {"broken": {"1.0": True}, "digits": {"1.0": True}, "new": {"1.0": True}}
        until(lambda: following.served() == ["digits 1.0", "new 1.0"])
        assert following.is_ready()


def test_a_version_that_has_gone_is_used_no_more(following: Following) -> None:
    with following.service, Client(following.endpoint("gRPC"), model="digits", version="1.0", retries=None) as client:
        client.predict(b"image")
        following.management.models["digits"] = {"2.0": True}
        until(lambda: following.served() == ["digits 2.0"])
        with pytest.raises(NotFoundError):
            client.predict(b"image")
        with urllib.request.urlopen(following.endpoint("metrics")) as response:  # noqa: S310 - is ours
            text = response.read().decode()
        assert 'pathlens_model_info{model="digits",version="2.0"} 1.0' in text
        assert 'pathlens_model_info{model="digits",version="1.0"}' not in text


def test_without_any_model_the_gateway_is_alive_and_not_ready(following: Following) -> None:
    with following.service, Client(following.endpoint("gRPC"), retries=None) as client:
        assert following.is_ready()
        following.management.models = {}
        until(lambda: not following.is_ready())
        with pytest.raises(UnavailableError) as caught:
            client.predict(b"image")
        assert caught.value.reason == "TORCHSERVE_RESTARTING"
        assert caught.value.retry_after
        assert following.health("liveness") == health_pb2.HealthCheckResponse.SERVING
        following.management.models = {"digits": {"1.0": True}}
        until(following.is_ready)
        assert client.predict(b"image").predictions[0].label == "image"


def test_a_gateway_that_waits_is_alive_and_tells_callers_to_come_back(following: Following) -> None:
    following.management.models["digits"]["1.0"] = False
    starting = threading.Thread(target=following.service.start)
    starting.start()
    until(lambda: following.service._follower is not None)
    assert not following.is_ready()
    with Client(following.endpoint("gRPC"), retries=None) as client:
        for call in (client.list_models, lambda: client.predict(b"image")):
            with pytest.raises(UnavailableError) as caught:
                call()
            assert caught.value.reason == "MODEL_LOADING"
            assert caught.value.retry_after
    following.management.models["digits"]["1.0"] = True
    starting.join(10)
    assert following.is_ready()


def test_callers_are_not_told_to_wait_as_long_as_a_long_outage_was(following: Following) -> None:
    with following.service, Client(following.endpoint("gRPC"), retries=None) as client:
        following.management.models = {}
        until(lambda: not following.is_ready())
        # An hour passes.
        assert following.service._follower is not None
        following.service._follower._lost_at -= 3600
        following.management.models = {"digits": {"1.0": True}}
        until(following.is_ready)
        following.management.models = {}
        until(lambda: not following.is_ready())
        with pytest.raises(UnavailableError) as caught:
            client.predict(b"image")
        assert caught.value.retry_after is not None
        assert caught.value.retry_after <= 30


def test_what_a_failed_attempt_has_admitted_is_not_served(following: Following) -> None:
    following.injector.misnamed.add("misnamed")
    following.management.models = {"early": {"1.0": True}, "misnamed": {"1.0": True}}
    starting = threading.Thread(target=following.service.start, daemon=True)
    starting.start()
    until(lambda: following.service._follower is not None and following.served() == ["early 1.0"])
    following.injector.failing.add("early")
    following.management.models = {"digits": {"1.0": True}}
    starting.join(10)
    assert following.served() == ["digits 1.0"]
    assert following.is_ready()


def test_a_wrong_management_port_is_complained_of_once(following: Following, caplog: pytest.LogCaptureFixture) -> None:
    inference_port = int(following.injector.address.rpartition(":")[2])
    swapped = TorchServeSettings(inference_port=following.management.port, management_port=inference_port)
    with caplog.at_level(logging.INFO, "pathlens.serving.follower"):
        break_off_start(GatewayService(swapped, SETTINGS))
    (complaint,) = caplog.records
    assert complaint.levelno == logging.ERROR
    assert "UNIMPLEMENTED" in complaint.message
    assert "torchserve.management_port" in complaint.message


def test_long_waiting_is_logged_once(
    following: Following, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(follower, "_LONG_SECONDS", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        nobody = taken.getsockname()[1]
    settings = TorchServeSettings(inference_port=1, management_port=nobody)
    with caplog.at_level(logging.INFO, "pathlens.serving.follower"):
        break_off_start(GatewayService(settings, SETTINGS))
    (line,) = caplog.records
    assert line.levelno == logging.INFO
    assert f"127.0.0.1:{nobody} (torchserve.management_port)" in line.message


def break_off_start(service: GatewayService) -> None:
    """Let a gateway wait for a second."""
    threading.Timer(1, os.kill, (os.getpid(), signal.SIGINT)).start()
    with pytest.raises(KeyboardInterrupt):
        service.start()


def test_a_signal_breaks_off_the_waiting(following: Following) -> None:
    following.management.models = {}
    threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT)).start()
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        following.service.start()
    assert time.monotonic() - began < 5
    with pytest.raises(RuntimeError):
        _ = following.service.endpoints


def test_all_pages_of_models_are_read() -> None:
    names = frozenset(f"model{number}" for number in range(200))
    with ScriptedManagement() as scripted:
        scripted.models = {name: {"1.0": True, "2.0": False} for name in names}
        with Management(f"127.0.0.1:{scripted.port}") as management:
            assert management.names(5) == names
            some = frozenset(("model1", "model2"))
            assert management.versions(some, 5) == {
                ModelVersion(name, version): version == "1.0" for name in some for version in ("1.0", "2.0")
            }
