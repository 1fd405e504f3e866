"""Explaining leaves nothing behind, and may be done from several threads at once."""

import gc
import io
import tracemalloc
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np
import psutil
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.fx import GraphModule
from torch.utils.hooks import RemovableHandle

from pathlens.attribution.linearity import linearity_error
from pathlens.attribution.pathway_gradient import pathway_gradient
from pathlens.classifier.captured import CapturedClassifier
from pathlens.errors import PathlensError
from pathlens.explanation import ExplanationOptions, ExplanationRequest, ExplanationResult, Output, PathwaySource
from pathlens.pathways.confidence_selection import select_by_confidence
from pathlens.pathways.neuron_intgrad import neuron_intgrad
from pathlens.pathways.neuron_mct import neuron_mct
from small_networks import CLASSES, captured, images
from tiny_bundle import pixels, tiny_explainer

MEBIBYTE = 2**20
T = TypeVar("T")

OPTIONS = {
    "transferred": ExplanationOptions(outputs=frozenset(Output), top_neurons=3),
    "NeuronMCT": ExplanationOptions(source=PathwaySource.NEURON_MCT, outputs=frozenset(Output)),
    "NeuronIntGrad": ExplanationOptions(source=PathwaySource.NEURON_INTGRAD, integration_steps=3),
    "linearity": ExplanationOptions(outputs=frozenset({Output.PATHWAY}), linearity_radius=0.1),
}
each_option = pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)


def explain(options: ExplanationOptions, seed: int) -> ExplanationResult:
    return tiny_explainer().explain([pixels(seed)], options)[0]


def measures(classifier: CapturedClassifier, seed: int) -> list[Tensor]:
    """Everything that the science computes of a batch."""
    batch = images(3, seed)
    target = torch.randint(CLASSES, (3,), generator=torch.Generator().manual_seed(seed))
    marginal, integrated = neuron_mct(classifier, batch, target), neuron_intgrad(classifier, batch, target, 3)
    sparse, sure = marginal.select(0.5), select_by_confidence(classifier, batch, target, marginal, 0.9)
    gradient = pathway_gradient(classifier, batch, target, sparse)
    error = linearity_error(classifier, batch, target, sparse, gradient, 0.1, points=2)
    return [*marginal.signed, *integrated.signed, sparse.flat(), sure.flat(), gradient, error]


def picture(png: bytes) -> NDArray[np.int16]:
    return np.asarray(Image.open(io.BytesIO(png)), dtype=np.int16) if png else np.empty(0, dtype=np.int16)


def live() -> dict[type, int]:
    """What would outlive an explanation that forgot to clear up."""
    gc.collect()
    kinds = (Tensor, RemovableHandle, GraphModule)
    found = [type(item) for item in gc.get_objects() if issubclass(type(item), kinds)]
    return {kind: sum(issubclass(item, kind) for item in found) for kind in kinds}


def resident() -> int:
    gc.collect()
    return int(psutil.Process().memory_info().rss)


class TestMany:
    @each_option
    def test_explanations_leave_no_tensor_no_hook_and_no_network(self, options: ExplanationOptions) -> None:
        for seed in range(3):
            explain(options, seed)
        before = live()
        for seed in range(10):
            explain(options, seed)
        assert live() == before

    @pytest.mark.parametrize("name", ["residual", "transformer"])
    def test_measures_leave_no_tensor_no_hook_and_no_network(self, name: str) -> None:
        measures(captured(name), 0)
        before = live()
        for seed in range(5):
            measures(captured(name), seed)
        assert live() == before

    def test_explanations_do_not_grow_the_resident_memory(self) -> None:
        explainer, kinds = tiny_explainer(), [OPTIONS["transferred"], OPTIONS["NeuronMCT"], OPTIONS["NeuronIntGrad"]]
        requests = [ExplanationRequest(pixels(seed), kinds[seed % len(kinds)]) for seed in range(10)]
        for batch in range(100):
            if batch == 20:
                before = resident()
            answers = explainer.answer(requests)
            assert not any(isinstance(answer, PathlensError) for answer in answers)
        # The answers alone, kept, would be twice as much.
        assert resident() - before < 2 * MEBIBYTE

    def test_linearity_checks_do_not_grow_the_memory(self) -> None:
        classifier, batch, target = captured("residual"), images(1), torch.tensor([0])
        pathway = neuron_mct(classifier, batch, target).select(0.5)
        grown = []
        tracemalloc.start()
        try:
            for _ in range(12):
                linearity_error(classifier, batch, target, pathway, batch, 0.1, points=1)
                gc.collect()
                # What other threads of the process allocate meanwhile is none of it.
                ours = [tracemalloc.Filter(True, f"*/{package}/*") for package in ("pathlens", "torch")]
                found = tracemalloc.take_snapshot().filter_traces(ours).statistics("filename")
                grown.append(sum(statistic.size for statistic in found))
        finally:
            tracemalloc.stop()
        # A leak grows with every call; what torch allocates once, for whatever the process did before, does not.
        assert np.median(np.diff(grown[1:])) < 1024


class TestTwoThreads:
    @pytest.mark.parametrize("name", ["residual", "transformer"])
    def test_measure_at_the_same_time_what_one_measures(self, name: str) -> None:
        alone = [measures(captured(name), seed) for seed in range(6)]
        for got, expected in zip(together(lambda seed: measures(captured(name), seed), 6), alone, strict=True):
            assert all(torch.allclose(a.float(), b.float(), atol=1e-6) for a, b in zip(got, expected, strict=True))

    @each_option
    def test_explain_at_the_same_time_what_one_explains(self, options: ExplanationOptions) -> None:
        alone = [explain(options, seed) for seed in range(12)]
        explainer = tiny_explainer()
        for got, expected in zip(
            together(lambda seed: explainer.explain([pixels(seed)], options)[0], 12), alone, strict=True
        ):
            assert got.predictions == expected.predictions
            for one, other in zip(got.explanations, expected.explanations, strict=True):
                # The first requests for a class run with masks while its slice is cut: equal but for rounding.
                assert (one.linearity is None) == (other.linearity is None)
                if one.linearity is not None and other.linearity is not None:
                    assert abs(one.linearity.relative_error - other.linearity.relative_error) < 1e-6
                assert np.abs(picture(one.overlay_png) - picture(other.overlay_png)).max(initial=0) <= 1
                assert (one.map is None) == (other.map is None)
                if one.map is not None and other.map is not None:
                    np.testing.assert_array_equal(one.map, other.map)
                for a, b in zip(one.pathway, other.pathway, strict=True):
                    np.testing.assert_array_equal(a.mask, b.mask)


def together(work: Callable[[int], T], count: int) -> list[T]:
    with ThreadPoolExecutor(2) as threads:
        return list(threads.map(work, range(count)))
