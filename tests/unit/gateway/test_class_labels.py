from hypothesis import given
from hypothesis import strategies as st

from pathlens.gateway.class_labels import OTHER, ClassLabels
from pathlens.model_version import ModelVersion

ONE, TWO = ModelVersion("digits", "1.0"), ModelVersion("digits", "2.0")
NAMES = st.lists(st.sampled_from("abcdefgh"))


@given(NAMES, st.integers(0, 10))
def test_the_first_classes_keep_their_names_and_the_others_share_one(names: list[str], limit: int) -> None:
    labels = ClassLabels(limit)
    first = list(dict.fromkeys(names))[:limit]
    assert [labels.of(ONE, name, claim=True) for name in names] == [name if name in first else OTHER for name in names]


@given(NAMES)
def test_each_version_has_its_own_first_classes(names: list[str]) -> None:
    labels = ClassLabels(1)
    for name in names:
        labels.of(ONE, name, claim=True)
    assert labels.of(TWO, "z", claim=True) == "z"


def test_a_forgotten_version_begins_anew() -> None:
    labels = ClassLabels(1)
    assert [labels.of(ONE, name, claim=True) for name in "ab"] == ["a", OTHER]
    labels.forget(ONE)
    labels.forget(ONE)
    assert [labels.of(ONE, name, claim=True) for name in "ba"] == ["b", OTHER]


@given(NAMES, NAMES)
def test_a_class_that_claims_nothing_has_a_name_only_if_it_had_one(claimed: list[str], others: list[str]) -> None:
    labels = ClassLabels(10)
    for name in claimed:
        labels.of(ONE, name, claim=True)
    assert [labels.of(ONE, name, claim=False) for name in others] == [
        name if name in claimed else OTHER for name in others
    ]
