"""The classifiers that the service tests serve: the digits of the demonstration and the three fixture networks."""

import os
from dataclasses import dataclass
from pathlib import Path

FIXTURES = Path(os.environ.get("PATHLENS_FIXTURES", Path(__file__).parents[3] / "shared" / "fixtures")).resolve()
WITHOUT_FIXTURES = f"no fixtures in {FIXTURES}; set PATHLENS_FIXTURES"


@dataclass(frozen=True)
class Fixture:
    """How a fixture network is fitted."""

    name: str
    factory: str
    images: str
    arguments: tuple[str, ...]


_IMAGENET = ("--minimum-images", "1", "--others", "4")
# Steps enough to see that a large network goes the whole way, not to train it.
_FEW_STEPS = ("--class-steps", "2", "--generator-steps", "2", "--training-batch", "4", "--ablation", "mean")
_UNTRAINED = ("--source", "neuron-mct", "--class-pathways", "frequency")
_CIFAR = ("--class-steps", "20", "--generator-steps", "20", "--training-batch", "16", "--ablation", "optimal")

FIXTURE_NETWORKS = (
    Fixture("squeezenet1_1", "networks:SqueezeNet", "imagenet", ("--size", "224", *_IMAGENET, *_FEW_STEPS)),
    Fixture(
        "mobilenet_v2",
        "networks:MobileNetV2",
        "imagenet",
        ("--size", "224", "--mean", "0.5,0.5,0.5", "--std", "0.5,0.5,0.5", *_IMAGENET, *_UNTRAINED),
    ),
    Fixture("cifar_resnet20", "networks:CifarResNet", "cifar.npz", ("--size", "32", "--others", "16", *_CIFAR)),
)
