"""Captures of the fixture classifiers, made once for all tests."""

from functools import cache

import torch
from torch import nn

from fixture_data import CLASSIFIERS, networks
from pathlens.classifier.capture import capture
from pathlens.classifier.captured import CapturedClassifier


@cache
def real_original(name: str) -> nn.Module:
    network: nn.Module = networks().load(name)
    return network


@cache
def real(name: str) -> CapturedClassifier:
    side = CLASSIFIERS[name][1]
    return capture(real_original(name), torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(0)))
