"""Transferred pathways are run as slices, and the answers are those of the masks."""

import logging
import threading
from collections.abc import Callable, Sequence, Set
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from equal_answers import Answer
from pathlens.attribution.pathway_gradient import PathwayRun
from pathlens.classifier.captured import CapturedClassifier
from pathlens.classifier.preprocessing import Preprocessing
from pathlens.errors import FailedPreconditionError, ResourceExhaustedError
from pathlens.explainer import Explainer
from pathlens.explainer.backend import LARGEST_RUN
from pathlens.explanation import (
    Ablation,
    Explanation,
    ExplanationOptions,
    ExplanationRequest,
    ExplanationResult,
    Granularity,
    Output,
    PathwaySource,
    Targets,
)
from pathlens.pathways.bank import ClassPathwayBank, count_pathways
from pathlens.pathways.neuron_mct import neuron_mct
from pathlens.pathways.pathway import Pathway
from pathlens.slicing import cache
from pathlens.slicing.cache import DEFAULT_BYTES, SliceCache
from pathlens.slicing.slice import Slice
from small_networks import CLASSES, NETWORKS, SIDE, captured, images
from tiny_bundle import TWO_SIDED, WITHOUT_PATHWAY, computing_with, tensor, tiny_explainer
from tiny_graphs import GRAPHED, KINDS, graphed_backend

STORED = tuple(range(WITHOUT_PATHWAY))
MAP = frozenset({Output.MAP})
MAP_AND_FAITHFULNESS = frozenset({Output.MAP, Output.FAITHFULNESS})
Kind = tuple[Granularity, Ablation]


@pytest.fixture(params=["torch", "onnxruntime"])
def name(request: pytest.FixtureRequest, graphs: None) -> str:
    return str(request.param)


def explainer_of(name: str, kind: Kind = GRAPHED[0], slice_bytes: int = DEFAULT_BYTES) -> Explainer:
    if name == "torch":
        return tiny_explainer(*kind, slice_bytes)
    with computing_with(lambda granularity, ablation: graphed_backend(granularity, ablation, slice_bytes)):
        return tiny_explainer(*kind)


def sliced(name: str, kind: Kind = GRAPHED[0]) -> Explainer:
    """Make an explainer that uses slices whether they are worth it or not: those of small networks hardly are."""
    return with_all_slices(explainer_of(name, kind))


def with_all_slices(explainer: Explainer) -> Explainer:
    slices = SliceCache(explainer.classifier, explainer.bank, DEFAULT_BYTES, most_work=1.0, cost_of_call=0)
    slices.warm(60)
    explainer.backend.slices = slices  # type: ignore[misc]
    return explainer


def masked(name: str, kind: Kind = GRAPHED[0]) -> Explainer:
    return explainer_of(name, kind, 0)


def asking(*classes: int, seed: int = 0, **wanted: Any) -> ExplanationRequest:
    options = {"outputs": MAP_AND_FAITHFULNESS, **wanted}
    return ExplanationRequest(tensor(seed), ExplanationOptions(Targets(class_indices=classes), **options))


MIXED = [
    asking(*STORED),
    asking(1, seed=1),
    asking(0, seed=2, top_neurons=3),
    asking(2, 1, seed=3, outputs=frozenset({Output.FAITHFULNESS})),
    asking(3, seed=4, linearity_radius=1e-3),
    asking(1, WITHOUT_PATHWAY, seed=5),
    asking(1, seed=6, source=PathwaySource.NEURON_MCT),
    asking(seed=7, source=PathwaySource.GENERATED, outputs=MAP),
    ExplanationRequest(tensor(8), None),
    asking(0, 2, seed=9),
]
"""Several targets, several sources, and what cannot be answered."""


def assert_same(found: Sequence[Answer], expected: Sequence[Answer]) -> None:
    for one, other in zip(found, expected, strict=True):
        if not isinstance(other, ExplanationResult):
            assert isinstance(one, type(other))
            assert one.message == other.message
            continue
        assert isinstance(one, ExplanationResult)
        assert one.predictions == other.predictions
        for explanation, same in zip(one.explanations, other.explanations, strict=True):
            assert_same_explanation(explanation, same)


def assert_same_explanation(found: Explanation, expected: Explanation) -> None:
    for name in ("target", "source", "granularity", "ablation", "sparsity", "class_pathway_iou", "typicality"):
        assert getattr(found, name) == getattr(expected, name)
    assert (found.map is None) == (expected.map is None)
    if found.map is not None and expected.map is not None:
        assert np.linalg.norm(found.map - expected.map) <= 1e-4 * np.linalg.norm(expected.map)
        assert found.map.flags.c_contiguous == expected.map.flags.c_contiguous
    assert (found.faithfulness is None) == (expected.faithfulness is None)
    if found.faithfulness and expected.faithfulness:
        assert vars(found.faithfulness) == pytest.approx(vars(expected.faithfulness), abs=1e-5)
    assert found.top_neurons == expected.top_neurons
    assert (found.linearity is None) == (expected.linearity is None)
    if found.linearity and expected.linearity:
        assert vars(found.linearity) == pytest.approx(vars(expected.linearity), abs=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_a_mixed_batch_is_answered_as_with_masks(kind: Kind) -> None:
    assert_same(sliced("torch", kind).answer(MIXED), masked("torch", kind).answer(MIXED))


@pytest.mark.usefixtures("graphs")
@pytest.mark.parametrize("kind", GRAPHED)
def test_a_mixed_batch_is_answered_by_onnx_runtime_as_with_masks(kind: Kind) -> None:
    assert_same(sliced("onnxruntime", kind).answer(MIXED), masked("onnxruntime", kind).answer(MIXED))


@pytest.mark.parametrize("network", NETWORKS)
def test_small_networks_are_explained_as_with_masks(network: str) -> None:
    classifier = captured(network)
    bank = bank_of(classifier)
    preprocessing = Preprocessing(SIDE, SIDE, mean=(0.5,) * 3, std=(0.5,) * 3)
    labels = [str(label) for label in range(CLASSES)]
    requests = [
        ExplanationRequest(image.numpy(), ExplanationOptions(Targets(top_k=2), outputs=MAP_AND_FAITHFULNESS))
        for image in images(5)
    ]
    with_masks = Explainer(classifier, preprocessing, labels, bank, 0.5, slice_bytes=0)
    with_slices = with_all_slices(Explainer(classifier, preprocessing, labels, bank, 0.5))
    assert_same(with_slices.answer(requests), with_masks.answer(requests))


def bank_of(classifier: CapturedClassifier) -> ClassPathwayBank:
    classes = torch.arange(12) % CLASSES
    pathways = neuron_mct(classifier, images(12, seed=1), classes, Granularity.CHANNEL).select(0.5)
    return ClassPathwayBank(classifier.taps, Granularity.CHANNEL, 0.5, count_pathways([(classes, pathways)]))


class Passes:
    """What an explainer runs of pathways: the images of each pass through a slice and through masks."""

    def __init__(self, explainer: Explainer, monkeypatch: pytest.MonkeyPatch) -> None:
        self.sliced: list[int] = []
        self.masked: list[int] = []
        run, classify, run_masked = Slice.run, Slice.logits, explainer.backend.pathway_run

        def noted_run(part: Slice, batch: Tensor, target: Tensor) -> PathwayRun:
            self.sliced.append(len(batch))
            return run(part, batch, target)

        def noted_logits(part: Slice, batch: Tensor) -> Tensor:
            self.sliced.append(len(batch))
            return classify(part, batch)

        def noted_masks(
            batch: Tensor, target: Tensor, pathway: Pathway, with_contributions: bool = False
        ) -> PathwayRun:
            self.masked.append(len(batch))
            return run_masked(batch, target, pathway, with_contributions)

        monkeypatch.setattr(Slice, "run", noted_run)
        monkeypatch.setattr(Slice, "logits", noted_logits)
        monkeypatch.setattr(explainer.backend, "pathway_run", noted_masks)


class TestWhatIsRun:
    def test_images_of_one_class_are_one_run(self, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
        explainer = sliced(name)
        passes = Passes(explainer, monkeypatch)
        explainer.answer([asking(label, seed=seed) for seed, label in enumerate([0, 1, 0, 2, 1, 0])])
        assert (sorted(passes.sliced), passes.masked) == ([1, 2, 3], [])

    def test_of_faithfulness_alone_the_slice_runs_forward(self, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
        explainer = sliced(name)
        passes = Passes(explainer, monkeypatch)
        explainer.answer([asking(label, outputs=frozenset({Output.FAITHFULNESS})) for label in (0, 0, 1)])
        assert (sorted(passes.sliced), passes.masked) == ([1, 2], [])

    def test_rows_of_a_class_come_together_in_large_batches_and_no_run_is_larger_than_the_largest(
        self, name: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        explainer = sliced(name)
        passes = Passes(explainer, monkeypatch)
        explainer.answer([asking(0, 1, seed=seed) for seed in range(LARGEST_RUN + 4)])
        assert sorted(passes.sliced) == [4, 8, 12, LARGEST_RUN]

    def test_contributions_need_masks_and_the_others_of_their_batch_do_not(
        self, name: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        explainer = sliced(name)
        passes = Passes(explainer, monkeypatch)
        explainer.answer([asking(0, seed=0), asking(0, seed=1, top_neurons=2), asking(0, seed=2)])
        assert (passes.sliced, passes.masked) == ([2], [1])

    def test_other_sources_use_no_slices(self, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
        explainer = sliced(name)
        passes = Passes(explainer, monkeypatch)
        others = [PathwaySource.NEURON_MCT, PathwaySource.GENERATED, PathwaySource.NEURON_INTGRAD]
        explainer.answer([asking(0, source=source, integration_steps=2) for source in others])
        assert passes.sliced == []
        assert sum(passes.masked) == len(others)

    def test_classes_whose_slices_save_too_little_share_one_masked_run(
        self, name: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        explainer = explainer_of(name)
        explainer.warm(60)
        passes = Passes(explainer, monkeypatch)
        batch = [asking(label, seed=seed) for seed, label in enumerate([*STORED, *[TWO_SIDED] * 7])]
        answers = explainer.answer(batch)
        assert (passes.sliced, passes.masked) == ([], [len(batch)])
        assert_same(answers, masked(name).answer(batch))
        explainer.answer([asking(TWO_SIDED)])
        assert passes.sliced == [1]

    def test_without_memory_for_slices_everything_is_one_masked_run(
        self, name: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        explainer = masked(name)
        explainer.warm(60)
        passes = Passes(explainer, monkeypatch)
        explainer.answer([asking(label, seed=label) for label in STORED])
        assert (passes.sliced, passes.masked) == ([], [len(STORED)])


def test_what_fails_in_cutting_fails_no_request(
    name: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: object) -> Slice:
        raise RuntimeError("a defect of the cut")

    caplog.set_level(logging.INFO)
    monkeypatch.setattr(cache, "cut", broken)
    batch = [asking(0, seed=seed) for seed in range(4)]
    assert_same(explainer_of(name).answer(batch), masked(name).answer(batch))
    assert [record.levelname for record in caplog.records if record.exc_info] == ["ERROR"]
    assert "a defect of the cut" in caplog.text


@pytest.mark.parametrize("outputs", [MAP_AND_FAITHFULNESS, frozenset({Output.FAITHFULNESS})])
def test_a_slice_that_fails_is_given_up_and_its_rows_are_run_with_masks(
    name: str, outputs: frozenset[Output], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    explainer = sliced(name)
    broken = {explainer.backend.slices.get(0), explainer.backend.slices.get(2)}
    for method in ("run", "logits"):
        monkeypatch.setattr(Slice, method, failing_for(broken, getattr(Slice, method), RuntimeError("a defect")))
    batch = [asking(label, seed=label, outputs=outputs) for label in (2, 0, 1, 0)]
    for _ in range(2):
        assert_same(explainer.answer(batch), masked(name).answer(batch))
    assert [label in explainer.backend.slices for label in STORED] == [label not in (0, 2) for label in STORED]
    assert [record.levelname for record in caplog.records if record.exc_info] == ["ERROR"]


@pytest.mark.parametrize("error", [MemoryError("no room"), torch.OutOfMemoryError("no room")])
def test_a_slice_that_finds_no_memory_is_kept_and_the_request_may_come_again(
    name: str, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    explainer = sliced(name)
    monkeypatch.setattr(Slice, "run", failing_for({explainer.backend.slices.get(0)}, Slice.run, error))
    (answer,) = explainer.answer([asking(0)])
    assert isinstance(answer, ResourceExhaustedError)
    assert 0 in explainer.backend.slices


def failing_for(broken: Set[Slice | None], method: Callable[..., Any], error: Exception) -> Callable[..., Any]:
    def failing(part: Slice, *arguments: Tensor) -> Any:
        if part in broken:
            raise error
        return method(part, *arguments)

    return failing


def test_a_class_without_a_stored_pathway_is_refused_as_before(name: str) -> None:
    (answer,) = sliced(name).answer([asking(WITHOUT_PATHWAY)])
    assert isinstance(answer, FailedPreconditionError)


def test_threads_that_share_slices_and_lose_them_answer_as_one_does(
    name: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(cache, "_ASKS_BETWEEN_CUTS", 0)
    explainer = explainer_of(name)
    # Room for two of four.
    room = sliced(name).backend.slices.bytes // 2
    explainer.backend.slices = SliceCache(explainer.classifier, explainer.bank, room, most_work=1.0, cost_of_call=0)  # type: ignore[misc]
    batches = [[asking(label, (label + 1) % 4, seed=seed) for label in STORED] for seed in range(4)]
    expected = [masked(name).answer(batch) for batch in batches]
    answers: list[tuple[int, list[Answer]]] = []

    def work(number: int) -> None:
        answers.extend((number, list(explainer.answer(batches[number]))) for _ in range(3))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(len(batches))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(answers) == 12
    for number, found in answers:
        assert_same(found, expected[number])
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
