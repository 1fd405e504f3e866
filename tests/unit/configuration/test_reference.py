"""docs/configuration.md tells every setting as the code has it."""

import re
import tomllib
from pathlib import Path

import pytest
from pydantic_core import PydanticUndefined

from pathlens.cli.serve import command
from pathlens.configuration import load_configuration
from pathlens.configuration.configuration import GROUPS, SETTINGS
from pathlens.settings.words import accepted

TEXT = (Path(__file__).parents[3] / "docs" / "configuration.md").read_text(encoding="utf-8")
OPTIONS = {
    option.name.replace("__", "."): option.opts[0]
    for option in command.params
    if "__" in str(option.name) and option.name
}


def row(name: str) -> str:
    """Write the row of a setting."""
    field = SETTINGS[name]
    default = "" if field.get_default() in (None, PydanticUndefined) else f"`{field.get_default()}`"
    option = f"`{OPTIONS[name]}`" if name in OPTIONS else ""
    description = " ".join((field.description or "").split())
    takes = accepted(field).replace("'", "`")
    return f"| `{name}` | {option} | {takes} | {default} | {description} |"


@pytest.mark.parametrize("name", SETTINGS)
def test_a_setting_has_its_row_with_option_range_default_and_description(name: str) -> None:
    assert row(name) in TEXT.splitlines()


def test_there_are_no_other_rows() -> None:
    assert re.findall(r"^\| `(\w+\.\w+)` \|", TEXT, re.MULTILINE) == list(SETTINGS)


def test_every_option_that_is_a_setting_has_the_setting_s_name() -> None:
    assert OPTIONS
    assert set(OPTIONS) <= set(SETTINGS)


def test_the_example_is_a_configuration_with_every_group(tmp_path: Path) -> None:
    (example,) = re.findall(r"```toml\n(.*?)```", TEXT, re.DOTALL)
    assert set(tomllib.loads(example)) == set(GROUPS)
    (tmp_path / "pathlens.toml").write_text(example)
    configuration = load_configuration(tmp_path / "pathlens.toml")
    assert configuration.tls is not None


def test_the_variables_of_the_text_are_settings() -> None:
    named = {name.lower().replace("__", ".") for name in re.findall(r"PATHLENS_(\w+?__\w+)", TEXT)}
    assert named
    assert named <= set(SETTINGS)
