"""What a result says of the classifier itself."""

import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pathlens.errors import PathlensError
from pathlens.explainer import Explainer
from pathlens.explanation import STAGES, Ablation, ExplanationOptions, ExplanationRequest, Output, PathwaySource
from tiny_bundle import LABELS, PREPROCESSING, SERVED, pixels, png, tensor, tiny_bundle, tiny_explainer

pytestmark = pytest.mark.usefixtures("backend")

CLASSES = len(LABELS)


@given(seed=st.integers(0, 2**31))
@settings(max_examples=30)
def test_predictions_are_sorted_and_their_probabilities_sum_to_one(seed: int) -> None:
    (result,) = tiny_explainer().predict([tensor(seed)], CLASSES)
    probabilities = [prediction.probability for prediction in result.predictions]
    assert probabilities == sorted(probabilities, reverse=True)
    assert sum(probabilities) == pytest.approx(1, abs=1e-5)
    assert sorted(prediction.class_index for prediction in result.predictions) == list(range(CLASSES))


def test_probabilities_and_logits_are_those_of_the_classifier() -> None:
    image = tensor(3)
    (result,) = tiny_explainer().predict([image])
    logits = tiny_bundle().classifier(torch.from_numpy(image)[None])[0]
    for prediction in result.predictions:
        assert prediction.logit == pytest.approx(float(logits[prediction.class_index]), abs=1e-5)
        expected = float(logits.softmax(0)[prediction.class_index])
        assert prediction.probability == pytest.approx(expected, abs=1e-6)
        assert prediction.label == LABELS[prediction.class_index]


@pytest.mark.parametrize(("asked", "told"), [(0, 0), (1, 1), (3, 3), (CLASSES, CLASSES), (1000, CLASSES)])
def test_as_many_predictions_as_asked_and_as_there_are_classes(asked: int, told: int) -> None:
    explainer = tiny_explainer()
    (predicted,) = explainer.predict([tensor(0)], asked)
    (explained,) = explainer.explain([tensor(0)], ExplanationOptions(predictions=asked))
    assert len(predicted.predictions) == len(explained.predictions) == told


def test_a_negative_number_of_predictions_is_refused() -> None:
    (error,) = tiny_explainer().answer([ExplanationRequest(tensor(0), None, -1)])
    assert isinstance(error, PathlensError)
    assert (error.code, error.reason, error.field) == ("INVALID_ARGUMENT", "OPTION_INVALID", "options.predictions")


def test_encoded_images_pixels_and_tensors_of_one_picture_are_seen_alike() -> None:
    picture = pixels(1)
    results = tiny_explainer().predict([png(picture), picture, PREPROCESSING.apply(picture)])
    first, *others = ([(p.class_index, p.logit) for p in result.predictions] for result in results)
    for other in others:
        np.testing.assert_allclose(other, first, atol=1e-5)


def test_a_prediction_alone_has_no_explanations() -> None:
    (result,) = tiny_explainer().predict([tensor(0)])
    assert result.explanations == ()


def test_every_result_names_the_model() -> None:
    predicted, explained = tiny_explainer().answer(
        [ExplanationRequest(tensor(0), None), ExplanationRequest(tensor(1), ExplanationOptions())]
    )
    assert not isinstance(predicted, PathlensError)
    assert not isinstance(explained, PathlensError)
    assert predicted.model == explained.model == SERVED


def test_a_prediction_passes_three_stages() -> None:
    (result,) = tiny_explainer().predict([tensor(0)])
    assert list(result.stage_seconds) == ["decode", "predict", "encode"]


@pytest.mark.parametrize("source", [PathwaySource.TRANSFERRED, PathwaySource.NEURON_MCT])
def test_an_explanation_passes_every_stage_but_the_queue(source: PathwaySource) -> None:
    (result,) = tiny_explainer().explain([tensor(0)], ExplanationOptions(source=source))
    assert tuple(result.stage_seconds) == STAGES[1:]


def test_an_explanation_that_runs_no_pathway_network_has_no_gradient_stage() -> None:
    options = ExplanationOptions(outputs=frozenset({Output.PATHWAY}))
    (result,) = tiny_explainer().explain([tensor(0)], options)
    assert list(result.stage_seconds) == ["decode", "predict", "pathway", "encode"]


def test_stage_times_are_positive_and_below_the_time_that_passed() -> None:
    started = time.perf_counter()
    results = tiny_explainer().explain([tensor(0), png(pixels(0))])
    passed = time.perf_counter() - started
    for result in results:
        assert min(result.stage_seconds.values()) > 0
        assert sum(result.stage_seconds.values()) < passed


def test_an_explainer_describes_its_model() -> None:
    bundle = tiny_bundle()
    description = tiny_explainer().describe()
    assert description.model == SERVED
    assert description.classifier_sha256 == bundle.classifier.fingerprint
    assert description.labels == LABELS
    assert description.input_shape == (3, 8, 8)
    assert [(tap.name, tap.activation, tap.shape) for tap in description.taps] == [
        ("relu#1", "relu", (4, 8, 8)),
        ("relu#2", "relu", (6, 3, 3)),
        ("relu#3", "relu", (8,)),
    ]
    assert description.sources == (
        PathwaySource.TRANSFERRED,
        PathwaySource.GENERATED,
        PathwaySource.NEURON_MCT,
        PathwaySource.NEURON_INTGRAD,
    )
    assert description.ablation is Ablation.ZERO
    assert description.classes_without_pathway == (4,)
    assert description.default_sparsity == bundle.instance_sparsity
    assert description.class_pathway_count == 4


def test_one_label_for_each_class_is_needed() -> None:
    with pytest.raises(ValueError, match="4 labels for 5 classes"):
        replace(tiny_bundle(), labels=LABELS[:4]).explainer()


def test_the_explainer_of_a_bundle_carries_name_version_and_hash() -> None:
    explainer = replace(tiny_bundle(), sha256="f" * 64).explainer(version="2.1")
    assert isinstance(explainer, Explainer)
    assert vars(explainer.model) == {"name": "tiny", "version": "2.1", "bundle_sha256": "f" * 64}
