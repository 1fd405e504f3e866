"""What one request may cost, and when work on it ends."""

import time

import numpy as np
import pytest
import torch

from pathlens.errors import DeadlineExceededError, InvalidRequestError
from pathlens.explanation import (
    MAX_TARGETS,
    MAX_TOP_NEURONS,
    ExplanationOptions,
    ExplanationRequest,
    ExplanationResult,
    Output,
    PathwaySource,
    Targets,
)
from tiny_bundle import pixels, tiny_bundle, tiny_explainer

pytestmark = pytest.mark.usefixtures("backend")

MCT = PathwaySource.NEURON_MCT


@pytest.mark.parametrize(
    "targets", [Targets(class_indices=(0,) * 17), Targets(top_k=5, labels=("ant",) * 12)], ids=["indices", "mixed"]
)
def test_more_targets_than_an_answer_holds_are_refused(targets: Targets) -> None:
    with pytest.raises(InvalidRequestError, match=f"at most {MAX_TARGETS} classes") as refusal:
        tiny_explainer().explain([pixels()], ExplanationOptions(source=MCT, targets=targets))
    assert refusal.value.metadata["limit"] == str(MAX_TARGETS)


def test_more_neurons_than_an_answer_holds_are_refused() -> None:
    with pytest.raises(InvalidRequestError) as refusal:
        tiny_explainer().explain([pixels()], ExplanationOptions(source=MCT, top_neurons=MAX_TOP_NEURONS + 1))
    assert refusal.value.field == "options.top_neurons"


def test_an_expired_item_fails_alone() -> None:
    options = ExplanationOptions(source=MCT)
    expired, alive = tiny_explainer().answer(
        [
            ExplanationRequest(pixels(), options, deadline=time.time() - 1),
            ExplanationRequest(pixels(), options, deadline=time.time() + 60),
        ]
    )
    assert isinstance(expired, DeadlineExceededError)
    assert isinstance(alive, ExplanationResult)


def test_work_ends_where_the_deadline_passes_between_two_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    explainer = tiny_explainer()
    now = [0.0]
    monkeypatch.setattr(time, "time", lambda: now[0])
    predict = explainer._predict

    def slow(*arguments: object) -> None:
        predict(*arguments)  # type: ignore[arg-type]
        now[0] = 10.0

    monkeypatch.setattr(explainer, "_predict", slow)
    for run in ("pathway_logits", "pathway_run"):
        monkeypatch.setattr(explainer.backend, run, lambda *_: pytest.fail("it ran after the deadline"))
    (answer,) = explainer.answer([ExplanationRequest(pixels(), ExplanationOptions(source=MCT), deadline=5.0)])
    assert isinstance(answer, DeadlineExceededError)


def test_whole_photographs_are_not_kept_for_pictures_that_are_smaller() -> None:
    photograph = np.zeros((50, 5000, 3), np.uint8)
    (answer,) = tiny_explainer().explain(
        [photograph], ExplanationOptions(source=MCT, outputs=frozenset({Output.OVERLAY}))
    )
    # Width and height in the header of the PNG.
    assert answer.explanations[0].overlay_png[16:24] == (2048).to_bytes(4, "big") + (20).to_bytes(4, "big")


def test_a_device_that_this_torch_lacks_is_replaced_by_the_cpu(caplog: pytest.LogCaptureFixture) -> None:
    if torch.cuda.is_available():
        pytest.skip("this torch can use CUDA")
    explainer = tiny_bundle().explainer("cuda:0")
    assert explainer.classifier.device.type == "cpu"
    assert "cuda:0" in caplog.text


def test_moving_an_explainer_leaves_its_bundle_where_it_is() -> None:
    classifier = tiny_bundle().classifier
    moved = classifier.to("meta")
    assert (moved.device.type, classifier.device.type) == ("meta", "cpu")
