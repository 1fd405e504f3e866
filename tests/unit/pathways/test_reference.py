"""Where an explanation stands among those of the fit."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.stats import kstest

from pathlens.explanation import Ablation, Explanation, Faithfulness, Granularity, PathwaySource, Prediction
from pathlens.pathways.reference import MINIMUM_IMAGES, TRACKED, ReferenceDistribution, Statistic, measure

GENERATED = PathwaySource.GENERATED
DROP = Statistic.CONFIDENCE_DROP
MIDDLE = dict.fromkeys(Statistic, 0.5)
# Few values, many ties: what is cut off at zero, and what counts channels.
VALUES = st.lists(st.integers(-3, 3).map(lambda number: number / 4), min_size=MINIMUM_IMAGES + 1, max_size=60)


def explanation(drop: float = 0.0, label: int = 0, source: PathwaySource = GENERATED, **changes: Any) -> Explanation:
    figures: dict[str, Any] = {
        "sparsity": 0.5,
        "class_pathway_iou": 0.5,
        "faithfulness": Faithfulness(0.5, 0.5 * (1 - drop), max(0.0, drop), agreement=True),
    }
    target = Prediction(label, f"class {label}", 0.5, 1.0)
    return Explanation(target, source, Granularity.CHANNEL, Ablation.ZERO, **(figures | changes))


def distribution(drops: Any, labels: Any = None) -> ReferenceDistribution:
    labels = [0] * len(drops) if labels is None else labels
    found = ReferenceDistribution.of(
        GENERATED, [explanation(drop, label) for drop, label in zip(drops, labels, strict=True)]
    )
    assert found is not None
    return found


def rank(known: ReferenceDistribution, drop: float, draw: float = 0.5, label: int = 0) -> float:
    typicality = known.typicality(explanation(drop, label), {**MIDDLE, DROP: draw})
    assert typicality is not None
    assert typicality.confidence_drop_rank is not None
    return typicality.confidence_drop_rank


class TestWithoutDrift:
    """Ranks are uniform, whatever the distribution."""

    @given(VALUES)
    @settings(max_examples=40)
    def test_ranks_of_exchangeable_images_are_exactly_uniform(self, drops: list[float]) -> None:
        # Any of the m + 1 images may be the last to come. Its rank is uniform between its least and its greatest.
        points = np.linspace(0, 1, 11)
        shares = np.zeros_like(points)
        for index, drop in enumerate(drops):
            others = distribution(drops[:index] + drops[index + 1 :])
            least, greatest = rank(others, drop, 0.0), rank(others, drop, 1.0)
            shares += np.clip((points - least) / (greatest - least), 0, 1)
        np.testing.assert_allclose(shares / len(drops), points, atol=1e-9)

    @pytest.mark.parametrize("ties", [0.0, 0.6, 1.0])
    def test_ranks_of_new_images_pass_a_kolmogorov_smirnov_test(self, ties: float) -> None:
        draw = np.random.default_rng(0)

        def fresh(count: int) -> NDArray[np.float64]:
            return np.where(draw.random(count) < ties, 0.0, draw.random(count))

        known = distribution(fresh(4000))
        ranks = [rank(known, drop, draw.random()) for drop in fresh(1500)]
        assert kstest(ranks, "uniform").pvalue > 0.01

    def test_middle_ranks_of_ties_would_not(self) -> None:
        draw = np.random.default_rng(0)
        drops = np.where(draw.random(3000) < 0.6, 0.0, draw.random(3000))
        known = distribution(drops[:1500])
        assert kstest([rank(known, drop) for drop in drops[1500:]], "uniform").pvalue < 1e-9


@given(VALUES, st.floats(-1, 1), st.floats(-1, 1), st.floats(0.01, 0.99))
@settings(max_examples=40)
def test_a_rank_grows_with_the_value_and_stays_inside_the_unit_interval(
    drops: list[float], one: float, other: float, draw: float
) -> None:
    known = distribution(drops)
    assert 0 < rank(known, min(one, other), draw) <= rank(known, max(one, other), draw) < 1


def test_what_devices_differ_by_is_no_difference() -> None:
    known = distribution([0.25] * MINIMUM_IMAGES)
    assert rank(known, 0.25 + 1e-6) == rank(known, 0.25 - 1e-6) == rank(known, 0.25) == 0.5
    assert rank(known, 0.26) > 0.9


def test_a_gain_of_confidence_has_ranks_of_its_own() -> None:
    known = distribution(np.linspace(-1, 1, 101))
    assert rank(known, -0.9) < rank(known, -0.1) < rank(known, 0.1)


class TestClasses:
    def test_are_ranked_each_within_itself(self) -> None:
        drops = [*np.linspace(0, 0.4, 50), *np.linspace(0.6, 1, 50)]
        known = distribution(drops, [0] * 50 + [1] * 50)
        assert rank(known, 0.5, label=0) > 0.95
        assert rank(known, 0.5, label=1) < 0.05

    @pytest.mark.parametrize(("images", "own"), [(MINIMUM_IMAGES, True), (MINIMUM_IMAGES - 1, False)])
    def test_of_too_few_images_are_ranked_among_all(self, images: int, own: bool) -> None:
        drops = [*np.linspace(0, 0.4, 100), *np.linspace(0.6, 1, images)]
        known = distribution(drops, [0] * 100 + [1] * images)
        typicality = known.typicality(explanation(0.5, label=1), MIDDLE)
        assert typicality is not None
        assert typicality.class_images == (images if own else 0)
        assert rank(known, 0.5, label=1) == pytest.approx(0.02 if own else 100 / (100 + images), abs=0.02)

    def test_that_the_fit_never_saw_are_ranked_among_all(self) -> None:
        assert rank(distribution(np.linspace(0, 1, 100)), 0.5, label=7) == pytest.approx(0.5, abs=0.02)


class TestStatistics:
    def test_are_those_that_vary_from_image_to_image(self) -> None:
        assert measure(explanation(source=PathwaySource.TRANSFERRED)).keys() == {DROP}
        assert measure(explanation(source=PathwaySource.GENERATED)).keys() == set(Statistic)
        assert measure(explanation(source=PathwaySource.NEURON_MCT)).keys() == {Statistic.CLASS_PATHWAY_IOU, DROP}
        assert measure(explanation(source=PathwaySource.NEURON_INTGRAD)) == {}

    def test_have_ranks_of_their_own(self) -> None:
        known = ReferenceDistribution.of(
            GENERATED,
            [
                explanation(share, sparsity=share / 2, class_pathway_iou=1 - share)
                for share in np.linspace(0, 0.99, 100).tolist()
            ],
        )
        assert known is not None
        typicality = known.typicality(explanation(0.1, sparsity=0.25, class_pathway_iou=0.3), MIDDLE)
        assert typicality is not None
        ranks = typicality.confidence_drop_rank, typicality.sparsity_rank, typicality.class_pathway_iou_rank
        assert ranks == pytest.approx((0.1, 0.5, 0.3), abs=0.02)

    def test_that_an_explanation_lacks_have_no_rank(self) -> None:
        known = distribution(np.linspace(0, 1, 100))
        typicality = known.typicality(explanation(faithfulness=None, class_pathway_iou=None), MIDDLE)
        assert typicality is not None
        assert typicality.sparsity_rank is not None
        assert (typicality.confidence_drop_rank, typicality.class_pathway_iou_rank) == (None, None)

    def test_that_are_all_missing_give_no_typicality(self) -> None:
        known = ReferenceDistribution.of(
            PathwaySource.TRANSFERRED, [explanation(0.1, source=PathwaySource.TRANSFERRED)] * MINIMUM_IMAGES
        )
        assert known is not None
        bare = explanation(source=PathwaySource.TRANSFERRED, faithfulness=None)
        assert known.typicality(bare, MIDDLE) is None

    def test_that_no_held_out_image_of_the_class_has_give_no_rank(self) -> None:
        held_out = [explanation(label=0, class_pathway_iou=None)] * MINIMUM_IMAGES
        known = ReferenceDistribution.of(GENERATED, held_out)
        assert known is not None
        typicality = known.typicality(explanation(label=0), MIDDLE)
        assert typicality is not None
        assert typicality.class_pathway_iou_rank is None


def test_too_few_images_in_all_are_no_reference() -> None:
    assert ReferenceDistribution.of(GENERATED, [explanation()] * (MINIMUM_IMAGES - 1)) is None


@pytest.mark.parametrize(
    ("source", "classes", "statistics", "words"),
    [
        (PathwaySource.NEURON_INTGRAD, 40, (), "NEURON_INTGRAD is given"),
        (PathwaySource.TRANSFERRED, 40, tuple(Statistic), "TRANSFERRED is given"),
        (PathwaySource.TRANSFERRED, 29, (DROP,), "29 images"),
        (PathwaySource.TRANSFERRED, 41, (DROP,), "one for each image"),
    ],
)
def test_a_distribution_of_anything_else_is_refused(
    source: PathwaySource, classes: int, statistics: tuple[Statistic, ...], words: str
) -> None:
    values = {statistic: np.zeros(40 if classes > 40 else classes, dtype=np.float32) for statistic in statistics}
    with pytest.raises(ValueError, match=words):
        ReferenceDistribution(source, np.zeros(classes, dtype=np.int32), values)


def test_every_source_that_a_fit_can_measure_is_tracked() -> None:
    assert set(TRACKED) == set(PathwaySource) - {PathwaySource.NEURON_INTGRAD}
