"""What probes learn of a TorchServe whose callers are elsewhere."""

import asyncio
from typing import Any

import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from pathlens.gateway import GatewaySettings, TorchServeHealth
from pathlens.model_version import ModelVersion
from pathlens.torchserve import TorchServeSettings

from .fault_injector import FaultInjector, description


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pathlens.gateway.watch._PERIOD_SECONDS", 0.02)
    monkeypatch.setattr("pathlens.gateway.watch._PATIENCE_SECONDS", 0.1)


def test_a_canary_may_wait_for_all_that_a_gateway_has_in_flight() -> None:
    # Two requests for each of two workers, and the canary: three seconds.
    torchserve = TorchServeSettings(health_port=0, metrics_port=0, workers=2, response_timeout_seconds=1)
    limits = GatewaySettings(max_in_flight=4, upstream_timeout_seconds=0.2)

    async def scenario() -> None:
        async with FaultInjector() as injector:
            health = TorchServeHealth(torchserve, limits)
            await health.start()
            try:
                await health.backend.admit(description(), ModelVersion("digits", "1.0"))
                await health.backend.resume(injector.address)
                injector.describing.clear()
                await asyncio.sleep(2.5)
                assert health.backend.unready_seconds == 0
                async with asyncio.timeout(5):
                    while not health.backend.unready_seconds:
                        await asyncio.sleep(0.05)
            finally:
                injector.describing.set()
                await health.stop()

    asyncio.run(scenario())


async def probed(address: str) -> int:
    async with grpc.aio.insecure_channel(address, options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
        request = health_pb2.HealthCheckRequest(service="liveness")
        stub: Any = health_pb2_grpc.HealthStub(channel)
        return int((await stub.Check(request, timeout=1)).status)


def test_calls_that_stay_silent_keep_no_probe_out() -> None:
    async def scenario() -> None:
        health = TorchServeHealth(TorchServeSettings(health_port=0, metrics_port=0), GatewaySettings())
        await health.start()
        async with grpc.aio.insecure_channel(health.address) as channel:

            async def stay_silent() -> None:
                while True:
                    call: Any = channel.stream_stream("/grpc.health.v1.Health/Check")()
                    await asyncio.gather(call.read(), return_exceptions=True)

            silent = [asyncio.create_task(stay_silent()) for _ in range(250)]
            try:
                await asyncio.sleep(1)
                for _ in range(5):
                    assert await probed(health.address) == health_pb2.HealthCheckResponse.SERVING
                    await asyncio.sleep(0.2)
            finally:
                for one in silent:
                    one.cancel()
                await asyncio.gather(*silent, return_exceptions=True)
        await health.stop()

    asyncio.run(scenario())
