"""Files that were made to take long, over the real service: refused in time, one by one, and the worker lives."""

import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from pathlens.bundle.archive import pack
from pathlens.bundle.store import save_bundle
from pathlens.client import Client
from pathlens.errors import InvalidRequestError
from pathlens.explanation import ExplanationResult, ImageInput
from pathlens.gateway import GatewaySettings
from pathlens.serving import Service
from pathlens.torchserve import TorchServeSettings
from tiny_bundle import pixels, png, tiny_bundle

GOOD = png(pixels(0))
# A colour profile takes 2 ms to inflate, and Pillow reads them one by one: nearly two seconds in all.
_PROFILE = b"iCCPname\0\0" + zlib.compress(bytes(2**20), 9)
_CHUNK = struct.pack(">I", len(_PROFILE) - 4) + _PROFILE + struct.pack(">I", zlib.crc32(_PROFILE))
SLOW = GOOD[:33] + _CHUNK * 900 + GOOD[33:]
ENDLESS = GOOD[:33] + (bytes(4) + b"prVt" + struct.pack(">I", zlib.crc32(b"prVt"))) * 1_000_000 + GOOD[33:]


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder: Path = tmp_path_factory.mktemp("hostile")
    save_bundle(tiny_bundle(), folder / "bundle")
    settings = TorchServeSettings(archives=(pack(folder / "bundle", folder),), decode_seconds=0.1)
    with Service(settings, GatewaySettings(port=0, metrics_port=0, max_image_pixels=10_000)) as running:
        yield running


@pytest.fixture
def client(service: Service) -> Iterator[Client]:
    with Client(service.address) as client:
        yield client


def reasons(answers: list[object]) -> list[str]:
    return [answer.reason if isinstance(answer, InvalidRequestError) else type(answer).__name__ for answer in answers]


def test_an_image_that_takes_longer_than_the_setting_is_refused_with_it(client: Client) -> None:
    with pytest.raises(InvalidRequestError) as refusal:
        client.predict(SLOW)
    assert (refusal.value.reason, refusal.value.metadata["limit"]) == ("IMAGE_TOO_SLOW", "0.1")


def test_slow_images_are_refused_alone_in_a_batch_and_in_a_stream(client: Client) -> None:
    images: list[ImageInput] = [GOOD, SLOW, GOOD, ENDLESS, np.zeros((101, 100), np.uint8), GOOD]
    expected = ["ExplanationResult", "IMAGE_TOO_SLOW", "ExplanationResult", "IMAGE_TOO_COMPLEX", "IMAGE_TOO_LARGE"]
    assert reasons([*client.batch_explain(images)]) == [*expected, "ExplanationResult"]
    streamed = dict(client.stream_explain(images))
    assert reasons([streamed[position] for position in range(6)]) == [*expected, "ExplanationResult"]


def test_a_file_that_is_missing_is_refused_alone_in_a_stream(client: Client) -> None:
    answers = dict(client.stream_explain([GOOD, Path("no-such-image.png"), GOOD]))
    assert reasons([answers[position] for position in range(3)]) == [
        "ExplanationResult",
        "IMAGE_UNREADABLE",
        "ExplanationResult",
    ]


def test_the_worker_lives(service: Service, client: Client) -> None:
    assert isinstance(client.predict(GOOD), ExplanationResult)
    assert "Retry worker" not in service.torchserve.log_path.read_text()
