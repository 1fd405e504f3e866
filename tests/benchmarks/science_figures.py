"""Make the figures of docs/science.md: fit and evaluate the fixture networks on the fixtures' images.

    python tests/benchmarks/science_figures.py                  all three, in build/figures
    python tests/benchmarks/science_figures.py cifar_resnet20   one

The folder of fixtures is named by PATHLENS_FIXTURES, as for the tests. Images that fit a bundle do not evaluate it.
"""

import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

from pathlens.cli import main as pathlens

ROOT = Path(__file__).parents[2]
FIXTURES = Path(os.environ.get("PATHLENS_FIXTURES", ROOT.parent / "shared" / "fixtures")).resolve()
FOLDER = ROOT / "build" / "figures"
EVALUATED = 64
"""ImageNet photographs that are evaluated; the others fit the bundles."""


@dataclass(frozen=True)
class Network:
    """How a network is fitted and evaluated.

    Attributes:
        name: Of its weights.
        factory: What makes it.
        fit: Further options of `pathlens fit`.
        evaluate: Further options of `pathlens evaluate`.
    """

    name: str
    factory: str
    fit: tuple[str, ...]
    evaluate: tuple[str, ...]


_IMAGENET = ("--minimum-images", "1", "--others", "4")
_FEW = (
    *("--batch-size", "8", "--minimum-images", "1", "--others", "8"),
    *("--steps", "10", "--sample", "8", "--layers", "6"),
)

NETWORKS = {
    network.name: network
    for network in (
        Network("cifar_resnet20", "networks:CifarResNet", ("--size", "32"), ("--limit", "512", "--steps", "20")),
        Network(
            "squeezenet1_1",
            "networks:SqueezeNet",
            ("--size", "224", *_IMAGENET),
            ("--limit", "64", *_FEW),
        ),
        Network(
            "mobilenet_v2",
            "networks:MobileNetV2",
            ("--size", "224", "--mean", "0.5,0.5,0.5", "--std", "0.5,0.5,0.5", *_IMAGENET),
            ("--limit", "32", *_FEW),
        ),
    )
}


def make(network: Network) -> None:
    """Fit a network unless that was done, and evaluate it."""
    folder = FOLDER / network.name
    images, held_out, labels = _images(network)
    if not (folder / "bundle" / "bundle.json").is_file():
        _run(
            *("fit", "--classifier", network.factory, "--weights", FIXTURES / "weights" / f"{network.name}.pt"),
            *("--images", images, "--out", folder / "bundle", "--name", network.name, *network.fit),
            # These figures compare what needs no training; two_sided_frontier.py and compare_pathways.py have GEN-CNP.
            *("--source", "neuron-mct", "--class-pathways", "frequency"),
        )
    _run("evaluate", folder / "bundle", "--images", held_out, *labels, "--out", folder, *network.evaluate)


def _images(network: Network) -> tuple[Path, Path, tuple[object, ...]]:
    """Return the images to fit on, those to evaluate, and the option that names their labels."""
    if network.name == "cifar_resnet20":
        return FIXTURES / "cifar10_train_jpegged.npz", FIXTURES / "cifar10_test_jpegged.npz", ()
    photographs = sorted((FIXTURES / "imagenet_val").glob("*.JPEG"))
    stride = len(photographs) // EVALUATED
    for number, photograph in enumerate(photographs):
        part = "held-out" if number % stride == 0 and number < EVALUATED * stride else "images"
        path = FOLDER / "imagenet" / part / photograph.name
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(photograph, path)
    folder = FOLDER / "imagenet"
    return folder / "images", folder / "held-out", ("--labels", FIXTURES / "imagenet_val" / "labels.csv")


def _run(*arguments: object) -> None:
    pathlens([str(argument) for argument in arguments], standalone_mode=False)


if __name__ == "__main__":
    sys.path.append(str(FIXTURES))
    for name in sys.argv[1:] or NETWORKS:
        make(NETWORKS[name])
