"""Groups of settings: frozen, checked, and refused with all problems in one sentence each."""

from collections.abc import Mapping
from dataclasses import FrozenInstanceError, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BeforeValidator, Field

from pathlens.errors import ServerStartError
from pathlens.settings import FilePath, Integer, Number, Port, fields_of, from_json, settings
from pathlens.settings.words import accepted, location


@settings
class Oven:
    """An oven."""

    degrees: Annotated[Integer, Field(ge=50, le=250)] = 180
    """How hot it gets,
    at the most."""
    hours: Annotated[Number, Field(ge=0.5, le=12)] = 1.0
    """How long."""
    heat: Literal["top", "bottom"] = "top"
    """Where from."""
    recipe: FilePath | None = None
    """What is baked."""
    name: Annotated[str, Field(min_length=1)] = "oven"
    """Whose it is."""
    spices: Annotated[tuple[FilePath, ...], BeforeValidator(from_json)] = ()
    """What with."""
    weights: Annotated[Mapping[str, str], BeforeValidator(from_json)] = Field(default_factory=dict)
    """How much."""
    port: Port = 0
    """Where the heat comes from."""


def complaint(**values: Any) -> str:
    with pytest.raises(ServerStartError) as caught:
        Oven(**values)
    assert caught.value.reason == "CONFIGURATION_INVALID"
    return caught.value.message


def test_a_group_is_constructed_and_changed_as_a_dataclass() -> None:
    assert replace(Oven(degrees=200), hours=2) == Oven(degrees=200, hours=2.0)


def test_a_group_cannot_be_changed_in_place() -> None:
    with pytest.raises(FrozenInstanceError):
        Oven().degrees = 3  # type: ignore[misc]


def test_a_field_is_described_by_the_literal_below_it() -> None:
    assert fields_of(Oven)["hours"].description == "How long."


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"degrees": 49}, "degrees is 49: choose a value from 50 to 250."),
        ({"degrees": 251}, "degrees is 251: choose a value from 50 to 250."),
        ({"degrees": "hot"}, "degrees is 'hot': choose a whole number from 50 to 250."),
        ({"degrees": 100.5}, "degrees is 100.5: choose a whole number from 50 to 250."),
        ({"degrees": True}, "degrees is True: choose a whole number from 50 to 250."),
        ({"degrees": None}, "degrees is None: choose a whole number from 50 to 250."),
        ({"hours": float("nan")}, "hours is nan: choose a value from 0.5 to 12."),
        ({"hours": float("inf")}, "hours is inf: choose a value from 0.5 to 12."),
        ({"hours": False}, "hours is False: choose a number from 0.5 to 12."),
        ({"heat": "side"}, "heat is 'side': choose 'top' or 'bottom'."),
        ({"recipe": 3}, "recipe is 3: choose a path."),
        ({"recipe": "a\0b"}, "recipe holds the character NUL, which no path does."),
        ({"name": ""}, "name is '': choose a text that is not empty."),
        ({"name": "x" * 100 + "\n" * 3, "degrees": 1}, "degrees is 1: choose a value from 50 to 250."),
        ({"spices": ["salt", 3]}, "spices[1] is 3: choose a list of paths."),
        ({"weights": {"salt": 3}}, "weights.salt is 3: choose a table of texts."),
        ({"port": 65536}, "port is 65536: choose a value from 0 to 65535."),
        (
            {"degree": 200},
            "degree is not a setting: choose from degrees, hours, heat, recipe, name, spices, weights, port.",
        ),
    ],
)
def test_a_wrong_value_is_named_with_what_the_setting_takes(values: dict[str, Any], sentence: str) -> None:
    assert complaint(**values) == sentence


def test_all_problems_are_told_at_once() -> None:
    lines = complaint(degrees=1, hours=0, heat="side", gas=1).splitlines()
    assert lines[0] == "There are 4 problems:"
    assert [line.split()[0] for line in lines[1:]] == ["degrees", "hours", "heat", "gas"]


def test_a_long_value_is_shortened() -> None:
    assert len(complaint(heat="x" * 10_000)) < 200


@given(st.integers())
def test_a_number_is_taken_exactly_if_it_lies_in_the_range(value: int) -> None:
    if 50 <= value <= 250:
        assert Oven(degrees=value).degrees == value
    else:
        assert complaint(degrees=value) == f"degrees is {value}: choose a value from 50 to 250."


@pytest.mark.parametrize("text", ["200", " 200 "])
def test_a_number_may_come_as_text(text: str) -> None:
    values: dict[str, Any] = {"degrees": text}
    assert Oven(**values).degrees == 200


def test_values_may_come_as_json() -> None:
    values: dict[str, Any] = {"spices": '["salt", "pepper"]', "weights": '{"salt": "1 g"}'}
    oven = Oven(**values)
    assert (oven.spices, dict(oven.weights)) == ((Path("salt"), Path("pepper")), {"salt": "1 g"})


def test_json_that_is_none_is_refused_with_what_is_wrong_with_it() -> None:
    assert "spices is not JSON (Expecting" in complaint(spices='["salt"')


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("degrees", "a whole number from 50 to 250"),
        ("hours", "a number from 0.5 to 12"),
        ("heat", "'top' or 'bottom'"),
        ("recipe", "a path"),
        ("name", "a text that is not empty"),
        ("spices", "a list of paths"),
        ("weights", "a table of texts"),
    ],
)
def test_what_a_setting_takes_is_said_in_words(name: str, words: str) -> None:
    assert accepted(fields_of(Oven)[name]) == words


def test_a_place_is_written_as_in_toml_and_on_one_line() -> None:
    assert location(("gateway", "port")) == "gateway.port"
    assert location(("torchserve", "archives", 2)) == "torchserve.archives[2]"
    assert location(("a\nb", "é")) == r"'a\nb'.'é'"
