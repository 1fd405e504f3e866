"""The linearity check, as the explainer answers it."""

import math

import pytest
import torch

from pathlens.attribution.linearity import POINTS, linearity_error
from pathlens.attribution.pathway_gradient import pathway_gradient
from pathlens.errors import InvalidRequestError
from pathlens.explanation import Ablation, ExplanationOptions, Granularity, Output, PathwaySource, Targets
from tiny_bundle import tensor, tiny_bundle, tiny_explainer


def test_it_is_the_error_of_the_python_function() -> None:
    options = ExplanationOptions(targets=Targets(class_indices=(0, 1)), linearity_radius=0.5)
    (result,) = tiny_explainer().explain([tensor(1)], options)
    classifier, images = tiny_bundle().classifier, torch.from_numpy(tensor(1))[None]
    for explanation in result.explanations:
        target = torch.tensor([explanation.target.class_index])
        pathway = tiny_bundle().bank.transfer(target.tolist())
        gradient = pathway_gradient(classifier, images, target, pathway)
        expected = float(linearity_error(classifier, images, target, pathway, gradient, 0.5))
        assert explanation.linearity is not None
        assert explanation.linearity.relative_error == pytest.approx(expected, rel=1e-4)
        assert (explanation.linearity.radius, explanation.linearity.points) == (0.5, POINTS)


def test_it_needs_no_output_that_is_drawn_from_the_gradient() -> None:
    options = ExplanationOptions(outputs=frozenset({Output.PATHWAY}), linearity_radius=0.1)
    ((explanation,),) = (result.explanations for result in tiny_explainer().explain([tensor()], options))
    assert explanation.linearity is not None
    assert explanation.map is None


def test_there_is_none_unless_asked_for() -> None:
    ((explanation,),) = (result.explanations for result in tiny_explainer().explain([tensor()]))
    assert explanation.linearity is None


@pytest.mark.parametrize("radius", [0.0, -1.0, 1e-7, 1e7, math.inf, math.nan])
def test_a_radius_that_is_none_is_refused(radius: float) -> None:
    with pytest.raises(InvalidRequestError, match=r"linearity_radius is .*; it must be from 1e-06 to 1e\+06"):
        tiny_explainer().explain([tensor()], ExplanationOptions(linearity_radius=radius))


@pytest.mark.parametrize("ablation", Ablation)
@pytest.mark.parametrize("granularity", Granularity)
def test_it_is_told_of_generated_pathways_whatever_their_layout_in_memory(
    granularity: Granularity, ablation: Ablation
) -> None:
    # Their masks have the layout of the accelerated classifier; linearity is checked with the original one.
    options = ExplanationOptions(source=PathwaySource.GENERATED, linearity_radius=0.1)
    ((explanation,),) = (
        result.explanations for result in tiny_explainer(granularity, ablation).explain([tensor()], options)
    )
    assert explanation.linearity is not None
