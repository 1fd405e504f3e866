"""Real classifiers and images for tests, from the folder that PATHLENS_FIXTURES names."""

import os
import sys
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

FOLDER = Path(os.environ.get("PATHLENS_FIXTURES", Path(__file__).parents[1] / "../shared/fixtures")).resolve()
CLASSIFIERS = {"squeezenet1_1": (26, 224), "mobilenet_v2": (35, 224), "cifar_resnet20": (19, 32)}
"""Number of activation calls and side of the input of each fixture classifier."""

needs_fixtures = pytest.mark.skipif(
    not (FOLDER / "networks.py").is_file(), reason=f"no fixtures in {FOLDER}; set PATHLENS_FIXTURES"
)


@cache
def networks() -> Any:
    """The module that defines the fixture classifiers."""
    if str(FOLDER) not in sys.path:
        sys.path.append(str(FOLDER))
    return import_module("networks")


@cache
def cifar(part: str = "test") -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """CIFAR-10 images uint8 [N, 32, 32, 3] with their labels."""
    with np.load(FOLDER / f"cifar10_{part}_jpegged.npz", allow_pickle=False) as file:
        return file["images"], file["labels"]
