"""Where each value comes from, so that what is wrong with it is said where it stands."""

import os
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from pathlens.configuration.configuration import DELIMITER, GROUPS, PREFIX, SETTINGS
from pathlens.settings.words import complaint, is_unknown, location, problems_of

_SIMILAR = 0.6


class Origins:
    """The three places in which settings stand.

    Variables of the environment that begin with the prefix and have the delimiter are settings; other names with this
    prefix belong to others, as Kubernetes gives them to the pods beside a service called pathlens.

    Args:
        file: The file; None without one.
        table: What it holds.
        flags: What the command line says, by the whole names of the settings.
    """

    def __init__(self, file: Path | None, table: Mapping[str, Any], flags: Mapping[str, object]) -> None:
        self._file = file
        self._table = table
        self._flags = flags
        self._variables = {
            name: tuple(name.lower().removeprefix(PREFIX.lower()).split(DELIMITER))
            for name, value in os.environ.items()
            if value and name.upper().startswith(PREFIX) and (DELIMITER in name or _group(name) in GROUPS)
        }

    def command_line(self) -> dict[str, Any]:
        """Return what the command line says, by groups."""
        groups: dict[str, Any] = {}
        for whole_name, value in self._flags.items():
            group, _, name = whole_name.partition(".")
            groups.setdefault(group, {})[name] = value
        return groups

    def problems(self, error: ValidationError | None = None) -> list[str]:
        """Say what is wrong.

        Args:
            error: What pydantic found; None if nothing.

        Returns:
            A sentence for each problem: unknown variables of the environment, which pydantic does not see, come first.
        """
        strange = {
            place: f"{variable}: there is no setting {location(place)}: did you mean {_nearest(place)}?"
            for variable, place in self._variables.items()
            if place[0] not in GROUPS or (len(place) > 1 and ".".join(place) not in SETTINGS)
        }
        found = list(strange.values())
        for problem in [] if error is None else problems_of(error):
            place = problem["loc"]
            if not is_unknown(problem):
                found.append(f"{self._of(place)}{_complaint(problem)}")
            elif place not in strange or self._is_in_table(place):
                origin = f"{self._file}: " if self._is_in_table(place) else self._of(place)
                found.append(f"{origin}there is no setting {location(place)}: did you mean {_nearest(place)}?")
        return found

    def _of(self, place: Sequence[int | str]) -> str:
        names = tuple(map(str, place[:2]))
        if ".".join(names) in self._flags:
            return "Command line: "
        for variable, variable_place in self._variables.items():
            if variable_place in (names, names[:1]):
                return f"{variable}: "
        # A value that is missing stands nowhere, but its table does.
        return f"{self._file}: " if names[0] in self._table else ""

    def _is_in_table(self, place: Sequence[int | str]) -> bool:
        table: Any = self._table
        for name in place:
            if not isinstance(table, Mapping) or name not in table:
                return False
            table = table[name]
        return True


def _complaint(problem: ErrorDetails) -> str:
    place = problem["loc"]
    return complaint(location(place), problem, SETTINGS.get(".".join(map(str, place[:2]))))


def _group(variable: str) -> str:
    return variable.upper().removeprefix(PREFIX).lower()


def _nearest(place: Sequence[int | str]) -> str:
    """Find the same word in another group, a similar word in the same group, or else what is most similar."""
    group, word = str(place[0]), str(place[0 if len(place) == 1 else 1])
    words = {name: name.partition(".")[2] for name in SETTINGS}
    if same := [name for name in SETTINGS if words[name] == word]:
        return same[0]
    if len(place) == 1:
        known = {**{words[name]: name for name in SETTINGS}, **{name: f"[{name}]" for name in GROUPS}}
        return known[get_close_matches(word, known, 1, 0)[0]]
    inside = {words[name]: name for name in SETTINGS if name.startswith(f"{group}.")}
    if similar := get_close_matches(word, inside, 1, _SIMILAR):
        return inside[similar[0]]
    return get_close_matches(f"{group}.{word}", SETTINGS, 1, 0)[0]
