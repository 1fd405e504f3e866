"""In which order a service stops, and what time each part of it has; real services are in tests/service."""

import asyncio
import time
from pathlib import Path
from typing import Any, cast

import pytest

from pathlens.gateway import GatewaySettings
from pathlens.serving import Service
from pathlens.serving.loop_thread import LoopThread
from pathlens.torchserve import TorchServeSettings
from unit.torchserve.test_served_models import archive

DRAIN_SECONDS = 0.4


class Parts:
    """Stands in for gateway, supervisor and TorchServe: each takes its time, and all that it is given."""

    def __init__(self, supervisor_seconds: float) -> None:
        self.events: list[str] = []
        self.given: dict[str, float] = {}
        self._supervisor_seconds = supervisor_seconds

    async def announce_stop(self) -> None:
        self.events.append("not ready")

    def stop_supervisor(self) -> None:
        self.events.append("supervisor")
        time.sleep(self._supervisor_seconds)

    async def stop_gateway(self, seconds: float) -> None:
        self.events.append("gateway")
        self.given["gateway"] = seconds
        await asyncio.sleep(seconds)

    def stop_torchserve(self, seconds: float) -> None:
        self.events.append("TorchServe")
        self.given["TorchServe"] = seconds


class Stopping:
    """One part, which is told to stop."""

    def __init__(self, stop: object, announce_stop: object = None) -> None:
        self.stop = stop
        self.announce_stop = announce_stop


def stopped(tmp_path: Path, supervisor_seconds: float) -> Parts:
    parts = Parts(supervisor_seconds)
    archives = (archive(tmp_path / "digits.mar", "digits"),)
    service = Service(TorchServeSettings(archives=archives), GatewaySettings(drain_seconds=DRAIN_SECONDS))
    service._supervisor = cast("Any", Stopping(parts.stop_supervisor))
    service._gateway = cast("Any", Stopping(parts.stop_gateway, parts.announce_stop))
    service._loop = LoopThread()
    service.torchserve = cast("Any", Stopping(parts.stop_torchserve))
    service.stop()
    return parts


def test_readiness_goes_before_anything_that_takes_its_time(tmp_path: Path) -> None:
    assert stopped(tmp_path, 0.0).events == ["not ready", "supervisor", "gateway", "TorchServe"]


@pytest.mark.parametrize("supervisor_seconds", [0.1, 0.8])
def test_all_parts_of_a_stop_share_one_time(tmp_path: Path, supervisor_seconds: float) -> None:
    given = stopped(tmp_path, supervisor_seconds).given
    assert 0 <= given["gateway"] <= max(0.0, DRAIN_SECONDS - supervisor_seconds)
    # It may always end as it wants to.
    assert given["TorchServe"] == 1.0
