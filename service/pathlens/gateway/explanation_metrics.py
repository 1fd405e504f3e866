"""Distributions of what explanations say, and of how typical they are."""

from prometheus_client import CollectorRegistry, Histogram

from pathlens.gateway.class_labels import OTHER, ClassLabels
from pathlens.gateway.version_series import VersionSeries
from pathlens.model_version import ModelVersion
from pathlens.wire.v1 import explanation_service_pb2 as messages

_LABELS = ("model", "version", "source", "class")
_RATIO_BUCKETS = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 1.0)
_RANK_BUCKETS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
_LEAST_COMPARED = 120
"""Fewest images of a class that its ranks may be told apart with: the distribution of fewer is off by 0.15, the least
drift that alerts, by chance alone (1.63 / sqrt(120) is the distance that one in a hundred such samples exceeds)."""


class ExplanationMetrics:
    """Observes explanations.

    Args:
        registry: Where the metrics are exposed.
        series: Which versions become labels.
        max_class_labels: Most classes of a version that the label `class` tells apart.
    """

    def __init__(self, registry: CollectorRegistry, series: VersionSeries, max_class_labels: int) -> None:
        self._series = series
        self._classes = ClassLabels(max_class_labels)

        def ratio(name: str, documentation: str) -> Histogram:
            return series.of(Histogram(name, documentation, _LABELS, buckets=_RATIO_BUCKETS, registry=registry))

        self._sparsity = ratio("pathlens_pathway_sparsity_ratio", "Fraction of neurons that pathways remove.")
        self._iou = ratio(
            "pathlens_class_pathway_iou_ratio", "Intersection over union of pathways and their class pathway."
        )
        self._drop = ratio(
            "pathlens_confidence_drop_ratio", "Share of the target's confidence lost in the pathway network."
        )
        self._rank = series.of(
            Histogram(
                "pathlens_pathway_rank_ratio",
                "Percentile rank of explanations among those of images that the fit held out; uniform without drift.",
                [*_LABELS, "statistic"],
                buckets=_RANK_BUCKETS,
                registry=registry,
            )
        )

    def received(self, version: ModelVersion, response: messages.ExplainResponse) -> None:
        """Observe the explanations of an image.

        Args:
            version: The version that made them; one without series is not observed.
            response: What it says.
        """
        if version not in self._series:
            return
        predicted = {prediction.class_index for prediction in response.predictions[:1]}
        for explanation in response.explanations:
            target = explanation.target
            # Callers choose targets: classes that the model never predicts must not use up the labels.
            label = self._classes.of(version, target.label, claim=target.class_index in predicted)
            self._observe(version, label, explanation)

    def forget(self, version: ModelVersion) -> None:
        """Let the classes of a version be told apart anew; its series go with those of all metrics.

        Args:
            version: Which is served no more.
        """
        self._classes.forget(version)

    def _observe(self, version: ModelVersion, label: str, explanation: messages.Explanation) -> None:
        source = messages.PathwaySource.Name(explanation.source).removeprefix("PATHWAY_SOURCE_").lower()
        labels = (version.name, version.version, source)
        self._sparsity.labels(*labels, label).observe(explanation.sparsity)
        if explanation.HasField("class_pathway_iou"):
            self._iou.labels(*labels, label).observe(explanation.class_pathway_iou)
        if explanation.HasField("faithfulness"):
            self._drop.labels(*labels, label).observe(explanation.faithfulness.confidence_drop)
        typicality = explanation.typicality
        compared = label if typicality.class_images >= _LEAST_COMPARED else OTHER
        for field, rank in typicality.ListFields():
            if field.name.endswith("_rank"):
                self._rank.labels(*labels, compared, field.name.removesuffix("_rank")).observe(rank)
