"""Pathways by NeuronIntGrad, as the explainer answers them."""

import time
from typing import Any

import numpy as np
import pytest
import torch

from pathlens.errors import DeadlineExceededError, InvalidRequestError
from pathlens.explanation import (
    MAX_INTEGRATION_STEPS,
    ExplanationOptions,
    ExplanationRequest,
    ExplanationResult,
    Granularity,
    PathwaySource,
    Targets,
)
from pathlens.pathways.neuron_intgrad import neuron_intgrad
from tiny_bundle import INSTANCE_SPARSITY, tensor, tiny_bundle, tiny_explainer


def integrated(**options: Any) -> ExplanationOptions:
    return ExplanationOptions(source=PathwaySource.NEURON_INTGRAD, **options)


@pytest.mark.parametrize("granularity", Granularity)
def test_the_pathway_is_the_one_of_the_python_function(granularity: Granularity) -> None:
    options = integrated(
        targets=Targets(class_indices=(0, 2)), granularity=granularity, sparsity=0.4, integration_steps=7
    )
    (result,) = tiny_explainer().explain([tensor(3)], options)
    images = torch.from_numpy(tensor(3))[None].repeat(2, 1, 1, 1)
    scores = neuron_intgrad(tiny_bundle().classifier, images, torch.tensor([0, 2]), 7, granularity)
    expected = scores.select(0.4)
    for row, explanation in enumerate(result.explanations):
        for part, mask in zip(explanation.pathway, expected.masks, strict=True):
            np.testing.assert_array_equal(part.mask, mask[row].numpy())
        assert explanation.source is PathwaySource.NEURON_INTGRAD


def test_the_sparsity_of_the_bundle_is_the_default() -> None:
    ((explanation,),) = (result.explanations for result in tiny_explainer().explain([tensor()], integrated()))
    assert explanation.sparsity >= INSTANCE_SPARSITY - 1e-9


def test_it_shares_a_batch_with_other_sources() -> None:
    requests = [
        ExplanationRequest(tensor(seed), options)
        for seed, options in enumerate(
            [integrated(), ExplanationOptions(source=PathwaySource.NEURON_MCT), integrated(), None]
        )
    ]
    together = tiny_explainer().answer(requests)
    for request, answer in zip(requests, together, strict=True):
        (alone,) = tiny_explainer().answer([request])
        assert isinstance(answer, ExplanationResult)
        assert isinstance(alone, ExplanationResult)
        for one, other in zip(answer.explanations, alone.explanations, strict=True):
            for a, b in zip(one.pathway, other.pathway, strict=True):
                np.testing.assert_array_equal(a.mask, b.mask)


def test_work_on_it_ends_between_two_passes_once_the_deadline_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter(range(10_000))
    monkeypatch.setattr(time, "time", lambda: float(next(times)))
    (answer,) = tiny_explainer().answer([ExplanationRequest(tensor(), integrated(), deadline=4.5)])
    assert isinstance(answer, DeadlineExceededError)
    # Fewer than the passes of the first two taps were begun.
    assert next(times) < 10


def test_more_steps_over_all_targets_than_a_request_may_cost_are_refused() -> None:
    targets = Targets(class_indices=(0, 1, 2))
    with pytest.raises(InvalidRequestError, match="34; it is too many for 3 targets; ask for at most 100 steps"):
        tiny_explainer().explain([tensor()], integrated(targets=targets, integration_steps=34))
    tiny_explainer().explain([tensor()], integrated(targets=targets, integration_steps=33))


def test_what_takes_many_passes_does_not_use_up_the_time_of_others(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(time, "time", lambda: now[0])
    explainer = tiny_explainer()
    contributions = explainer._contributions
    integrate = contributions.integrate

    def slow(*arguments: Any) -> Any:
        now[0] = 10.0
        return integrate(*arguments)

    monkeypatch.setattr(contributions, "integrate", slow)
    answers = explainer.answer(
        [
            ExplanationRequest(tensor(), integrated(), deadline=5.0),
            ExplanationRequest(tensor(1), ExplanationOptions(source=PathwaySource.NEURON_MCT), deadline=5.0),
        ]
    )
    assert isinstance(answers[0], DeadlineExceededError)
    assert isinstance(answers[1], ExplanationResult)


@pytest.mark.parametrize("steps", [0, -1, MAX_INTEGRATION_STEPS + 1])
def test_steps_out_of_range_are_refused(steps: int) -> None:
    with pytest.raises(InvalidRequestError, match=f"integration_steps is {steps}; it must be from 1 to 100"):
        tiny_explainer().explain([tensor()], integrated(integration_steps=steps))
