"""Files that PyTorch writes of the architectures in production, read as `pathlens fit` reads them.

`make onnx` does the same for every network, exporter and opset.
"""

from functools import cache
from itertools import cycle

import pytest
import torch

from exported_classifiers import (
    OPSETS,
    can_write,
    captured_file,
    described,
    example,
    exported,
    taps_of_original,
)
from fixture_data import needs_fixtures
from onnx_files import Exporter, by_onnx_runtime, is_close
from pathlens.classifier.captured import CapturedClassifier

Case = tuple[str, Exporter, int]

LEGACY = (
    *("ShuffleNet", "Inception", "MobileNetV3", "ViT by nn.MultiheadAttention", "ConvNeXt"),
    *("DenseNet", "adaptive pooling"),
)
DYNAMO = ("EfficientNet", "ViT", "feature pyramid")
REAL: Case = ("cifar_resnet20", "legacy", 17)


def _cases(exporter: Exporter, networks: tuple[str, ...]) -> list[Case]:
    """Take the opsets in turn, and of every network only one: exports and captures are what takes the time."""
    opsets, cases = cycle(OPSETS[exporter]), list[Case]()
    for network in networks:
        cases.append((network, exporter, next(opset for opset in opsets if can_write(exporter, opset, network))))
    return cases


CASES = [
    *_cases("legacy", LEGACY),
    *_cases("dynamo", DYNAMO),
    pytest.param(REAL, marks=needs_fixtures),
]
any_file = pytest.mark.parametrize("case", CASES, ids=lambda case: " ".join(map(str, case)))


@cache
def read(case: Case) -> CapturedClassifier:
    return captured_file(exported(*case), example(case[0]))


@any_file
def test_logits_are_those_of_onnx_runtime_for_any_batch(case: Case) -> None:
    for count in (1, 3):
        batch = example(case[0], count, seed=5)
        assert is_close(read(case)(batch), by_onnx_runtime(exported(*case), batch))


@any_file
def test_taps_are_those_of_the_exported_network(case: Case) -> None:
    assert described(read(case).taps) == described(taps_of_original(case[0]))


@pytest.mark.parametrize("network", ["softmax", "log-softmax"])
def test_probabilities_at_the_end_are_those_of_onnx_runtime(network: str) -> None:
    path, batch = exported(network, "legacy", 17), example(network, 3, seed=5)
    logits = captured_file(path, example(network))(batch)
    end = torch.softmax if network == "softmax" else torch.log_softmax
    assert is_close(end(logits, 1), by_onnx_runtime(path, batch))


def test_a_softmax_at_the_end_is_left_out() -> None:
    logits = captured_file(exported("softmax", "legacy", 17), example("softmax"))(example("softmax", 3, seed=5))
    assert not torch.allclose(logits.sum(1), torch.ones(3), atol=0.1)
