"""How typical an explanation is of what the fit saw: when that is known, and when it is not."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from pathlens.explainer import Explainer
from pathlens.explanation import (
    Explanation,
    ExplanationOptions,
    Granularity,
    ImageInput,
    Output,
    PathwaySource,
    Targets,
    Typicality,
)
from pathlens.pathways.reference import ReferenceDistribution, Statistic
from tiny_bundle import INSTANCE_SPARSITY, PREPROCESSING, SERVED, pixels, png, tiny_bundle, tiny_explainer

pytestmark = pytest.mark.usefixtures("backend")

MCT, TRANSFERRED = PathwaySource.NEURON_MCT, PathwaySource.TRANSFERRED
ONLY_CHECKED = frozenset({Output.FAITHFULNESS})


def explained(image: ImageInput, **options: Any) -> tuple[Explanation, ...]:
    (result,) = tiny_explainer().explain([image], ExplanationOptions(**{"outputs": ONLY_CHECKED, **options}))
    return result.explanations


def typicality(image: ImageInput, **options: Any) -> Typicality | None:
    return explained(image, **options)[0].typicality


def images_of(label: int) -> list[Any]:
    """Pictures that are predicted as a class."""
    pictures = [pixels(seed) for seed in range(60)]
    predicted = [result.predictions[0].class_index for result in tiny_explainer().predict(pictures)]
    return [picture for picture, index in zip(pictures, predicted, strict=True) if index == label]


@pytest.mark.parametrize("source", [TRANSFERRED, MCT])
def test_the_ranks_are_those_of_the_explanation_s_own_figures(source: PathwaySource) -> None:
    (image, *_) = images_of(0)
    (explanation,) = explained(image, source=source)
    distribution = tiny_bundle().reference[source]
    ranks = vars(explanation.typicality)
    check = explanation.faithfulness
    assert check is not None
    figures = {
        "confidence_drop": (check.confidence - check.pathway_confidence) / check.confidence,
        "class_pathway_iou": explanation.class_pathway_iou,
    }
    for statistic, values in distribution.values.items():
        below = (values[distribution.classes == 0] < figures[statistic.value]).mean()
        assert ranks[f"{statistic.value}_rank"] == pytest.approx(below, abs=2 / 40)
    assert ranks["class_images"] == 40


def test_a_class_of_too_few_images_is_compared_with_all() -> None:
    (image, *_) = images_of(3)
    found = typicality(image)
    assert found is not None
    assert found.class_images == 0


def test_the_same_image_has_the_same_ranks_however_it_is_sent_and_in_whatever_company() -> None:
    picture = pixels(1)
    alone = typicality(picture)
    assert alone is not None
    assert typicality(png(picture)) == typicality(PREPROCESSING.apply(picture)) == alone
    options = ExplanationOptions(outputs=ONLY_CHECKED)
    results = tiny_explainer().explain([pixels(2), picture], options)
    ranks = results[1].explanations[0].typicality
    assert ranks is not None
    assert ranks.confidence_drop_rank == pytest.approx(alone.confidence_drop_rank, abs=0.03)


def test_equal_figures_of_different_images_have_different_ranks() -> None:
    # Below everything that the fit saw: a rank drawn for the image is all that tells them apart.
    bundle = tiny_bundle()
    drops = {Statistic.CONFIDENCE_DROP: np.full(40, 2, dtype=np.float32)}
    reference = {TRANSFERRED: ReferenceDistribution(TRANSFERRED, np.zeros(40, dtype=np.int32), drops)}
    results = replace(bundle, reference=reference).explainer().explain([pixels(seed) for seed in range(20)])
    typical = [result.explanations[0].typicality for result in results]
    ranks = [one.confidence_drop_rank for one in typical if one is not None]
    assert len(ranks) == len(set(ranks)) == 20
    assert all(rank is not None and 0 < rank < 1 / 41 for rank in ranks)


@pytest.mark.parametrize("sparsity", [None, INSTANCE_SPARSITY])
def test_the_sparsity_of_the_fit_is_compared(sparsity: float | None) -> None:
    assert typicality(pixels(1), source=MCT, sparsity=sparsity) is not None


@pytest.mark.parametrize(
    "options",
    [
        {"source": MCT, "sparsity": INSTANCE_SPARSITY + 0.1},
        {"source": MCT, "granularity": Granularity.UNIT},
        {"source": PathwaySource.NEURON_INTGRAD, "integration_steps": 2},
        {"outputs": frozenset({Output.MAP})},
    ],
    ids=["sparsity", "granularity", "integrated", "no check"],
)
def test_what_the_fit_did_not_measure_is_not_ranked(options: dict[str, Any]) -> None:
    assert typicality(pixels(1), **options) is None


def test_without_the_check_the_other_ranks_remain() -> None:
    ranks = typicality(pixels(1), source=MCT, outputs=frozenset({Output.MAP}))
    assert ranks is not None
    assert ranks.class_pathway_iou_rank is not None
    assert ranks.confidence_drop_rank is None


def test_only_the_predicted_class_is_ranked() -> None:
    first, *others = explained(pixels(1), source=MCT, targets=Targets(top_k=3))
    assert first.typicality is not None
    assert [other.typicality for other in others] == [None, None]
    reversed_order = explained(pixels(1), source=MCT, targets=Targets(class_indices=(others[0].target.class_index,)))
    assert reversed_order[0].typicality is None


def test_an_explainer_without_reference_ranks_nothing() -> None:
    bundle = tiny_bundle()
    explainer = Explainer(
        bundle.classifier, PREPROCESSING, bundle.labels, bundle.bank, bundle.instance_sparsity, SERVED
    )
    (result,) = explainer.explain([np.asarray(pixels(1))])
    assert result.explanations[0].typicality is None
