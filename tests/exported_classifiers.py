"""All classifiers of the tests as files of both exporters, each written once per process."""

import tempfile
from functools import cache
from pathlib import Path

from torch import Tensor, nn

import production_networks
import small_networks
from fixture_data import CLASSIFIERS
from onnx_files import Exporter, export, written
from pathlens.classifier.capture import capture
from pathlens.classifier.captured import CapturedClassifier
from pathlens.classifier.sources import load_classifier
from pathlens.classifier.taps import Tap
from real_captures import real_original

OPSETS: dict[Exporter, tuple[int, ...]] = {"legacy": (13, 15, 17, 20), "dynamo": (18, 20, 21)}
NETWORKS = (*CLASSIFIERS, *production_networks.NETWORKS, *small_networks.NETWORKS)
"""What `exported` writes: the fixture classifiers, the architectures in production, and the small constructs."""

_WITH_FUSED_ATTENTION = frozenset({"ViT", "ViT by nn.MultiheadAttention", "transformer"})


@cache
def original(name: str) -> nn.Module:
    """The network that was exported, in evaluation mode."""
    if name in CLASSIFIERS:
        return real_original(name)
    if name in production_networks.NETWORKS:
        return production_networks.production_network(name)
    return small_networks.original(name)


def example(name: str, count: int = 2, seed: int = 0) -> Tensor:
    """Random inputs of one of NETWORKS."""
    if name in CLASSIFIERS:
        return small_networks.images(count, seed, CLASSIFIERS[name][1])
    if name in production_networks.NETWORKS:
        return production_networks.coloured_images(count, seed)
    return small_networks.images(count, seed)


@cache
def exported(name: str, exporter: Exporter, opset: int) -> Path:
    """Export one of NETWORKS with a dynamic batch and return the file."""
    path = Path(_folder().name) / f"{name.replace(' ', '-')}-{exporter}-{opset}.onnx"
    return written(export(original(name), exporter, opset, example(name)), path)


def can_write(exporter: Exporter, opset: int, name: str) -> bool:
    """Tell whether an exporter knows all functions of a network: fused attention came with opset 14."""
    return exporter == "dynamo" or opset >= 14 or name not in _WITH_FUSED_ATTENTION


def captured_file(path: Path, images: Tensor) -> CapturedClassifier:
    """Capture a file as `pathlens fit` does."""
    return capture(load_classifier(str(path), example=images), images)


@cache
def taps_of_original(name: str) -> tuple[Tap, ...]:
    """Taps of a network that was never a file."""
    return capture(original(name), example(name)).taps


def described(taps: tuple[Tap, ...]) -> list[tuple[object, ...]]:
    """All of taps that does not depend on how a graph numbers its nodes."""
    return [(tap.name, tap.activation, tap.shape, tap.channel_dimension) for tap in taps]


@cache
def _folder() -> "tempfile.TemporaryDirectory[str]":
    return tempfile.TemporaryDirectory(prefix="onnx-")
