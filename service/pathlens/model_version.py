"""A model in one of its versions."""

import re
from dataclasses import dataclass
from functools import total_ordering


@total_ordering
@dataclass(frozen=True)
class ModelVersion:
    """What is served under one name and one version; ordered by name, and from the oldest version to the newest.

    Versions are compared number by number, so that 1.10 is newer than 1.9.

    Args:
        name: Name of the model.
        version: Its version, a number such as 1.0 if `pathlens pack` made it.
    """

    name: str
    version: str

    def __str__(self) -> str:
        """Name and version, for people."""
        return f"{self.name} {self.version}"

    def __lt__(self, other: "ModelVersion") -> bool:
        """Whether it comes before another one, or is older."""
        return self._order < other._order

    @property
    def _order(self) -> tuple[str, list[tuple[bool, int, str]], str]:
        parts = re.findall(r"[0-9]+|[^0-9]+", self.version)
        natural = [(part.isdecimal(), int(part) if part.isdecimal() else 0, part) for part in parts]
        # A leading zero makes a version another one, and no newer one.
        numbers = [(is_number, number, "" if is_number else text) for is_number, number, text in natural]
        return self.name, numbers, self.version
