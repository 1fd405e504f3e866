"""Counts and times of the calls of applications."""

from collections.abc import Iterable

from google.rpc import code_pb2
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from pathlens.gateway.version_series import VersionSeries
from pathlens.model_version import ModelVersion

_DURATION_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)
_CODES = tuple(code_pb2.Code.DESCRIPTOR.values_by_name)
# What a call that found its version may end with; a caller without a token, for one, never gets that far.
_CODES_OF_VERSIONS = (
    "OK",
    "CANCELLED",
    "INVALID_ARGUMENT",
    "DEADLINE_EXCEEDED",
    "NOT_FOUND",
    "RESOURCE_EXHAUSTED",
    "FAILED_PRECONDITION",
    "INTERNAL",
    "UNAVAILABLE",
)


class RequestMetrics:
    """Counts the calls of applications, from their arrival to their end.

    Args:
        registry: Where the metrics are exposed.
        series: Which versions become labels.
        methods: The calls of our service.
    """

    def __init__(self, registry: CollectorRegistry, series: VersionSeries, methods: Iterable[str]) -> None:
        self._series = series
        self._methods = tuple(methods)
        self._requests = series.of(
            Counter("pathlens_requests", "Finished calls.", ["method", "model", "version", "code"], registry=registry)
        )
        self._duration = series.of(
            Histogram(
                "pathlens_request_duration_seconds",
                "Time from the arrival of a call to its end.",
                ["method", "model", "version", "source"],
                buckets=_DURATION_BUCKETS,
                registry=registry,
            )
        )
        self._inflight = Gauge("pathlens_inflight", "Calls in progress.", ["method"], registry=registry)
        for method in self._methods:
            self._inflight.labels(method)
        self._begin(None, _CODES)

    def serve(self, version: ModelVersion) -> None:
        """Let the series of a version begin.

        Args:
            version: One of `VersionSeries`.
        """
        self._begin(version, _CODES_OF_VERSIONS)

    def started(self, method: str) -> None:
        """Count a call as in progress.

        Args:
            method: Name of the call.
        """
        self._inflight.labels(method).inc()

    def finished(self, method: str, code: str, seconds: float, version: ModelVersion | None, source: str) -> None:
        """Count a call that has ended.

        Args:
            method: Name of the call.
            code: Name of the canonical code that the caller sees.
            seconds: How long the call took.
            version: The version that was asked; None if the call ended before that was known.
            source: The source of the pathways in its answer; empty without any, and for batches and streams.
        """
        labels = {"method": method, **self._series.labels(version)}
        self._inflight.labels(method).dec()
        self._requests.labels(**labels, code=code).inc()
        self._duration.labels(**labels, source=source).observe(seconds)

    def _begin(self, version: ModelVersion | None, codes: Iterable[str]) -> None:
        # A series that appears with its first event hides this event from rate(); so all of them begin at zero.
        for method in self._methods:
            labels = {"method": method, **self._series.labels(version)}
            self._duration.labels(**labels, source="")
            for code in codes:
                self._requests.labels(**labels, code=code)
