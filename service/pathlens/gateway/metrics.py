"""What Prometheus sees of the gateway."""

from collections.abc import Iterable, Sequence

from google.rpc import code_pb2
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector

from pathlens.version import __version__
from pathlens.wire.internal.v1 import worker_pb2
from pathlens.wire.v1 import explanation_service_pb2 as messages

_DESCRIPTOR = messages.DESCRIPTOR.services_by_name["ExplanationService"]

SERVICE: str = _DESCRIPTOR.full_name
"""Full name of our service."""

METHODS: tuple[str, ...] = tuple(_DESCRIPTOR.methods_by_name)
"""The calls of our service."""

_DURATION_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)
_STAGE_BUCKETS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_CODES = tuple(code_pb2.Code.DESCRIPTOR.values_by_name)
_RATIO_BUCKETS = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 1.0)


class Metrics:
    """The gateway's metrics, in a registry of their own.

    Labels are bounded: `method` is one of the seven calls, `code` a canonical gRPC code, `model` a served name,
    `source` a pathway source of the contract and `stage` a field of StageTimings.

    Attributes:
        registry: What the metrics endpoint exposes.
        upstream_inflight: Calls that TorchServe has not answered yet.
        upstream_abandoned: Calls whose caller left before TorchServe answered.
    """

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self._requests = Counter("pathlens_requests", "Finished calls.", ["method", "code"], registry=self.registry)
        self._request_duration = Histogram(
            "pathlens_request_duration_seconds",
            "Time from the arrival of a call to its end.",
            ["method"],
            buckets=_DURATION_BUCKETS,
            registry=self.registry,
        )
        self._stage_duration = Histogram(
            "pathlens_stage_duration_seconds",
            "Time of one stage, observed once for all images that were computed together.",
            ["model", "stage"],
            buckets=_STAGE_BUCKETS,
            registry=self.registry,
        )
        self._inflight = Gauge("pathlens_inflight", "Calls in progress.", ["method"], registry=self.registry)
        self._sparsity = self._ratio("pathlens_pathway_sparsity_ratio", "Fraction of neurons that pathways remove.")
        self._iou = self._ratio(
            "pathlens_class_pathway_iou_ratio", "Intersection over union of pathways and their class pathway."
        )
        self._drop = self._ratio(
            "pathlens_confidence_drop_ratio", "Share of the target's confidence lost in the pathway network."
        )
        self.upstream_inflight = Gauge(
            "pathlens_upstream_inflight",
            "Calls that TorchServe has not answered yet, abandoned ones included.",
            registry=self.registry,
        )
        self.upstream_abandoned = Counter(
            "pathlens_upstream_abandoned",
            "Calls to TorchServe whose caller left before the answer came.",
            registry=self.registry,
        )
        Gauge("pathlens_build_info", "Version of the gateway.", ["version"], registry=self.registry).labels(
            __version__
        ).set(1)
        # A series that appears with its first event hides this event from rate(); so all of them begin at zero.
        for method in METHODS:
            self._request_duration.labels(method)
            self._inflight.labels(method)
            for code in _CODES:
                self._requests.labels(method, code)

    def request_started(self, method: str) -> None:
        """Count a call as in progress.

        Args:
            method: One of `METHODS`.
        """
        self._inflight.labels(method).inc()

    def request_finished(self, method: str, code: str, seconds: float) -> None:
        """Count a call that has ended.

        Args:
            method: One of `METHODS`.
            code: Name of the canonical code that the caller sees.
            seconds: How long the call took.
        """
        self._inflight.labels(method).dec()
        self._requests.labels(method, code).inc()
        self._request_duration.labels(method).observe(seconds)

    def answer_received(self, model: str, replies: Sequence[worker_pb2.WorkerReply], queue_seconds: float) -> None:
        """Observe what an answer of the handler tells.

        Args:
            model: Name of the served model.
            replies: The replies of one answer, as the handler sent them.
            queue_seconds: The part of the round trip that was not spent inside the handler.
        """
        self._stage_duration.labels(model, "queue").observe(queue_seconds)
        for timings in _distinct_timings(replies):
            for field, duration in timings.ListFields():
                if field.name != "queue":
                    self._stage_duration.labels(model, field.name).observe(duration.ToNanoseconds() / 1e9)
        for reply in replies:
            for explanation in reply.explain.explanations:
                self._explanation_received(model, explanation)

    def _explanation_received(self, model: str, explanation: messages.Explanation) -> None:
        source = messages.PathwaySource.Name(explanation.source).removeprefix("PATHWAY_SOURCE_").lower()
        self._sparsity.labels(model, source).observe(explanation.sparsity)
        if explanation.HasField("class_pathway_iou"):
            self._iou.labels(model, source).observe(explanation.class_pathway_iou)
        if explanation.HasField("faithfulness"):
            self._drop.labels(model, source).observe(explanation.faithfulness.confidence_drop)

    def _ratio(self, name: str, documentation: str) -> Histogram:
        return Histogram(name, documentation, ["model", "source"], buckets=_RATIO_BUCKETS, registry=self.registry)


def _distinct_timings(replies: Iterable[worker_pb2.WorkerReply]) -> list[messages.StageTimings]:
    # Images that were computed together carry the same times: counting them once per image would inflate the stages.
    distinct: dict[bytes, messages.StageTimings] = {}
    for reply in replies:
        kind = reply.WhichOneof("reply")
        if kind in ("predict", "explain"):
            timings = getattr(reply, kind).timings
            distinct[timings.SerializeToString(deterministic=True)] = timings
    return list(distinct.values())
