import asyncio
import os
import re
import signal
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc.aio
import pytest

from pathlens.gateway import Gateway, GatewaySettings
from pathlens.gateway.server_factory import ServerFactory
from pathlens.serving import Service
from pathlens.torchserve import ArchivedModel, StoredArchive, TorchServeSettings
from pathlens.torchserve.stored_archive import Stamp

SETTINGS = GatewaySettings(port=0, metrics_port=0, drain_seconds=3.0)


class IdleTorchServe:
    """Stands in for the process and tells how it was stopped."""

    inference_address = "127.0.0.1:1"
    models = ("digits",)
    served = (
        StoredArchive(ArchivedModel("digits", "1.0", Path("/digits.mar")), Path("/1.mar"), "0" * 64, Stamp(1, 1, 1)),
    )
    is_running = True

    def __init__(self, _settings: TorchServeSettings) -> None:
        self.stopped: list[float] = []

    def start(self) -> None: ...

    def wait_until_ready(self, *_: object, **__: object) -> None: ...

    def stop(self, drain_seconds: float) -> None:
        self.stopped.append(drain_seconds)


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> Iterator[Service]:
    monkeypatch.setattr("pathlens.serving.supervised.TorchServe", IdleTorchServe)
    made = Service(TorchServeSettings(archives=(Path("digits.mar"),)), SETTINGS)
    # Other tests may keep a service of their own running meanwhile.
    before = servers()
    yield made
    made.stop(0)
    assert servers() == before


def servers() -> set[int | None]:
    """Return the threads of gateways and their metrics endpoints."""
    return {thread.ident for thread in threading.enumerate() if re.search("gateway|serve_forever", thread.name)}


def stops(service: Service) -> list[float]:
    torchserve: Any = service.torchserve
    return torchserve.stopped  # type: ignore[no-any-return]


def interrupt_after(seconds: float) -> None:
    threading.Timer(seconds, os.kill, (os.getpid(), signal.SIGINT)).start()


def replace_stop(monkeypatch: pytest.MonkeyPatch, seconds: float, error: Exception | None = None) -> None:
    stop = Gateway.stop

    async def slow(gateway: Gateway, drain_seconds: float | None = None) -> None:
        try:
            await asyncio.sleep(seconds)
        finally:
            await stop(gateway, drain_seconds)
        if error:
            raise error

    monkeypatch.setattr(Gateway, "stop", slow)


def test_a_service_starts_and_stops_and_starts_again(service: Service) -> None:
    for _ in range(2):
        with service:
            assert service.address
            assert service.metrics_address
        with pytest.raises(RuntimeError):
            _ = service.address


def test_a_service_that_never_starts_makes_no_event_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pathlens.serving.supervised.TorchServe", IdleTorchServe)
    monkeypatch.setattr(asyncio, "new_event_loop", lambda: pytest.fail("an event loop was made"))
    Service(TorchServeSettings(archives=(Path("digits.mar"),)), SETTINGS).stop()


def test_torchserve_gets_what_the_gateway_leaves_of_the_time(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    service.start()
    replace_stop(monkeypatch, seconds=1.0)
    service.stop()
    assert 1.0 <= stops(service)[0] <= 2.05


def test_torchserve_always_gets_a_second(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    service.start()
    replace_stop(monkeypatch, seconds=0.3)
    service.stop(0.2)
    assert stops(service) == [1.0]


def test_a_stop_without_time_ends_torchserve_at_once(service: Service) -> None:
    service.start()
    service.stop(0)
    assert stops(service) == [0]


def test_torchserve_is_stopped_when_the_gateway_fails_to(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    service.start()
    replace_stop(monkeypatch, seconds=0, error=ValueError("broken"))
    with pytest.raises(ValueError, match="broken"):
        service.stop()
    assert len(stops(service)) == 1


def test_torchserve_is_stopped_when_the_stop_is_interrupted(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    service.start()
    replace_stop(monkeypatch, seconds=20)
    interrupt_after(0.2)
    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        service.stop()
    assert time.monotonic() - started < 5.0
    # Whoever interrupts the drain wants no other one.
    assert stops(service) == [0]


@pytest.mark.parametrize("seconds", [0.0, 20.0])
def test_an_interrupted_start_leaves_no_server(
    service: Service, monkeypatch: pytest.MonkeyPatch, seconds: float
) -> None:
    start, bind = Gateway.start, ServerFactory.bind
    gateways: list[Gateway] = []
    ports: list[int] = []

    def remembered(factory: ServerFactory, server: grpc.aio.Server, port: int) -> int:
        ports.append(bind(factory, server, port))
        return ports[0]

    async def slow(gateway: Gateway) -> None:
        gateways.append(gateway)
        if seconds:
            # Inside of the real start, where it holds its ports.
            monkeypatch.setattr("pathlens.gateway.models.ModelDirectory.refresh", lambda _: asyncio.sleep(seconds))
        await start(gateway)
        if not seconds:
            # The gateway runs, but nobody has been told.
            await asyncio.sleep(20)

    monkeypatch.setattr(Gateway, "start", slow)
    monkeypatch.setattr(ServerFactory, "bind", remembered)
    before = servers()
    interrupt_after(0.5)
    with pytest.raises(KeyboardInterrupt):
        service.start()
    (gateway,) = gateways
    with pytest.raises(RuntimeError):
        _ = gateway.address
    assert stops(service) == [0]
    # The thread that serves the metrics ends with the gateway, and the port of the server is free.
    assert servers() == before
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", ports[0]))


def test_every_worker_of_a_service_has_three_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[GatewaySettings] = []

    def gateway(settings: GatewaySettings, *_: object) -> Any:
        made.append(settings)
        raise RuntimeError("seen enough")

    monkeypatch.setattr("pathlens.serving.supervised.TorchServe", IdleTorchServe)
    monkeypatch.setattr("pathlens.serving.service.Gateway", gateway)
    settings = TorchServeSettings(archives=(Path("digits.mar"),), workers=3)
    with pytest.raises(RuntimeError, match="seen enough"):
        Service(settings, SETTINGS).start()
    assert [one.max_in_flight for one in made] == [9]
