"""Which classes are explained, and in which order."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pathlens.errors import FailedPreconditionError, InvalidRequestError, NotFoundError
from pathlens.explanation import ExplanationOptions, Output, PathwaySource, Targets
from tiny_bundle import LABELS, WITHOUT_PATHWAY, tensor, tiny_explainer

pytestmark = pytest.mark.usefixtures("backend")

CLASSES = len(LABELS)
SOURCES = pytest.mark.parametrize("source", [PathwaySource.TRANSFERRED, PathwaySource.NEURON_MCT])


def explained(targets: Targets, source: PathwaySource = PathwaySource.NEURON_MCT, seed: int = 0) -> list[int]:
    options = ExplanationOptions(targets, source, outputs=frozenset({Output.PATHWAY}))
    (result,) = tiny_explainer().explain([tensor(seed)], options)
    return [explanation.target.class_index for explanation in result.explanations]


def ranking(seed: int = 0) -> list[int]:
    (result,) = tiny_explainer().predict([tensor(seed)], CLASSES)
    return [prediction.class_index for prediction in result.predictions]


@given(
    top_k=st.integers(0, CLASSES),
    indices=st.lists(st.integers(0, CLASSES - 1), max_size=6),
    labels=st.lists(st.sampled_from(LABELS), max_size=4),
    seed=st.integers(0, 20),
)
@settings(max_examples=60)
def test_targets_are_the_union_in_the_order_asked_without_repeats(
    top_k: int, indices: list[int], labels: list[str], seed: int
) -> None:
    asked = [*ranking(seed)[:top_k], *indices, *(LABELS.index(label) for label in labels)] or ranking(seed)[:1]
    expected = [target for place, target in enumerate(asked) if target not in asked[:place]]
    assert explained(Targets(top_k, tuple(indices), tuple(labels)), seed=seed) == expected


def test_without_targets_the_predicted_class_is_explained() -> None:
    assert explained(Targets()) == ranking()[:1]


def test_named_classes_do_not_bring_the_predicted_class_with_them() -> None:
    other = ranking()[-1]
    assert explained(Targets(class_indices=(other,))) == [other]


@SOURCES
def test_class_zero_is_a_class_like_any_other(source: PathwaySource) -> None:
    assert explained(Targets(class_indices=(0,)), source) == [0]
    assert explained(Targets(class_indices=(3, 0, 1)), source) == [3, 0, 1]
    assert explained(Targets(labels=("ant",)), source) == [0]


def test_a_label_that_two_classes_share_means_the_first_of_them() -> None:
    assert explained(Targets(labels=("cow",))) == [2]


def test_the_target_is_described_like_a_prediction() -> None:
    (result,) = tiny_explainer().explain(
        [tensor(0)], ExplanationOptions(Targets(class_indices=(3,)), predictions=CLASSES)
    )
    assert result.explanations[0].target in result.predictions


@SOURCES
@pytest.mark.parametrize("index", [-1, CLASSES, -CLASSES, 2**31, -(2**63)])
def test_a_class_index_out_of_range_is_not_found(source: PathwaySource, index: int) -> None:
    with pytest.raises(NotFoundError, match=str(index)) as caught:
        explained(Targets(class_indices=(0, index)), source)
    assert caught.value.reason == "CLASS_NOT_FOUND"
    assert caught.value.field == "options.targets.class_indices"
    assert caught.value.metadata == {"class": str(index), "classes": str(CLASSES)}


@SOURCES
@pytest.mark.parametrize("label", ["unicorn", "", "ANT", "0"])
def test_an_unknown_label_is_not_found(source: PathwaySource, label: str) -> None:
    with pytest.raises(NotFoundError) as caught:
        explained(Targets(labels=(label,)), source)
    assert caught.value.reason == "CLASS_NOT_FOUND"
    assert caught.value.field == "options.targets.labels"


@pytest.mark.parametrize("top_k", [-1, CLASSES + 1, 2**32 - 1])
def test_a_top_k_beyond_the_number_of_classes_is_refused(top_k: int) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        explained(Targets(top_k))
    assert (caught.value.reason, caught.value.field) == ("OPTION_INVALID", "options.targets.top_k")


def test_a_class_without_stored_pathway_cannot_be_transferred() -> None:
    with pytest.raises(FailedPreconditionError) as caught:
        explained(Targets(class_indices=(0, WITHOUT_PATHWAY)), PathwaySource.TRANSFERRED)
    assert caught.value.reason == "CLASS_PATHWAY_MISSING"
    assert caught.value.metadata == {"class_index": str(WITHOUT_PATHWAY), "images": "3"}


def test_a_class_without_stored_pathway_can_still_be_explained_by_contributions() -> None:
    assert explained(Targets(class_indices=(WITHOUT_PATHWAY,))) == [WITHOUT_PATHWAY]


@pytest.mark.parametrize("selector", [-1, CLASSES, "unicorn"])
def test_the_stored_pathway_of_an_unknown_class_is_not_found(selector: int | str) -> None:
    with pytest.raises(NotFoundError) as caught:
        tiny_explainer().class_pathway(selector)
    assert (caught.value.reason, caught.value.field) == ("CLASS_NOT_FOUND", "class")


@pytest.mark.parametrize("selector", [WITHOUT_PATHWAY, "eel"])
def test_a_class_without_stored_pathway_has_none_to_return(selector: int | str) -> None:
    with pytest.raises(FailedPreconditionError) as caught:
        tiny_explainer().class_pathway(selector)
    assert caught.value.reason == "CLASS_PATHWAY_MISSING"
