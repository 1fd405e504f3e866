"""The pathway of an explanation: where it comes from, what it keeps and what it is worth."""

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

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
from pathlens.pathways.neuron_mct import neuron_mct
from pathlens.pathways.pathway import Pathway
from tiny_bundle import (
    INSTANCE_SPARSITY,
    LABELS,
    TWO_SIDED,
    WITHOUT_PATHWAY,
    pixels,
    tensor,
    tiny_bundle,
    tiny_explainer,
)

GRANULARITIES = pytest.mark.parametrize("granularity", list(Granularity))
STORED = range(WITHOUT_PATHWAY)
MCT = PathwaySource.NEURON_MCT
NEURONS = {Granularity.CHANNEL: 4 + 6 + 8, Granularity.UNIT: 4 * 64 + 6 * 9 + 8}


def explain(seed: int, target: int, bank: Granularity = Granularity.CHANNEL, **options: Any) -> Explanation:
    wanted = ExplanationOptions(targets=Targets(class_indices=(target,)), **options)
    (result,) = tiny_explainer(bank).explain([tensor(seed)], wanted)
    (explanation,) = result.explanations
    return explanation


def flat(explanation: Explanation) -> Any:
    return np.concatenate([part.mask.ravel() for part in explanation.pathway])


def batch(seed: int) -> Tensor:
    return torch.from_numpy(tensor(seed))[None]


@GRANULARITIES
@pytest.mark.parametrize("target", STORED)
def test_a_transferred_pathway_is_the_stored_pathway_of_its_class(granularity: Granularity, target: int) -> None:
    explanation = explain(0, target, granularity)
    stored = tiny_bundle(granularity).bank.transfer([target])
    assert [part.tap for part in explanation.pathway] == ["relu#1", "relu#2", "relu#3"]
    for part, mask in zip(explanation.pathway, stored.masks, strict=True):
        np.testing.assert_array_equal(part.mask, mask[0].numpy())
    assert explanation.source is PathwaySource.TRANSFERRED
    assert explanation.granularity is granularity
    assert explanation.ablation is Ablation.ZERO


@pytest.mark.parametrize("target", STORED)
def test_a_transferred_pathway_agrees_entirely_with_the_pathway_of_its_class(target: int) -> None:
    assert explain(0, target).class_pathway_iou == 1.0


@given(
    seed=st.integers(0, 1000),
    target=st.integers(0, len(LABELS) - 1),
    sparsity=st.floats(0, 1, exclude_max=True),
    granularity=st.sampled_from(Granularity),
)
@settings(max_examples=25)
def test_a_contribution_pathway_is_that_of_neuron_mct(
    seed: int, target: int, sparsity: float, granularity: Granularity
) -> None:
    explanation = explain(seed, target, source=MCT, sparsity=sparsity, granularity=granularity)
    scores = neuron_mct(tiny_bundle().classifier, batch(seed), torch.tensor([target]), granularity)
    np.testing.assert_array_equal(flat(explanation), scores.select(sparsity).flat()[0].numpy())


@given(
    seed=st.integers(0, 1000), sparsity=st.floats(0.6, 1, exclude_max=True), granularity=st.sampled_from(Granularity)
)
@settings(max_examples=25)
def test_sparsity_is_exact_where_enough_neurons_contribute(
    seed: int, sparsity: float, granularity: Granularity
) -> None:
    explanation = explain(seed, 1, source=MCT, sparsity=sparsity, granularity=granularity)
    neurons = NEURONS[granularity]
    wanted = round((1 - sparsity) * neurons)
    scores = neuron_mct(tiny_bundle().classifier, batch(seed), torch.tensor([1]), granularity).scores
    contributing = sum(int((score > 0).sum()) for score in scores)
    assert int(flat(explanation).sum()) == min(wanted, contributing)
    assert explanation.sparsity == 1 - min(wanted, contributing) / neurons


@GRANULARITIES
def test_each_target_of_an_item_and_each_item_of_a_batch_has_its_own_contributions(granularity: Granularity) -> None:
    wanted = {0: (3, 0, 1), 1: (2,), 2: (1, 4)}
    requests = [
        ExplanationRequest(
            tensor(seed),
            ExplanationOptions(
                Targets(class_indices=targets), MCT, 0.6, granularity if seed != 1 else Granularity.UNIT
            ),
        )
        for seed, targets in wanted.items()
    ]
    for (seed, targets), answer in zip(wanted.items(), tiny_explainer().answer(requests), strict=True):
        assert isinstance(answer, ExplanationResult)
        for target, explanation in zip(targets, answer.explanations, strict=True):
            assert explanation.target.class_index == target
            own = neuron_mct(
                tiny_bundle().classifier, batch(seed), torch.tensor([target]), explanation.granularity
            ).select(0.6)
            np.testing.assert_array_equal(flat(explanation), own.flat()[0].numpy())


def test_the_default_sparsity_is_that_of_the_bundle() -> None:
    by_default, stated = explain(0, 1, source=MCT), explain(0, 1, source=MCT, sparsity=INSTANCE_SPARSITY)
    np.testing.assert_array_equal(flat(by_default), flat(stated))
    assert explain(0, 1, source=MCT, sparsity=0.8).sparsity > by_default.sparsity


@GRANULARITIES
def test_the_default_granularity_is_that_of_the_bank(granularity: Granularity) -> None:
    assert explain(0, 1, granularity, source=MCT).granularity is granularity


def test_sparsity_zero_is_a_sparsity_and_not_the_default() -> None:
    contributing = explain(0, 1, source=MCT, sparsity=0.0)
    assert flat(contributing).sum() > flat(explain(0, 1, source=MCT)).sum()


@pytest.mark.parametrize("target", STORED)
def test_the_overlap_with_the_class_pathway_is_intersection_over_union(target: int) -> None:
    explanation = explain(4, target, source=MCT)
    mine, stored = flat(explanation), tiny_bundle().bank.transfer([target]).flat()[0].numpy()
    assert explanation.class_pathway_iou == pytest.approx((mine & stored).sum() / (mine | stored).sum())
    assert 0 < (explanation.class_pathway_iou or 0) < 1


def test_there_is_no_overlap_without_a_stored_pathway_of_the_class() -> None:
    assert explain(0, WITHOUT_PATHWAY, source=MCT).class_pathway_iou is None


def test_there_is_no_overlap_between_granularities() -> None:
    assert explain(0, 1, source=MCT, granularity=Granularity.UNIT).class_pathway_iou is None


@pytest.mark.parametrize("outputs", [(), *itertools.combinations(Output, 1), tuple(Output)])
def test_an_explanation_holds_the_outputs_asked_for_and_no_others(outputs: tuple[Output, ...]) -> None:
    options = ExplanationOptions(targets=Targets(class_indices=(0,)), outputs=frozenset(outputs))
    (result,) = tiny_explainer().explain([pixels(0)], options)
    (explanation,) = result.explanations
    held = {
        Output.PATHWAY: bool(explanation.pathway),
        Output.MAP: explanation.map is not None,
        Output.HEATMAP: bool(explanation.heatmap_png),
        Output.OVERLAY: bool(explanation.overlay_png),
        Output.FAITHFULNESS: explanation.faithfulness is not None,
    }
    assert {output for output, is_there in held.items() if is_there} == set(outputs)
    assert 0 < explanation.sparsity < 1


@GRANULARITIES
@pytest.mark.parametrize("outputs", [{Output.FAITHFULNESS}, {Output.FAITHFULNESS, Output.MAP}])
@pytest.mark.parametrize("seed", range(6))
def test_faithfulness_compares_the_classifier_with_the_pathway_network(
    granularity: Granularity, outputs: set[Output], seed: int
) -> None:
    target = seed % WITHOUT_PATHWAY
    check = explain(seed, target, granularity, outputs=frozenset(outputs)).faithfulness
    bundle = tiny_bundle(granularity)
    whole = bundle.classifier(batch(seed)).softmax(1)[0]
    alone = bundle.classifier(batch(seed), pathway=bundle.bank.transfer([target])).softmax(1)[0]
    p, q = float(whole[target]), float(alone[target])
    assert check is not None
    assert check.confidence == pytest.approx(p, abs=1e-6)
    assert check.pathway_confidence == pytest.approx(q, abs=1e-6)
    assert check.confidence_drop == pytest.approx(max(0, p - q) / p, abs=1e-4)
    assert check.agreement is (int(whole.argmax()) == int(alone.argmax()))


def test_a_pathway_of_all_contributing_neurons_keeps_the_logit_of_its_target() -> None:
    # Neurons that contribute nothing to the target may still speak for other classes: their logits change.
    explanation = explain(0, 1, source=MCT, sparsity=0.0, granularity=Granularity.UNIT)
    masks = [torch.from_numpy(part.mask)[None] for part in explanation.pathway]
    classifier = tiny_bundle().classifier
    pathway = Pathway(classifier.taps, tuple(masks), Granularity.UNIT)
    logit = classifier(batch(0), pathway)[0, 1]
    assert float(logit) == pytest.approx(float(classifier(batch(0))[0, 1]), abs=1e-4)


@GRANULARITIES
@pytest.mark.parametrize("count", [1, 4, 1000])
def test_top_neurons_are_the_strongest_of_the_pathway(granularity: Granularity, count: int) -> None:
    explanation = explain(2, 1, granularity, top_neurons=count)
    bundle = tiny_bundle(granularity)
    kept = {
        (part.tap, tuple(int(axis) for axis in index))
        for part in explanation.pathway
        for index in np.argwhere(part.mask)
    }
    expected = direct_contributions(2, 1, bundle.bank.transfer([1]))
    listed = [(neuron.tap, neuron.index) for neuron in explanation.top_neurons]
    assert len(listed) == len(set(listed)) == min(count, len(kept))
    assert set(listed) <= kept
    magnitudes = [abs(neuron.contribution) for neuron in explanation.top_neurons]
    assert magnitudes == sorted(magnitudes, reverse=True)
    for neuron in explanation.top_neurons:
        assert neuron.contribution == pytest.approx(expected[neuron.tap, neuron.index], abs=1e-4)
    weakest_listed = magnitudes[-1]
    others = [abs(expected[neuron]) for neuron in kept - set(listed)]
    assert max(others, default=0) <= weakest_listed + 1e-4


def test_top_neurons_may_speak_against_the_target() -> None:
    contributions = [neuron.contribution for neuron in explain(2, 1, Granularity.UNIT, top_neurons=50).top_neurons]
    assert min(contributions) < 0 < max(contributions)


def test_top_neurons_need_no_other_output() -> None:
    assert len(explain(2, 1, outputs=frozenset(), top_neurons=3).top_neurons) == 3


@GRANULARITIES
def test_the_stored_class_pathway_is_returned_with_its_statistics(granularity: Granularity) -> None:
    explainer = tiny_explainer(granularity)
    stored = explainer.class_pathway(0)
    pathway = tiny_bundle(granularity).bank.transfer([0])
    assert (stored.class_index, stored.label, stored.granularity) == (0, "ant", granularity)
    assert stored.sparsity == float(pathway.sparsity[0])
    assert stored.statistics == tiny_bundle(granularity).bank.statistics[0]
    for part, mask in zip(stored.pathway, pathway.masks, strict=True):
        np.testing.assert_array_equal(part.mask, mask[0].numpy())


@GRANULARITIES
@pytest.mark.parametrize("label", STORED)
def test_frequencies_are_those_of_the_bank_in_the_shape_of_the_masks(granularity: Granularity, label: int) -> None:
    explainer = tiny_explainer(granularity)
    stored = explainer.class_pathway(label, with_frequencies=True)
    assert explainer.class_pathway(label).frequencies == ()
    flat_frequency = np.concatenate([part.frequency.ravel() for part in stored.frequencies])
    np.testing.assert_allclose(flat_frequency, tiny_bundle(granularity).bank.counts[label].frequency.numpy(), rtol=1e-6)
    for part, mask in zip(stored.frequencies, stored.pathway, strict=True):
        assert (part.tap, part.frequency.shape) == (mask.tap, mask.mask.shape)
        assert part.frequency.dtype == np.float32
        if label != TWO_SIDED:
            np.testing.assert_array_equal(part.frequency >= 0.5, mask.mask)


def test_a_two_sided_pathway_takes_the_place_of_the_one_by_frequency() -> None:
    stored = tiny_explainer().class_pathway(TWO_SIDED)
    mask = np.concatenate([part.mask.ravel() for part in stored.pathway])
    np.testing.assert_array_equal(mask, tiny_bundle().bank.masks[TWO_SIDED].numpy())
    assert (mask != tiny_bundle().bank.by_frequency(TWO_SIDED).flat()[0].numpy()).any()


def test_a_class_pathway_is_found_by_label_as_well() -> None:
    assert tiny_explainer().class_pathway("bee").class_index == 1


def direct_contributions(seed: int, target: int, pathway: Pathway) -> dict[tuple[str, tuple[int, ...]], float]:
    """Activation times gradient in the pathway network, by automatic differentiation and nothing else."""
    classifier = tiny_bundle().classifier
    trace = classifier.trace(batch(seed), pathway)
    gradients = torch.autograd.grad(trace.logits[0, target], trace.activations)
    found: dict[tuple[str, tuple[int, ...]], float] = {}
    for tap, activation, gradient in zip(classifier.taps, trace.activations, gradients, strict=True):
        values = (activation * gradient)[0].detach().numpy()
        if pathway.granularity is Granularity.CHANNEL:
            values = values.reshape(len(values), -1).sum(1)
        found |= {(tap.name, index): float(value) for index, value in np.ndenumerate(values)}
    return found
