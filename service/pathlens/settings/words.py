"""What pydantic finds wrong with settings, in the words of an operator."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from annotated_types import Ge, Le, MinLen
from pydantic import ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

_LONGEST_VALUE = 80
_UNKNOWN = frozenset({"extra_forbidden", "unexpected_keyword_argument"})
_OUT_OF_RANGE = frozenset({"greater_than_equal", "less_than_equal"})
# Says only that a default was not computed because of another error, which is reported itself.
_CONSEQUENCE = "default_factory_not_called"
_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")
_KINDS = {int: "a whole number", float: "a number", Path: "a path", str: "a text"}


def problems_of(error: ValidationError) -> Sequence[ErrorDetails]:
    """List what pydantic found, without what only follows from it."""
    return [problem for problem in error.errors(include_url=False) if problem["type"] != _CONSEQUENCE]


def is_unknown(problem: ErrorDetails) -> bool:
    """Tell whether there is no setting of this name."""
    return problem["type"] in _UNKNOWN


def complaint(name: str, problem: ErrorDetails, field: FieldInfo | None) -> str:
    """Say what is wrong with the value of a setting.

    Args:
        name: Name of the setting.
        problem: What pydantic found.
        field: Its definition; None for a whole group.

    Returns:
        A sentence that names the setting, its value and what it takes.
    """
    if (reason := problem.get("ctx", {}).get("error")) is not None:
        return f"{name} {reason}."
    remedy = "write a table of settings" if field is None else f"choose {accepted(field)}"
    if problem["type"] == "missing":
        return f"{name} is missing: {remedy}."
    if field is not None and problem["type"] in _OUT_OF_RANGE:
        remedy = f"choose a value{_range(field)}"
    return f"{name} is {quoted(problem['input'])}: {remedy}."


def accepted(field: FieldInfo) -> str:
    """Say what a setting takes.

    Args:
        field: Its definition.

    Returns:
        A noun with its article, such as "a whole number from 0 to 65535", or the values themselves.
    """
    origin = get_origin(field.annotation)
    if origin is Literal:
        return " or ".join(repr(value) for value in get_args(field.annotation))
    if origin is tuple:
        return "a list of paths"
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return "a table of texts"
    filled = " that is not empty" if any(isinstance(one, MinLen) for one in field.metadata) else ""
    return _KINDS[plain_type(field)] + filled + _range(field)


def plain_type(field: FieldInfo) -> Any:
    """Return the type of a setting of one value, whether it is optional or not."""
    annotation = field.annotation
    if get_origin(annotation) in (Union, UnionType):
        (annotation,) = (one for one in get_args(annotation) if one is not type(None))
    return get_args(annotation)[0] if get_origin(annotation) is Annotated else annotation


def bounds(field: FieldInfo) -> tuple[float, float] | None:
    """Return the lowest and the highest value of a setting; None if it is not a number."""
    limits: list[Any] = [bound.ge for bound in field.metadata if isinstance(bound, Ge)]
    limits += [bound.le for bound in field.metadata if isinstance(bound, Le)]
    return (limits[0], limits[1]) if limits else None


def location(place: Sequence[int | str]) -> str:
    """Write the place of a value as an operator does: `gateway.port`, `torchserve.archives[0]`.

    Args:
        place: Names of tables and settings, and positions in lists.
    """
    return "".join(f"[{step}]" if isinstance(step, int) else f".{_key(step)}" for step in place).removeprefix(".")


def quoted(value: object) -> str:
    """Write a value on one line, shortened if it is long."""
    text = repr(str(value) if isinstance(value, Path) else value)
    return text if len(text) <= _LONGEST_VALUE else text[: _LONGEST_VALUE - 1] + "…"


def _key(step: str) -> str:
    # As TOML does: bare where it can be.
    return step if _BARE_KEY.fullmatch(step) else quoted(step)


def _range(field: FieldInfo) -> str:
    limits = bounds(field)
    return "" if limits is None else f" from {limits[0]} to {limits[1]}"
