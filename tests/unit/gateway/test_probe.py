import asyncio

import grpc
import pytest

from pathlens.errors import InternalError, PathlensError, UnavailableError
from pathlens.gateway.probe import canary
from pathlens.model_version import ModelVersion
from pathlens.wire.v1 import explanation_service_pb2 as messages

from .fault_injector import FaultInjector

DIGITS = ModelVersion("digits", "1.0")


def run_canary(injector: FaultInjector) -> None:
    async def scenario() -> None:
        async with injector:
            await asyncio.to_thread(canary, injector.address, DIGITS, 5.0)

    asyncio.run(scenario())


def test_a_model_that_predicts_passes() -> None:
    run_canary(FaultInjector())


def test_the_image_is_grey_and_of_the_size_of_the_input() -> None:
    injector = FaultInjector()
    run_canary(injector)
    tensor = injector.canaries[0].predict.image.tensor
    assert tensor == messages.Tensor(data_type=messages.DATA_TYPE_UINT8, shape=[2, 2], data=b"\x80" * 4)


@pytest.mark.parametrize("probability", [float("nan"), float("inf")])
def test_a_probability_that_is_not_finite_fails(probability: float) -> None:
    injector = FaultInjector()
    injector.probability = probability
    with pytest.raises(InternalError) as caught:
        run_canary(injector)
    assert caught.value.reason == "CANARY_FAILED"


def test_a_dead_worker_fails() -> None:
    injector = FaultInjector()
    injector.failure = (grpc.StatusCode.INTERNAL, "Worker died.")
    with pytest.raises(UnavailableError):
        run_canary(injector)


@pytest.mark.parametrize("prediction", [b"\xff", b""])
def test_a_foreign_handler_fails(prediction: bytes) -> None:
    injector = FaultInjector()
    injector.prediction = prediction
    with pytest.raises(InternalError) as caught:
        run_canary(injector)
    assert caught.value.reason == "HANDLER_UNKNOWN"


def test_a_torchserve_that_is_not_there_fails() -> None:
    with pytest.raises(PathlensError):
        canary("127.0.0.1:1", DIGITS, timeout_seconds=2.0)
