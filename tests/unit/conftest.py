"""What unit tests of several rooms share; most of them need no torch, so that it is imported where it is needed."""

from collections.abc import Iterator

import pytest


@pytest.fixture(scope="session")
def graphs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Lets tests make the graphs of the tiny bundle."""
    from tiny_graphs import shared_graphs

    with shared_graphs(tmp_path_factory):
        yield


@pytest.fixture(scope="module", params=["torch", "onnxruntime"])
def backend(request: pytest.FixtureRequest, graphs: None) -> Iterator[str]:
    """Runs every test of a module once for each of what computes for the explainers of the tiny bundle."""
    from tiny_bundle import computing_with
    from tiny_graphs import graphed_backend

    if request.param == "torch":
        yield "torch"
        return
    with computing_with(graphed_backend):
        yield "onnxruntime"
