"""Groups of settings: frozen dataclasses with one definition of each field, checked by pydantic."""

import json
from collections.abc import Callable, Iterable, Mapping
from functools import wraps
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, TypeVar, cast, dataclass_transform

import pydantic.dataclasses
from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import PydanticCustomError

from pathlens.errors import ServerStartError
from pathlens.settings.words import complaint, is_unknown, location, problems_of

_Group = TypeVar("_Group")

_CONFIG = ConfigDict(extra="forbid", use_attribute_docstrings=True)


def _no_truth_value(value: object) -> object:
    # Python, and so pydantic, takes True for 1.
    if isinstance(value, bool):
        raise PydanticCustomError("not_a_number", "is not a number")
    return value


def _nameable(path: Path) -> Path:
    if "\0" in str(path):
        raise ValueError("holds the character NUL, which no path does")
    return path


FilePath = Annotated[Path, AfterValidator(_nameable)]
"""Path of a file or a folder; a relative one begins in the folder that pathlens is started in."""
Integer = Annotated[int, BeforeValidator(_no_truth_value)]
"""A whole number, or its text."""
Number = Annotated[float, BeforeValidator(_no_truth_value)]
"""A number, or its text."""
Port = Annotated[Integer, Field(ge=0, le=65535)]
"""A TCP port; 0 lets the system choose one."""


@dataclass_transform(frozen_default=True, field_specifiers=(Field,))
def settings(kind: type[_Group]) -> type[_Group]:
    """Make a class a group of settings: a frozen dataclass whose values pydantic checks.

    The literal below a field describes it. Constructed from Python, a group raises `ServerStartError` with all its
    problems; inside a pydantic model, it takes part in the model's validation.

    Args:
        kind: A class with annotated fields.

    Returns:
        The group of settings.
    """
    group: Any = pydantic.dataclasses.dataclass(frozen=True, config=_CONFIG)(kind)
    construct: Callable[..., None] = group.__init__

    @wraps(construct)
    def checked(self: object, *arguments: object, **values: object) -> None:
        try:
            construct(self, *arguments, **values)
        except ValidationError as error:
            raise refused(_sentences(error, fields_of(group))) from error

    group.__init__ = checked
    return cast("type[_Group]", group)


def fields_of(group: object) -> Mapping[str, FieldInfo]:
    """Name the settings of a group.

    Args:
        group: A class that `settings` made.

    Returns:
        pydantic's definition of each setting, in order.
    """
    return MappingProxyType(cast("Any", group).__pydantic_fields__)


def from_json(value: object) -> object:
    """Read what an environment variable holds for a setting with several values.

    Args:
        value: A list or an object of JSON as text; anything else is left alone.

    Returns:
        The value of the JSON.

    Raises:
        ValueError: The text begins as JSON and is none.
    """
    if not isinstance(value, str) or not value.lstrip().startswith(("[", "{")):
        return value
    try:
        return json.loads(value)
    except ValueError as error:
        raise ValueError(f"is not JSON ({error})") from error


def refused(problems: Iterable[str]) -> ServerStartError:
    """Refuse settings.

    Args:
        problems: What is wrong with them, a sentence each; at least one.

    Returns:
        One error that says all of it.
    """
    found = list(problems)
    message = found[0] if len(found) == 1 else "\n  ".join([f"There are {len(found)} problems:", *found])
    return ServerStartError(message, reason="CONFIGURATION_INVALID", metadata={"problems": len(found)})


def _sentences(error: ValidationError, fields: Mapping[str, FieldInfo]) -> list[str]:
    sentences = []
    for problem in problems_of(error):
        name = location(problem["loc"])
        if is_unknown(problem):
            sentences.append(f"{name} is not a setting: choose from {', '.join(fields)}.")
        else:
            sentences.append(complaint(name, problem, fields.get(str(problem["loc"][0]))))
    return sentences
