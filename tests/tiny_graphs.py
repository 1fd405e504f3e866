"""The tiny bundle served by ONNX Runtime: its graphs are made once for all processes of a test run."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from itertools import product
from pathlib import Path

import pytest

from pathlens.bundle.store import Bundle, load_bundle, save_bundle
from pathlens.explainer.onnx_runtime_backend import OnnxRuntimeBackend
from pathlens.explanation import Ablation, Granularity
from pathlens.onnx_export.graphs import serving_graphs
from pathlens.onnx_export.subject import ExplainedClassifier
from tiny_bundle import tiny_bundle

GRAPHED = ((Granularity.CHANNEL, Ablation.ZERO), (Granularity.UNIT, Ablation.OPTIMAL))
"""What tests make graphs of, which takes seconds: both granularities, both ways of taking neurons out."""
KINDS = (*GRAPHED, *(kind for kind in product(Granularity, Ablation) if kind not in GRAPHED))
"""Every granularity and ablation of the tiny bundle."""

_folders: list[Path] = []


@contextmanager
def shared_graphs(factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep graphs that are made inside where all processes of this test run find them."""
    folder = factory.getbasetemp()
    _folders.append(folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder)
    yield
    _folders.pop()


@cache
def graphed_bundle(granularity: Granularity = Granularity.CHANNEL, ablation: Ablation = Ablation.ZERO) -> Bundle:
    """Make the tiny bundle with graphs; made once, not to be changed."""
    plain = tiny_bundle(granularity, ablation=ablation)
    folder = _folders[-1] / f"graphed-{granularity.value}-{ablation.value}"
    with folder.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.exists():
            graphs = serving_graphs(ExplainedClassifier(plain.classifier, plain.bank, plain.generator))
            save_bundle(replace(plain, graphs=graphs.stamped(plain.classifier.fingerprint)), folder)
    return replace(plain, graphs=load_bundle(folder).graphs)


def kind_for(backend: str, number: int) -> tuple[Granularity, Ablation]:
    """Pick one of all kinds for PyTorch, and one of those with graphs for ONNX Runtime."""
    kinds = KINDS if backend == "torch" else GRAPHED
    return kinds[number % len(kinds)]


def graphed_backend(granularity: Granularity, ablation: Ablation, slice_bytes: int = 0) -> OnnxRuntimeBackend:
    """Make ONNX Runtime compute for the tiny bundle."""
    bundle = graphed_bundle(granularity, ablation)
    assert bundle.graphs is not None
    return OnnxRuntimeBackend(bundle.graphs, bundle.classifier, bundle.bank, slice_bytes)
