"""What a batch answers is what each of its items gets alone."""

import logging
import threading
from io import BytesIO
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from pathlens.classifier.captured import CapturedClassifier, Trace
from pathlens.classifier.decoding import decode_picture
from pathlens.errors import InternalError, PathlensError, ResourceExhaustedError
from pathlens.explainer.backend import LARGEST_RUN
from pathlens.explanation import (
    Explanation,
    ExplanationOptions,
    ExplanationRequest,
    ExplanationResult,
    Granularity,
    Output,
    PathwaySource,
    Reduction,
    Targets,
)
from tiny_bundle import LABELS, WITHOUT_PATHWAY, pixels, png, tensor, tiny_explainer
from tiny_graphs import KINDS, kind_for

pytestmark = pytest.mark.usefixtures("backend")
TORCH_ALONE = pytest.mark.parametrize("backend", ["torch"], indirect=True)

Answer = ExplanationResult | PathlensError

IMAGES: list[Any] = [
    png(pixels(0)),
    png(pixels(1, 9, 9)),
    png(pixels(2)[:, :, 0]),
    pixels(3, 40, 7),
    pixels(4)[:, :, 1].copy(),
    tensor(5),
    tensor(6),
]
BAD_IMAGES: list[Any] = [
    b"",
    b"not an image",
    png(pixels(0))[:60],
    np.zeros((0, 0, 3), np.uint8),
    np.zeros((3, 8, 9), np.float32),
    np.full((3, 8, 8), np.nan, np.float32),
    np.full((3, 8, 8), 3e38, np.float32),
    np.zeros((3, 8, 8), np.float64),
]
TARGETS = [
    Targets(),
    Targets(top_k=3),
    Targets(class_indices=(0, 2)),
    Targets(top_k=1, labels=("cow", "ant")),
    Targets(class_indices=(WITHOUT_PATHWAY,)),
    Targets(labels=("unicorn",)),
    Targets(class_indices=(-1,)),
    Targets(top_k=9),
]

options = st.builds(
    ExplanationOptions,
    targets=st.sampled_from(TARGETS),
    source=st.sampled_from([PathwaySource.TRANSFERRED, PathwaySource.NEURON_MCT, PathwaySource.GENERATED]),
    sparsity=st.sampled_from([None, None, None, None, 0.0, 0.5, 0.8, 1.0]),
    granularity=st.sampled_from([None, None, *Granularity]),
    outputs=st.frozensets(st.sampled_from(Output)),
    reduction=st.sampled_from(Reduction),
    top_neurons=st.sampled_from([0, 0, 3, 1000]),
    predictions=st.integers(1, 7),
)
requests = st.builds(
    ExplanationRequest,
    image=st.sampled_from([*IMAGES, *IMAGES, *BAD_IMAGES]),
    options=st.none() | options | st.builds(ExplanationOptions, targets=st.sampled_from(TARGETS[:4])),
    predictions=st.integers(1, 7),
)


@given(batch=st.lists(requests, min_size=1, max_size=6), kind=st.integers(0, len(KINDS) - 1))
@settings(max_examples=25)
def test_every_item_of_a_mixed_batch_gets_what_it_gets_alone(
    backend: str, batch: list[ExplanationRequest], kind: int
) -> None:
    explainer = tiny_explainer(*kind_for(backend, kind))
    together = explainer.answer(batch)
    assert len(together) == len(batch)
    for request, answer in zip(batch, together, strict=True):
        assert_same(answer, explainer.answer([request])[0])


def test_an_empty_batch_has_an_empty_answer() -> None:
    assert tiny_explainer().answer([]) == []


@pytest.mark.parametrize("source", [PathwaySource.TRANSFERRED, PathwaySource.GENERATED, PathwaySource.NEURON_MCT])
def test_errors_stay_with_their_items(source: PathwaySource) -> None:
    wanted = ExplanationOptions(source=source)
    batch = [ExplanationRequest(image, wanted) for image in (BAD_IMAGES[0], tensor(0), BAD_IMAGES[6], tensor(1))]
    first, second, third, fourth = tiny_explainer().answer(batch)
    assert isinstance(first, PathlensError)
    assert first.reason == "IMAGE_EMPTY"
    assert isinstance(third, PathlensError)
    assert third.reason == "OUTPUT_NOT_FINITE"
    assert isinstance(second, ExplanationResult)
    assert isinstance(fourth, ExplanationResult)


def test_explain_raises_the_first_error() -> None:
    with pytest.raises(PathlensError, match="empty"):
        tiny_explainer().explain([tensor(0), b"", b"not an image"])


@TORCH_ALONE
@pytest.mark.parametrize("source", [PathwaySource.TRANSFERRED, PathwaySource.GENERATED, PathwaySource.NEURON_MCT])
def test_more_rows_than_the_largest_run_are_answered_in_several_runs(
    source: PathwaySource, monkeypatch: pytest.MonkeyPatch
) -> None:
    explainer = tiny_explainer(slice_bytes=0)
    wanted = ExplanationOptions(Targets(class_indices=(0, 1, 2)), source)
    batch = [ExplanationRequest(tensor(seed), wanted) for seed in range(LARGEST_RUN + 3)]
    alone = [explainer.answer([request])[0] for request in batch]
    sizes: list[int] = []
    run = CapturedClassifier.run

    def counted(classifier: CapturedClassifier, images: Tensor, *arguments: Any) -> Tensor:
        sizes.append(len(images))
        return run(classifier, images, *arguments)

    # Of all classifiers: the accelerated one predicts, and a slice is one, too.
    monkeypatch.setattr(CapturedClassifier, "run", counted)
    for answer, expected in zip(explainer.answer(batch), alone, strict=True):
        assert_same(answer, expected)
    # Each image once for its prediction, and once for each of its three targets.
    assert sum(sizes) == 4 * len(batch)
    assert max(sizes) == LARGEST_RUN


def test_two_threads_at_once_get_what_each_gets_alone() -> None:
    explainer = tiny_explainer()
    batches = [
        [
            ExplanationRequest(tensor(seed), ExplanationOptions(Targets(2), source, granularity=granularity))
            for seed in range(start, start + 3)
        ]
        for start, source, granularity in (
            (0, PathwaySource.TRANSFERRED, None),
            (3, PathwaySource.NEURON_MCT, Granularity.UNIT),
        )
    ]
    alone = [explainer.answer([*batch]) for batch in batches]
    answers: list[list[list[Answer]]] = [[], []]
    barrier = threading.Barrier(2)

    def work(number: int) -> None:
        barrier.wait()
        for _ in range(20):
            answers[number].append(explainer.answer(batches[number]))

    threads = [threading.Thread(target=work, args=(number,)) for number in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number in (0, 1):
        assert len(answers[number]) == 20
        for repetition in answers[number]:
            for answer, expected in zip(repetition, alone[number], strict=True):
                assert_same(answer, expected)


def test_a_defect_in_one_item_is_logged_and_its_text_is_not_told(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    explainer = tiny_explainer()

    def broken(data: bytes, *arguments: Any) -> Any:
        if data == b"broken":
            raise RuntimeError("the secret of /etc/shadow")
        return decode_picture(data, *arguments)

    monkeypatch.setattr("pathlens.explainer.explainer.decode_picture", broken)
    good = ExplanationRequest(png(pixels(0)))
    with caplog.at_level(logging.ERROR, "pathlens"):
        failed, answer = explainer.answer([ExplanationRequest(b"broken"), good])
    assert isinstance(failed, InternalError)
    assert "secret" not in f"{failed} {failed.metadata}"
    assert "the secret of /etc/shadow" in caplog.text
    assert_same(answer, explainer.answer([good])[0])


def test_a_defect_while_drawing_one_item_leaves_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    explainer = tiny_explainer()
    heatmap = ExplanationRequest(tensor(0), ExplanationOptions(outputs=frozenset({Output.HEATMAP})))
    plain = ExplanationRequest(tensor(1))

    def broken(*_: Any) -> bytes:
        raise RuntimeError("secret")

    monkeypatch.setattr("pathlens.explainer.results.draw_heatmap", broken)
    first, failed, last = explainer.answer([plain, heatmap, plain])
    assert isinstance(failed, InternalError)
    assert "secret" not in str(failed)
    assert_same(first, last)
    assert isinstance(first, ExplanationResult)


def test_a_defect_in_one_pass_leaves_the_items_of_other_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    explainer = tiny_explainer()
    trace = CapturedClassifier.trace

    def broken(classifier: CapturedClassifier, images: Tensor, pathway: Any = None) -> Trace:
        if pathway is None:
            raise RuntimeError("secret")
        return trace(classifier, images, pathway)

    monkeypatch.setattr(CapturedClassifier, "trace", broken)
    traced = ExplanationRequest(tensor(0), ExplanationOptions(source=PathwaySource.NEURON_MCT))
    failed, answer = explainer.answer([traced, ExplanationRequest(tensor(0))])
    assert isinstance(failed, InternalError)
    assert isinstance(answer, ExplanationResult)


@TORCH_ALONE
def test_a_full_device_memory_is_a_resource_that_may_come_back(monkeypatch: pytest.MonkeyPatch) -> None:
    explainer = tiny_explainer()

    def full(*_: Any) -> Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory: 3 GiB in use by process 4711")

    monkeypatch.setattr(CapturedClassifier, "run", full)
    (error,) = explainer.answer([ExplanationRequest(tensor(0))])
    assert isinstance(error, ResourceExhaustedError)
    assert error.reason == "OUT_OF_MEMORY"
    assert error.retry_after
    assert "4711" not in str(error)


def assert_same(answer: Answer, expected: Answer) -> None:
    if isinstance(expected, PathlensError):
        assert isinstance(answer, PathlensError)
        assert describe(answer) == describe(expected)
        return
    assert isinstance(answer, ExplanationResult)
    assert [one.class_index for one in answer.predictions] == [one.class_index for one in expected.predictions]
    for one, other in zip(answer.predictions, expected.predictions, strict=True):
        assert one.label == other.label == LABELS[one.class_index]
        assert (one.probability, one.logit) == pytest.approx((other.probability, other.logit), abs=1e-5, rel=1e-5)
    for this, that in zip(answer.explanations, expected.explanations, strict=True):
        assert_same_explanation(this, that)


def assert_same_explanation(this: Explanation, that: Explanation) -> None:
    apart = {
        *("map", "pathway", "heatmap_png", "overlay_png", "top_neurons", "target", "faithfulness", "typicality"),
    }
    without = {key: value for key, value in vars(this).items() if key not in apart}
    assert without == {key: value for key, value in vars(that).items() if key not in apart}
    assert (this.typicality is None) == (that.typicality is None)
    if this.typicality and that.typicality:
        # A value that rounds the other way may pass one of the 40 images that it is compared with.
        assert tuple(vars(this.typicality).values()) == pytest.approx(tuple(vars(that.typicality).values()), abs=0.03)
    assert this.target.class_index == that.target.class_index
    assert (this.faithfulness is None) == (that.faithfulness is None)
    if this.faithfulness and that.faithfulness:
        assert tuple(vars(this.faithfulness).values()) == pytest.approx(
            tuple(vars(that.faithfulness).values()), abs=1e-5
        )
    assert (this.map is None) == (that.map is None)
    if this.map is not None and that.map is not None:
        np.testing.assert_allclose(this.map, that.map, atol=1e-5, rtol=1e-5)
    for mask, other in zip(this.pathway, that.pathway, strict=True):
        assert mask.tap == other.tap
        np.testing.assert_array_equal(mask.mask, other.mask)
    for neuron, twin in zip(this.top_neurons, that.top_neurons, strict=True):
        assert neuron.contribution == pytest.approx(twin.contribution, abs=1e-5, rel=1e-5)
    for picture, same in ((this.heatmap_png, that.heatmap_png), (this.overlay_png, that.overlay_png)):
        assert bool(picture) == bool(same)
        if picture:
            # A value on the edge between two colours may take either.
            np.testing.assert_allclose(opened(picture), opened(same), atol=8)


def opened(picture: bytes) -> Any:
    return np.asarray(Image.open(BytesIO(picture))).astype(int)


def describe(error: PathlensError) -> tuple[object, ...]:
    return type(error), error.message, error.reason, error.field, error.metadata, error.retry_after
