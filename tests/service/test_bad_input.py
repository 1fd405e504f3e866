"""Bad input over the real service: the right code and reason within a second, and the service serves on."""

import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO

import grpc
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from pathlens.client import Client, Connection
from pathlens.errors import (
    FailedPreconditionError,
    InvalidRequestError,
    NotFoundError,
    PathlensError,
    ResourceExhaustedError,
)
from pathlens.explanation import (
    ExplanationOptions,
    ExplanationResult,
    Granularity,
    ImageInput,
    Output,
    PathwaySource,
    Targets,
)
from pathlens.wire.v1 import explanation_service_pb2 as pb
from pathlens.wire.v1.explanation_service_pb2_grpc import ExplanationServiceStub
from service.conftest import Served

pytestmark = pytest.mark.timeout(600)

GOOD = np.full((8, 8), 128, np.uint8)
MEBIBYTE = 2**20
# Far below any time limit, and far above what a busy machine takes.
PROMPTLY_SECONDS = 10


def png(width: int = 8, height: int = 8) -> bytes:
    buffer = BytesIO()
    Image.new("L", (width, height), 128).save(buffer, "PNG")
    return buffer.getvalue()


def bomb() -> bytes:
    """Return a PNG whose header claims ten thousand million pixels."""
    data = bytearray(png())
    data[16:24] = (100_000).to_bytes(4, "big") * 2
    # The header's checksum, so that only its claim is wrong.
    data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, "big")
    return bytes(data)


def tensor(value: float) -> NDArray[np.float32]:
    return np.full((1, 8, 8), value, np.float32)


def explain(**options: object) -> Callable[[Client], object]:
    return lambda client: client.explain(GOOD, ExplanationOptions(**options))  # type: ignore[arg-type]


@dataclass(frozen=True)
class Case:
    call: Callable[[Client], object]
    error: type[PathlensError]
    reason: str
    model: str = "digits"


INVALID, MISSING, IMPOSSIBLE = InvalidRequestError, NotFoundError, FailedPreconditionError
CASES = {
    "not an image": Case(lambda client: client.predict(b"hello"), INVALID, "IMAGE_UNDECODABLE"),
    "a GIF": Case(lambda client: client.predict(b"GIF89a" + bytes(50)), INVALID, "IMAGE_UNDECODABLE"),
    "a truncated image": Case(lambda client: client.predict(png()[:-30]), INVALID, "IMAGE_UNDECODABLE"),
    "an empty image": Case(lambda client: client.predict(b""), INVALID, "IMAGE_EMPTY"),
    "a decompression bomb": Case(lambda client: client.predict(bomb()), INVALID, "IMAGE_TOO_LARGE"),
    "an image over the limit": Case(lambda client: client.predict(bytes(17 * MEBIBYTE)), INVALID, "IMAGE_TOO_LARGE"),
    "pixels of size zero": Case(lambda client: client.predict(np.zeros((0, 0), np.uint8)), INVALID, "TENSOR_INVALID"),
    "a tensor of another shape": Case(
        lambda client: client.predict(np.zeros((3, 8, 8), np.float32)), INVALID, "TENSOR_INVALID"
    ),
    "a tensor of another type": Case(
        lambda client: client.predict(np.zeros((1, 8, 8))),  # type: ignore[arg-type]
        INVALID,
        "TENSOR_INVALID",
    ),
    "a tensor with NaN": Case(lambda client: client.predict(tensor(np.nan)), INVALID, "TENSOR_NOT_FINITE"),
    "a tensor with infinity": Case(lambda client: client.predict(tensor(np.inf)), INVALID, "TENSOR_NOT_FINITE"),
    "a tensor that overflows": Case(lambda client: client.predict(tensor(3e38)), INVALID, "OUTPUT_NOT_FINITE"),
    "an unknown model": Case(lambda client: client.predict(GOOD), MISSING, "MODEL_NOT_FOUND", "no-such-model"),
    "an unknown label": Case(explain(targets=Targets(labels=("ten",))), MISSING, "CLASS_NOT_FOUND"),
    "a class index beyond the last": Case(explain(targets=Targets(class_indices=(10,))), MISSING, "CLASS_NOT_FOUND"),
    "a negative class index": Case(explain(targets=Targets(class_indices=(-1,))), MISSING, "CLASS_NOT_FOUND"),
    "more targets than classes": Case(explain(targets=Targets(top_k=11)), INVALID, "OPTION_INVALID"),
    "more targets than an answer holds": Case(
        explain(targets=Targets(class_indices=tuple(range(10)), labels=tuple("0123456"))), INVALID, "OPTION_INVALID"
    ),
    "more neurons than an answer holds": Case(explain(top_neurons=1001), INVALID, "OPTION_INVALID"),
    "a sparsity of one": Case(explain(source=PathwaySource.NEURON_MCT, sparsity=1.0), INVALID, "OPTION_INVALID"),
    "a negative sparsity": Case(explain(source=PathwaySource.NEURON_MCT, sparsity=-0.1), INVALID, "OPTION_INVALID"),
    "a sparsity of NaN": Case(explain(source=PathwaySource.NEURON_MCT, sparsity=np.nan), INVALID, "OPTION_INVALID"),
    "a sparsity for a stored pathway": Case(explain(sparsity=0.5), INVALID, "OPTION_INVALID"),
    "an overlay of a tensor": Case(
        lambda client: client.explain(tensor(0.5), ExplanationOptions(outputs=frozenset({Output.OVERLAY}))),
        INVALID,
        "OPTION_INVALID",
    ),
    "a sparsity of a generated pathway": Case(
        explain(source=PathwaySource.GENERATED, sparsity=0.5), INVALID, "OPTION_INVALID"
    ),
    "units of stored channels": Case(explain(granularity=Granularity.UNIT), IMPOSSIBLE, "GRANULARITY_UNAVAILABLE"),
    "the pathway of an unknown class": Case(lambda client: client.get_class_pathway("ten"), MISSING, "CLASS_NOT_FOUND"),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_bad_input_gets_its_code_and_reason_promptly(served: Served, case: Case) -> None:
    with served.client(case.model) as client, served.client() as other:
        other.predict(GOOD)
        started = time.monotonic()
        with pytest.raises(case.error) as failure:
            case.call(client)
        assert time.monotonic() - started < PROMPTLY_SECONDS
        assert failure.value.reason == case.reason
        assert other.predict(GOOD).predictions


def test_a_message_over_the_limit_is_refused(served: Served) -> None:
    connection = Connection(served.service.address, max_message_bytes=100 * MEBIBYTE)
    with Client(connection, "digits") as client:
        with pytest.raises(ResourceExhaustedError):
            client.predict(bytes(65 * MEBIBYTE))
        assert client.predict(GOOD).predictions


def test_one_bad_item_does_not_hurt_its_batch(served: Served) -> None:
    with served.client() as client:
        alone = client.explain(GOOD)
        first, bad, last = client.batch_explain([GOOD, b"hello", GOOD])
    assert isinstance(bad, InvalidRequestError)
    for answer in (first, last):
        assert isinstance(answer, ExplanationResult)
        assert [best.class_index for best in answer.predictions] == [best.class_index for best in alone.predictions]


def test_one_bad_item_does_not_end_its_stream(served: Served) -> None:
    images: list[ImageInput] = [GOOD, b"hello"] * 10
    with served.client() as client:
        answers = dict(client.stream_explain(images))
    assert sorted(answers) == list(range(20))
    assert all(isinstance(answers[position], ExplanationResult) is (position % 2 == 0) for position in answers)


def test_an_unspecified_tensor_type_names_its_field(served: Served) -> None:
    with grpc.insecure_channel(served.service.address) as channel:
        request = pb.PredictRequest(
            model=pb.ModelReference(name="digits"), image=pb.Image(tensor=pb.Tensor(shape=[8, 8], data=bytes(64)))
        )
        with pytest.raises(grpc.RpcError) as failure:
            ExplanationServiceStub(channel).Predict(request)
    assert isinstance(failure.value, grpc.Call)
    assert failure.value.code() is grpc.StatusCode.INVALID_ARGUMENT


def test_no_call_killed_the_worker(served: Served) -> None:
    # TorchServe's handler answers every bad item itself; a worker that died would have been started anew.
    assert "Retry worker" not in served.service.torchserve.log_path.read_text()
