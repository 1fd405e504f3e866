"""Generated pathways of an evaluation: ranked as the generator ranks, and whole at their own sparsity."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pathlens.errors import EvaluationError
from pathlens.evaluation.generated import generated_contributions, generated_pathway
from pathlens.explanation import Ablation, Granularity
from pathlens.generator.generator import PathwayGenerator
from tiny_bundle import INPUT_SHAPE, tiny_bundle

IMAGES = torch.randn(4, *INPUT_SHAPE, generator=torch.Generator().manual_seed(5))


def generator(granularity: Granularity, factor: float = 1.0) -> PathwayGenerator:
    """A generator whose scores are larger by some factor."""
    fitted = tiny_bundle(granularity).generator
    assert fitted is not None
    larger = fitted.frozen()
    for layer in larger.decoder.scores:
        for parameter in layer.parameters():
            parameter.mul_(factor)
    return larger


@settings(max_examples=20)
@given(st.sampled_from(Granularity), st.sampled_from([1e-2, 1.0, 1e3]))
def test_the_order_of_the_scores_is_kept_however_large_they_are(granularity: Granularity, factor: float) -> None:
    scaled, classifier = generator(granularity, factor), tiny_bundle(granularity).classifier
    activations = classifier.observe(IMAGES).activations
    with torch.no_grad():
        scores = torch.cat([score.flatten(1) for score in scaled(activations).scores], 1)
    ranked = generated_contributions(scaled, classifier, IMAGES).flat_scores()
    assert bool((ranked > 0).all())
    for row in range(len(IMAGES)):
        apart = scores[row][scores[row].argsort()]
        along = ranked[row][scores[row].argsort()]
        assert bool((along.diff() >= 0).all())
        # What the logistic function in float32 would make equal stays apart.
        assert bool((along.diff()[apart.diff() > 1e-4 * apart[1:].abs().clamp(min=1)] > 0).all())


@pytest.mark.parametrize("granularity", Granularity)
def test_as_many_neurons_as_the_generator_keeps_are_the_ones_that_it_keeps(granularity: Granularity) -> None:
    made, classifier = generator(granularity), tiny_bundle(granularity).classifier
    own = generated_pathway(made, classifier, IMAGES)
    for row in range(len(IMAGES)):
        contributions = generated_contributions(made, classifier, IMAGES[row : row + 1])
        assert torch.equal(contributions.select(float(own.sparsity[row])).flat(), own[[row]].flat())


def test_the_predicted_class_says_what_stands_in_for_removed_neurons() -> None:
    bundle = tiny_bundle(ablation=Ablation.OPTIMAL)
    assert bundle.generator is not None
    pathway = generated_pathway(bundle.generator, bundle.classifier, IMAGES, bundle.bank.replacement)
    expected = bundle.bank.replacement_of(bundle.classifier(IMAGES).argmax(1))
    assert pathway.ablation is Ablation.OPTIMAL
    assert all(map(torch.equal, pathway.replacement.values, expected.values))


def test_scores_that_are_not_finite_are_refused() -> None:
    broken = generator(Granularity.CHANNEL, float("nan"))
    with pytest.raises(EvaluationError, match="not finite"):
        generated_contributions(broken, tiny_bundle().classifier, IMAGES)
