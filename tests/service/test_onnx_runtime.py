"""A bundle with graphs behind a real TorchServe: ONNX Runtime answers, and it answers as PyTorch does."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from captured_log import CapturedLog
from equal_answers import assert_equal
from pathlens.bundle.archive import pack
from pathlens.bundle.store import save_bundle
from pathlens.client import Client
from pathlens.explanation import ExplanationOptions, ImageInput, Output, PathwaySource, Targets
from pathlens.gateway import GatewaySettings
from pathlens.serving import Service
from pathlens.torchserve import TorchServeSettings
from tiny_bundle import pixels, png, tensor, tiny_bundle
from tiny_graphs import GRAPHED, graphed_bundle, shared_graphs

KIND = GRAPHED[1]
EXPLAINER = tiny_bundle(KIND[0], ablation=KIND[1]).explainer()
IMAGES: list[ImageInput] = [png(pixels(0)), pixels(1, 20, 9), tensor(2), b"not an image", png(pixels(3))]


@pytest.fixture(scope="module")
def log() -> CapturedLog:
    return CapturedLog()


@pytest.fixture(scope="module")
def service(log: CapturedLog, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder: Path = tmp_path_factory.mktemp("onnx_runtime")
    with shared_graphs(tmp_path_factory):
        save_bundle(graphed_bundle(*KIND), folder / "bundle")
    settings = TorchServeSettings(archives=(pack(folder / "bundle", folder),))
    with log.capturing("info"), Service(settings, GatewaySettings(port=0, metrics_port=0)) as running:
        yield running


@pytest.fixture
def client(service: Service) -> Iterator[Client]:
    with Client(service.address) as client:
        yield client


@pytest.mark.usefixtures("service")
def test_the_worker_says_that_onnx_runtime_computes(log: CapturedLog) -> None:
    # The lines of a worker come by way of a file.
    end = time.monotonic() + 10
    while "ONNX Runtime computes for tiny on the CPU" not in log.text:
        assert time.monotonic() < end, log.text
        time.sleep(0.05)


def test_a_prediction_is_that_of_pytorch(client: Client) -> None:
    assert_equal([client.predict(IMAGES[0])], EXPLAINER.predict(IMAGES[:1]))


@pytest.mark.parametrize("source", [PathwaySource.TRANSFERRED, PathwaySource.GENERATED, PathwaySource.NEURON_MCT])
def test_an_explanation_is_that_of_pytorch(client: Client, source: PathwaySource) -> None:
    options = ExplanationOptions(Targets(class_indices=(0, 2)), source, outputs=frozenset(Output))
    assert_equal([client.explain(IMAGES[0], options)], EXPLAINER.explain(IMAGES[:1], options))


@pytest.mark.parametrize("source", [PathwaySource.TRANSFERRED, PathwaySource.GENERATED])
def test_every_image_of_a_batch_gets_what_pytorch_answers(client: Client, source: PathwaySource) -> None:
    options = ExplanationOptions(Targets(class_indices=(1,)), source)
    answers = client.batch_explain(IMAGES, options)
    assert getattr(answers.pop(3), "reason", "") == "IMAGE_UNDECODABLE"
    assert_equal(answers, EXPLAINER.explain([*IMAGES[:3], *IMAGES[4:]], options))
