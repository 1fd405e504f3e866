import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from pathlens.bundle.store import load_bundle
from pathlens.cli import main as pathlens
from pathlens.client import Client
from pathlens.explainer import Explainer
from pathlens.gateway import GatewaySettings
from pathlens.serving import Service
from pathlens.torchserve import TorchServeSettings
from service.classifiers import FIXTURE_NETWORKS, FIXTURES, Fixture

IMAGENET_IMAGES = 30


def run_pathlens(*arguments: object) -> None:
    pathlens([str(argument) for argument in arguments], standalone_mode=False)


@dataclass(frozen=True)
class Served:
    """A running service with everything that a test compares it with."""

    service: Service
    bundles: dict[str, Path]
    folder: Path

    def client(self, model: str = "digits", timeout: float = 60.0) -> Client:
        return Client(self.service.address, model, timeout=timeout)

    def explainer(self, model: str) -> Explainer:
        # What TorchServe's manifest says, so that results are comparable as a whole.
        return load_bundle(self.bundles[model]).explainer(version="1.0")


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the demonstration's classifier and images."""
    from pathlens.demo.digits import train

    folder = tmp_path_factory.mktemp("digits")
    train(folder)
    return folder


@pytest.fixture(scope="session")
def digits_bundle(digits: Path) -> Path:
    bundle = digits / "bundle"
    run_pathlens(
        *("fit", "--classifier", "pathlens.demo.digits:DigitsClassifier"),
        *("--weights", digits / "classifier.safetensors", "--images", digits / "images"),
        *("--held-out-images", digits / "validation"),
        *("--size", "8", "--colour", "grey", "--name", "digits", "--out", bundle),
        *("--ablation", "mean", "--class-steps", "400", "--generator-steps", "300"),
    )
    return bundle


@pytest.fixture(scope="session")
def served(digits_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """One service with the digits and, where the fixtures are, the three fixture networks."""
    folder = tmp_path_factory.mktemp("served")
    bundles = {"digits": digits_bundle}
    if FIXTURES.is_dir():
        bundles |= {network.name: _fit(network, folder) for network in FIXTURE_NETWORKS}
    for bundle in bundles.values():
        run_pathlens("pack", bundle, "--model-store", folder / "store")
    settings = TorchServeSettings(archives=tuple(sorted((folder / "store").glob("*.mar"))))
    with Service(settings, GatewaySettings(port=0, metrics_port=0)) as service:
        yield Served(service, bundles, folder)


def _fit(network: Fixture, folder: Path) -> Path:
    sys.path.append(str(FIXTURES))
    photographs = folder / "imagenet"
    if not photographs.exists():
        photographs.mkdir()
        for photograph in sorted((FIXTURES / "imagenet_val").glob("*.JPEG"))[:IMAGENET_IMAGES]:
            (photographs / photograph.name).symlink_to(photograph)
        images = np.load(FIXTURES / "cifar10_test_jpegged.npz")["images"][:300]
        np.savez(folder / "cifar.npz", images=images)
    bundle = folder / network.name
    run_pathlens(
        *("fit", "--classifier", network.factory, "--weights", FIXTURES / "weights" / f"{network.name}.pt"),
        *("--images", folder / network.images, "--out", bundle, *network.arguments),
    )
    return bundle
