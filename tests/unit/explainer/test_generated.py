"""Generated pathways, and what stands in for the neurons that pathways leave out."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pathlens.attribution.pathway_gradient import pathway_gradient
from pathlens.bundle.store import Bundle
from pathlens.classifier.captured import CapturedClassifier
from pathlens.errors import PathlensError
from pathlens.explainer import Explainer
from pathlens.explanation import (
    Ablation,
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
from pathlens.generator.generator import PathwayGenerator
from pathlens.pathways.pathway import ZERO, Pathway
from tiny_bundle import WITHOUT_PATHWAY, tensor, tiny_bundle, tiny_explainer

GENERATED = PathwaySource.GENERATED
GRANULARITIES = pytest.mark.parametrize("granularity", list(Granularity))
ABLATIONS = pytest.mark.parametrize("ablation", list(Ablation))
OF_DIFFERENT_CLASSES = (0, 15, 19, 6)


def explain(
    explainer: Explainer, seed: int, source: PathwaySource = GENERATED, targets: tuple[int, ...] = (), **options: Any
) -> tuple[Explanation, ...]:
    wanted = ExplanationOptions(Targets(class_indices=targets), source, **options)
    (result,) = explainer.explain([tensor(seed)], wanted)
    return result.explanations


def image(seed: int) -> Tensor:
    return torch.from_numpy(tensor(seed))[None]


def generated(bundle: Bundle, seed: int) -> Pathway:
    """Generate from the classifier's own activations, by automatic differentiation's record of them."""
    assert bundle.generator is not None
    trace = bundle.classifier.trace(image(seed))
    activations = [activation.detach() for activation in trace.activations]
    return bundle.generator.pathways(activations, bundle.bank.replacement_of(trace.logits.argmax(1)))


def flat(explanation: Explanation) -> Any:
    return np.concatenate([part.mask.ravel() for part in explanation.pathway])


def confidence(explanation: Explanation) -> float:
    assert explanation.faithfulness is not None
    return explanation.faithfulness.pathway_confidence


@given(seed=st.integers(0, 1000), granularity=st.sampled_from(Granularity), ablation=st.sampled_from(Ablation))
@settings(max_examples=40)
def test_a_generated_pathway_is_what_the_generator_makes_of_the_classifiers_activations(
    seed: int, granularity: Granularity, ablation: Ablation
) -> None:
    bundle = tiny_bundle(granularity, ablation=ablation)
    (explanation,) = explain(tiny_explainer(granularity, ablation), seed)
    pathway = generated(bundle, seed)
    np.testing.assert_array_equal(flat(explanation), pathway.flat()[0].numpy())
    assert explanation.sparsity == float(pathway.sparsity[0])
    assert (explanation.source, explanation.granularity, explanation.ablation) == (GENERATED, granularity, ablation)


@given(
    seed=st.integers(0, 1000),
    target=st.integers(0, 4),
    granularity=st.sampled_from(Granularity),
    ablation=st.sampled_from(Ablation),
)
@settings(max_examples=40)
def test_confidence_and_map_of_a_generated_pathway_are_those_of_its_pathway_network(
    seed: int, target: int, granularity: Granularity, ablation: Ablation
) -> None:
    bundle = tiny_bundle(granularity, ablation=ablation)
    (explanation,) = explain(tiny_explainer(granularity, ablation), seed, targets=(target,), reduction=Reduction.NONE)
    pathway = generated(bundle, seed)
    alone = bundle.classifier(image(seed), pathway).softmax(1)[0, target]
    assert confidence(explanation) == pytest.approx(float(alone), abs=1e-6)
    gradient = pathway_gradient(bundle.classifier, image(seed), torch.tensor([target]), pathway)
    np.testing.assert_allclose(explanation.map, gradient[0].numpy(), rtol=1e-5, atol=1e-5)  # type: ignore[arg-type]


@pytest.mark.parametrize("source", [GENERATED, PathwaySource.TRANSFERRED])
@pytest.mark.parametrize("seed", OF_DIFFERENT_CLASSES)
def test_every_ablation_gives_a_fitted_pathway_a_network_of_its_own(source: PathwaySource, seed: int) -> None:
    by_ablation = {ablation: explain(tiny_explainer(ablation=ablation), seed, source, (0,))[0] for ablation in Ablation}
    assert len({confidence(explanation) for explanation in by_ablation.values()}) == len(Ablation)
    assert len({flat(explanation).tobytes() for explanation in by_ablation.values()}) == 1


@GRANULARITIES
@ABLATIONS
@pytest.mark.parametrize("target", range(WITHOUT_PATHWAY))
def test_a_transferred_pathway_has_the_ablation_of_the_bank_and_the_constants_of_its_class(
    granularity: Granularity, ablation: Ablation, target: int
) -> None:
    bundle = tiny_bundle(granularity, ablation=ablation)
    (explanation,) = explain(tiny_explainer(granularity, ablation), 0, PathwaySource.TRANSFERRED, (target,))
    alone = bundle.classifier(image(0), bundle.bank.transfer([target])).softmax(1)[0, target]
    assert explanation.ablation is ablation
    assert confidence(explanation) == pytest.approx(float(alone), abs=1e-6)


@ABLATIONS
@pytest.mark.parametrize("source", [PathwaySource.NEURON_MCT, PathwaySource.NEURON_INTGRAD])
def test_contribution_sources_remove_neurons_by_zero_whatever_the_bank_does(
    source: PathwaySource, ablation: Ablation
) -> None:
    (explanation,) = explain(tiny_explainer(ablation=ablation), 0, source, (1,))
    (as_ever,) = explain(tiny_explainer(), 0, source, (1,))
    assert explanation.ablation is Ablation.ZERO
    assert confidence(explanation) == confidence(as_ever)


@pytest.mark.parametrize("seed", OF_DIFFERENT_CLASSES)
def test_the_constants_of_a_generated_pathway_are_those_of_the_predicted_class_for_every_target(seed: int) -> None:
    bundle = tiny_bundle(ablation=Ablation.OPTIMAL)
    explanations = explain(tiny_explainer(ablation=Ablation.OPTIMAL), seed, targets=(0, 1, 2, 3, 4))
    pathway = generated(bundle, seed)
    alone = bundle.classifier(image(seed), pathway).softmax(1)[0]
    # One network for all targets: its probabilities are those of one distribution.
    assert [confidence(explanation) for explanation in explanations] == pytest.approx(alone.tolist(), abs=1e-6)
    for explanation in explanations:
        np.testing.assert_array_equal(flat(explanation), flat(explanations[0]))


def test_the_images_of_these_tests_are_of_different_classes() -> None:
    images = torch.cat([image(seed) for seed in OF_DIFFERENT_CLASSES])
    assert len(set(tiny_bundle().classifier(images).argmax(1).tolist())) == len(OF_DIFFERENT_CLASSES)


@GRANULARITIES
def test_every_image_finds_its_own_sparsity(granularity: Granularity) -> None:
    explainer = tiny_explainer(granularity)
    assert len({explain(explainer, seed)[0].sparsity for seed in range(20)}) > 3


@pytest.mark.parametrize("target", [0, WITHOUT_PATHWAY])
def test_a_generated_pathway_overlaps_with_the_stored_pathway_of_the_target(target: int) -> None:
    (explanation,) = explain(tiny_explainer(), 0, targets=(target,))
    if target == WITHOUT_PATHWAY:
        assert explanation.class_pathway_iou is None
    else:
        expected = generated(tiny_bundle(), 0).iou(tiny_bundle().bank.transfer([target]))
        assert explanation.class_pathway_iou == float(expected[0])


@ABLATIONS
def test_a_generated_pathway_can_be_checked_for_linearity_and_lists_its_neurons(ablation: Ablation) -> None:
    explainer = tiny_explainer(ablation=ablation)
    (explanation,) = explain(explainer, 0, linearity_radius=1e-3, top_neurons=3)
    assert explanation.linearity is not None
    assert 0 <= explanation.linearity.relative_error < 1
    kept = {(part.tap, tuple(index)) for part in explanation.pathway for index in np.argwhere(part.mask).tolist()}
    assert {(neuron.tap, neuron.index) for neuron in explanation.top_neurons} <= kept


@GRANULARITIES
@ABLATIONS
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
@pytest.mark.parametrize("source", [GENERATED, PathwaySource.TRANSFERRED])
def test_a_classifier_of_another_precision_is_explained_alike(
    granularity: Granularity, ablation: Ablation, dtype: torch.dtype, source: PathwaySource
) -> None:
    bundle = tiny_bundle(granularity, ablation=ablation)
    converted = replace(bundle, classifier=bundle.classifier.to(dtype=dtype))
    (explanation,) = explain(converted.explainer(), 0, source, (1,), top_neurons=2)
    pathway = generated(converted, 0) if source is GENERATED else bundle.bank.transfer([1])
    np.testing.assert_array_equal(flat(explanation), pathway.flat()[0].numpy())
    alone = converted.classifier(image(0), pathway).softmax(1)[0, 1]
    assert confidence(explanation) == pytest.approx(float(alone), abs=1e-6)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device is there")
@GRANULARITIES
@ABLATIONS
def test_a_cuda_device_explains_alike(granularity: Granularity, ablation: Ablation) -> None:
    bundle = tiny_bundle(granularity, ablation=ablation)
    here, there = bundle.explainer(), bundle.explainer("cuda")
    for source in (GENERATED, PathwaySource.TRANSFERRED):
        for one, other in zip(*(explain(each, 6, source, (0, 1)) for each in (here, there)), strict=True):
            assert (one.sparsity, one.ablation) == (other.sparsity, other.ablation)
            assert confidence(one) == pytest.approx(confidence(other), abs=1e-3)
            np.testing.assert_allclose(one.map, other.map, rtol=1e-2, atol=1e-2)


def test_only_generated_items_pay_for_the_generator(monkeypatch: pytest.MonkeyPatch) -> None:
    explainer = tiny_explainer()
    sizes: list[int] = []
    recorded: list[bool] = []
    pathways, run = PathwayGenerator.pathways, CapturedClassifier.run

    def counted(self: PathwayGenerator, activations: Any, replacement: Any) -> Any:
        sizes.append(len(activations[0]))
        return pathways(self, activations, replacement)

    def watched(self: CapturedClassifier, images: Tensor, edit: Any = None) -> Tensor:
        recorded.append(edit is not None)
        return run(self, images, edit)

    monkeypatch.setattr(PathwayGenerator, "pathways", counted)
    monkeypatch.setattr(CapturedClassifier, "run", watched)
    plain = frozenset({Output.PATHWAY})
    others = [
        ExplanationRequest(tensor(0), None),
        ExplanationRequest(tensor(1), ExplanationOptions(outputs=plain)),
    ]
    explainer.answer(others)
    assert (sizes, recorded) == ([], [False])
    wanted = ExplanationOptions(Targets(top_k=3), GENERATED, outputs=plain)
    answers = explainer.answer([*others, *(ExplanationRequest(tensor(seed), wanted) for seed in (2, 3))])
    assert all(isinstance(answer, ExplanationResult) for answer in answers)
    assert (sizes, recorded) == ([2], [False, False, True])


def test_a_generator_is_neither_moved_nor_changed_by_explaining() -> None:
    bundle = tiny_bundle()
    assert bundle.generator is not None
    before = {name: value.clone() for name, value in bundle.generator.state_dict().items()}
    explain(bundle.explainer(), 0)
    assert all(torch.equal(value, before[name]) for name, value in bundle.generator.state_dict().items())


@GRANULARITIES
def test_scores_of_the_generator_that_are_no_numbers_are_refused_alone(granularity: Granularity) -> None:
    bundle = tiny_bundle(granularity)
    assert bundle.generator is not None
    steep = bundle.generator.frozen()
    with torch.no_grad():
        for parameter in steep.parameters():
            parameter.mul_(1e20)
    explainer = replace(bundle, generator=steep).explainer()
    wanted = ExplanationOptions(source=GENERATED)
    images = [tensor(0), np.multiply(tensor(1), 1e25, dtype=np.float32), tensor(2)]
    tame, wild, last = explainer.answer([ExplanationRequest(image, wanted) for image in images])
    assert isinstance(wild, PathlensError)
    assert (wild.code, wild.reason, wild.field) == ("INVALID_ARGUMENT", "OUTPUT_NOT_FINITE", "image")
    assert "generator" in wild.message
    assert isinstance(tame, ExplanationResult)
    assert isinstance(last, ExplanationResult)


@ABLATIONS
def test_the_description_names_the_ablation_and_the_class_pathway_has_it(ablation: Ablation) -> None:
    explainer = tiny_explainer(ablation=ablation)
    assert explainer.describe().ablation is ablation
    assert explainer.class_pathway(0).ablation is ablation


def test_a_generated_pathway_without_a_bank_removes_by_zero() -> None:
    bundle = tiny_bundle()
    bank = type(bundle.bank)(bundle.bank.taps, bundle.bank.granularity, 0.5, {})
    explainer = replace(bundle, bank=bank).explainer()
    assert PathwaySource.TRANSFERRED not in explainer.sources
    assert GENERATED in explainer.sources
    (explanation,) = explain(explainer, 0)
    np.testing.assert_array_equal(flat(explanation), generated(bundle, 0).under(ZERO).flat()[0].numpy())
    assert explanation.class_pathway_iou is None
