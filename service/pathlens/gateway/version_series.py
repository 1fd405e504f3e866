"""Which versions of models have series of their own among the metrics."""

from typing import TypeVar

from prometheus_client import Counter, Gauge, Histogram

from pathlens.model_version import ModelVersion

Metric = TypeVar("Metric", Counter, Gauge, Histogram)


class VersionSeries:
    """Keeps labels bounded: only versions that are served become labels, and their series go with them.

    A version that is no longer served keeps its series until `forget`, so that its last calls are still counted.
    """

    def __init__(self) -> None:
        self._metrics: list[Counter | Gauge | Histogram] = []
        self._served: set[ModelVersion] = set()
        self._retired: set[ModelVersion] = set()

    def __contains__(self, version: ModelVersion) -> bool:
        """Whether a version may be a label."""
        return version in self._served or version in self._retired

    def of(self, metric: Metric) -> Metric:
        """Take care of a metric.

        Args:
            metric: One with the labels model and version.

        Returns:
            The metric.
        """
        self._metrics.append(metric)
        return metric

    def labels(self, version: ModelVersion | None) -> dict[str, str]:
        """Tell the labels of a version.

        Args:
            version: The version; None for none.

        Returns:
            The labels model and version, which are empty if it has no series.
        """
        if version is None or version not in self:
            return {"model": "", "version": ""}
        return {"model": version.name, "version": version.version}

    def serve(self, version: ModelVersion) -> None:
        """Let a version have series."""
        self._retired.discard(version)
        self._served.add(version)

    def retire(self, version: ModelVersion) -> None:
        """Let a version keep its series until `forget`."""
        if version in self._served:
            self._served.remove(version)
            self._retired.add(version)

    def forget(self, version: ModelVersion) -> bool:
        """Remove the series of a version, unless it is served again.

        Args:
            version: A version that was retired.

        Returns:
            Whether its model has no other version by now.
        """
        if version not in self._retired:
            return False
        self._retired.remove(version)
        for metric in self._metrics:
            metric.remove_by_labels({"model": version.name, "version": version.version})
        return all(other.name != version.name for other in self._served | self._retired)
