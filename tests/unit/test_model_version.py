import pytest
from hypothesis import given
from hypothesis import strategies as st

from pathlens.model_version import ModelVersion

NUMBERS = st.tuples(st.integers(0, 10**6), st.integers(0, 10**6))
TEXTS = st.text(st.sampled_from("0129.-ab"), max_size=6)


def tiny(version: str) -> ModelVersion:
    return ModelVersion("tiny", version)


@given(older=NUMBERS, newer=NUMBERS)
def test_versions_are_ordered_as_numbers(older: tuple[int, int], newer: tuple[int, int]) -> None:
    first, second = (tiny(f"{major}.{minor}") for major, minor in (older, newer))
    assert (first < second) == (older < newer)


@pytest.mark.parametrize(("older", "newer"), [("9", "10"), ("1", "1.0"), ("1.9", "1.10"), ("2.0", "2024-01-beta")])
def test_versions_of_other_forms_have_an_order_too(older: str, newer: str) -> None:
    assert tiny(older) < tiny(newer)


@given(one=TEXTS, other=TEXTS)
def test_of_two_versions_exactly_one_is_newer(one: str, other: str) -> None:
    assert (tiny(one) < tiny(other)) + (tiny(other) < tiny(one)) == (one != other)


def test_models_are_ordered_by_name_first() -> None:
    assert ModelVersion("a", "2") < ModelVersion("b", "1")
