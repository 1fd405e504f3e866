"""What Prometheus sees of the gateway."""

from collections.abc import Callable, Iterable

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
)

from pathlens.gateway.answer import Answer
from pathlens.gateway.call_kind import CallKind
from pathlens.gateway.explanation_metrics import ExplanationMetrics
from pathlens.gateway.request_metrics import RequestMetrics
from pathlens.gateway.version_series import VersionSeries
from pathlens.model_version import ModelVersion
from pathlens.version import __version__
from pathlens.wire.internal.v1 import worker_pb2
from pathlens.wire.v1 import explanation_service_pb2 as messages

_DESCRIPTOR = messages.DESCRIPTOR.services_by_name["ExplanationService"]

SERVICE: str = _DESCRIPTOR.full_name
"""Full name of our service."""

METHODS: tuple[str, ...] = tuple(_DESCRIPTOR.methods_by_name)
"""The calls of our service."""

MODEL_CHANGES = ("loaded", "refused", "unloaded")
"""What became of an archive that appeared or changed while serving, or of a version whose archive is gone."""

CANARY_RESULTS = ("answered", "failed")
"""What became of a canary: the right kind of answer came, or none, or a wrong one."""

_STAGE_BUCKETS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_CALL_BUCKETS = (1, 2, 4, 8, 16, 32, 64)
_REFUSALS = ("QUEUE_FULL", "DEADLINE_TOO_SHORT", "TOO_MANY_BULK_CALLS")


class Metrics:
    """The gateway's metrics, in a registry of their own.

    Labels are bounded: `method` is one of the seven calls, `code` a canonical gRPC code, `model` a served name,
    `source` a pathway source of the contract, `stage` a field of StageTimings, `kind` a `CallKind` and `reason` why
    admission refused. `version` is a served version, whose series go with it. `class` is the name of a class or
    `other`.

    Args:
        max_class_labels: Most classes of a version that the label `class` tells apart.

    Attributes:
        registry: What the metrics endpoint exposes.
        requests: Calls of applications.
        ready: 1 while readiness is SERVING.
        upstream_inflight: Requests that TorchServe has not answered yet, by model.
        upstream_calls: Images and other questions in one request to TorchServe, by kind.
        upstream_abandoned: Calls whose caller left before TorchServe answered.
        queued: Calls that wait in the gateway, by kind.
        queue_abandoned: Calls whose caller left, or had no time left, while they waited in the gateway, by kind.
        refused: Calls that were refused at once, by kind and reason.
        model_changes: Versions that came or went while serving, by result, one of `MODEL_CHANGES`.
    """

    def __init__(self, max_class_labels: int = 20) -> None:
        # When a series began is asked by nobody, and would be a second one beside it.
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self._series = VersionSeries()
        self.requests = RequestMetrics(self.registry, self._series, METHODS)
        self._stage_duration = self._series.of(
            Histogram(
                "pathlens_stage_duration_seconds",
                "Time of one stage, observed once for all images that were computed together.",
                ["model", "version", "stage"],
                buckets=_STAGE_BUCKETS,
                registry=self.registry,
            )
        )
        self._explanations = ExplanationMetrics(self.registry, self._series, max_class_labels)
        self.upstream_inflight = Gauge(
            "pathlens_upstream_inflight",
            "Requests that TorchServe has not answered yet, abandoned ones included.",
            ["model"],
            registry=self.registry,
        )
        self._upstream_limit = Gauge(
            "pathlens_upstream_inflight_limit",
            "Most requests of a model that TorchServe may have at one time.",
            ["model"],
            registry=self.registry,
        )
        self.upstream_calls = Histogram(
            "pathlens_upstream_calls",
            "Images and other questions in one request to TorchServe.",
            ["kind"],
            buckets=_CALL_BUCKETS,
            registry=self.registry,
        )
        self.upstream_abandoned = Counter(
            "pathlens_upstream_abandoned",
            "Calls to TorchServe whose caller left before the answer came.",
            registry=self.registry,
        )
        self._canaries = self._series.of(
            Counter(
                "pathlens_canaries",
                "Predictions with which the gateway watches the served versions.",
                ["model", "version", "result"],
                registry=self.registry,
            )
        )
        self.ready = Gauge("pathlens_ready", "Whether readiness is SERVING.", registry=self.registry)
        self._model_info = Gauge(
            "pathlens_model_info", "Versions of models that are served.", ["model", "version"], registry=self.registry
        )
        self.model_changes = Counter(
            "pathlens_model_changes",
            "Versions of models that were loaded, refused or unloaded while serving.",
            ["result"],
            registry=self.registry,
        )
        self.queued = Gauge(
            "pathlens_queued", "Calls that wait in the gateway for a place.", ["kind"], registry=self.registry
        )
        self.queue_abandoned = Counter(
            "pathlens_queue_abandoned",
            "Calls whose caller left, or had no time left, before they were sent to TorchServe.",
            ["kind"],
            registry=self.registry,
        )
        self.refused = Counter(
            "pathlens_refused",
            "Calls that admission refused at once.",
            ["kind", "reason"],
            registry=self.registry,
        )
        Gauge("pathlens_build_info", "Version of the gateway.", ["version"], registry=self.registry).labels(
            __version__
        ).set(1)
        # A series that appears with its first event hides this event from rate(); so all of them begin at zero.
        for result in MODEL_CHANGES:
            self.model_changes.labels(result)
        for kind in CallKind:
            self.queued.labels(kind.value)
            self.upstream_calls.labels(kind.value)
            self.queue_abandoned.labels(kind.value)
            for reason in _REFUSALS:
                self.refused.labels(kind.value, reason)

    def certificate_ends(self, moment: Callable[[], float]) -> None:
        """Tell until when the gateway's certificate is valid.

        Args:
            moment: Tells the moment in seconds since 1970; asked again with every scrape.
        """
        Gauge(
            "pathlens_certificate_expiry_timestamp_seconds",
            "Until when the certificate that the gateway shows is valid, in seconds since 1970.",
            registry=self.registry,
        ).set_function(moment)

    def serve(self, version: ModelVersion, places: int) -> None:
        """Let a version have series.

        Args:
            version: What applications can use from now on.
            places: Most calls of its model that TorchServe may have at one time.
        """
        self._series.serve(version)
        self.requests.serve(version)
        for result in CANARY_RESULTS:
            self._canaries.labels(**self._series.labels(version), result=result)
        self.upstream_inflight.labels(version.name)
        self._upstream_limit.labels(version.name).set(places)
        self._model_info.labels(version.name, version.version).set(1)

    def retire(self, version: ModelVersion) -> None:
        """Tell that applications cannot use a version any more; what its last calls count stays until `forget`.

        Args:
            version: The version. May be repeated.
        """
        self._series.retire(version)
        self._model_info.remove_by_labels({"model": version.name, "version": version.version})

    def forget(self, version: ModelVersion) -> None:
        """Remove the series of a retired version, unless it is served again.

        Args:
            version: The version.
        """
        is_last = self._series.forget(version)
        if version not in self._series:
            self._explanations.forget(version)
        if is_last:
            self.upstream_inflight.remove_by_labels({"model": version.name})
            self._upstream_limit.remove_by_labels({"model": version.name})

    def canary_ended(self, version: ModelVersion, result: str) -> None:
        """Count a canary.

        Args:
            version: The version that it was sent to.
            result: One of `CANARY_RESULTS`.
        """
        if version in self._series:
            self._canaries.labels(**self._series.labels(version), result=result).inc()

    def answer_received(self, version: ModelVersion, answer: Answer) -> None:
        """Observe what an answer of the handler tells.

        Args:
            version: The version that answered.
            answer: What it says.
        """
        if version not in self._series:
            # It was unloaded meanwhile: its series would never go.
            return
        labels = self._series.labels(version)
        if answer.is_first:
            self._stage_duration.labels(**labels, stage="queue").observe(answer.queue_seconds)
        for timings in _distinct_timings(answer.replies) if answer.is_first else ():
            for field, duration in timings.ListFields():
                if field.name != "queue":
                    self._stage_duration.labels(**labels, stage=field.name).observe(duration.ToNanoseconds() / 1e9)
        for reply in answer.replies:
            self._explanations.received(version, reply.explain)


def _distinct_timings(replies: Iterable[worker_pb2.WorkerReply]) -> list[messages.StageTimings]:
    # Images that were computed together carry the same times: counting them once per image would inflate the stages.
    distinct: dict[bytes, messages.StageTimings] = {}
    for reply in replies:
        kind = reply.WhichOneof("reply")
        if kind in ("predict", "explain"):
            timings = getattr(reply, kind).timings
            distinct[timings.SerializeToString(deterministic=True)] = timings
    return list(distinct.values())
