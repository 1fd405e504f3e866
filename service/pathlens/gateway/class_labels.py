"""Class names as label values, of which Prometheus must not get too many."""

from collections import defaultdict

from pathlens.model_version import ModelVersion

OTHER = "other"
"""Stands for all classes that have no label value of their own."""


class ClassLabels:
    """Gives the classes that are predicted first of each version a label value of their own, and all others `OTHER`.

    Args:
        limit: Most classes of a version with a value of their own.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._seen: defaultdict[ModelVersion, set[str]] = defaultdict(set)

    def of(self, version: ModelVersion, name: str, *, claim: bool) -> str:
        """Return the label value of a class.

        Args:
            version: The version that saw it.
            name: Of the class.
            claim: Whether the class may get a value of its own now, because it was predicted.
        """
        seen = self._seen[version]
        if claim and len(seen) < self._limit:
            seen.add(name)
        return name if name in seen else OTHER

    def forget(self, version: ModelVersion) -> None:
        """Forget the classes of a version.

        Args:
            version: Which is served no more.
        """
        self._seen.pop(version, None)
