"""The dashboard of what explanations say, and whether they still look as they did when the model was fitted."""

from collections.abc import Sequence

from grafana_foundation_sdk.builders.bargauge import Panel as BarGauge
from grafana_foundation_sdk.builders.stat import Panel as Stat
from grafana_foundation_sdk.builders.timeseries import Panel as Timeseries
from grafana_foundation_sdk.cog.builder import Builder
from grafana_foundation_sdk.models import common, dashboard

from grafana.frame import Group, choice, framed, source_variable
from grafana.palette import BAD, GOOD, NEUTRAL, QUANTILES, SOURCES, STATISTICS, WARNING
from grafana.panels import bars, coloured, described, fixed, heat, history, limits, lines, stacked, stat, with_limits
from grafana.queries import ANSWERS, EXPLANATIONS, RECORDED, drift, drift_by_class, increase, quantile, rate
from grafana.targets import buckets, now, over_time

_RANK = "pathlens_pathway_rank_ratio"
_SPARSITY = "pathlens_pathway_sparsity_ratio"
# Models may have classes of the same name.
_CLASS = "{{model}} {{version}}: {{class}}"
_DISTANCE = limits((None, GOOD), (0.1, WARNING), (0.15, BAD))
_ALERT = "PathlensPathwayDrift"
_ACT = (
    "find the classes and the moment it began below; then ask what changed: the pictures that are sent, their "
    "decoding, or "
    "the model's version. Fit the bundle again where the new pictures are the ones to come."
)
_MEASURES = {
    "sparsity": (_SPARSITY, "sparsity", "Share of the neurons that a pathway removes."),
    "class_pathway_iou": (
        "pathlens_class_pathway_iou_ratio",
        "IoU with the class pathway",
        "Overlap (intersection over union) of each pathway with the stored pathway of its class.",
    ),
    "confidence_drop": (
        "pathlens_confidence_drop_ratio",
        "confidence drop",
        "Share of the class's confidence that is lost when only the pathway is left. Only for calls that ask for it.",
    ),
}


def explanations() -> dashboard.Dashboard:
    """Build the dashboard.

    Returns:
        The dashboard.
    """
    classes = f'label_values({_SPARSITY}_count{{{ANSWERS},source=~"$source"}}, class)'
    return framed(
        "explanations",
        "pathlens / Explanations",
        "Whether explanations still mean what they meant when the model was fitted. Drift first, then what drifted.",
        "now-24h",
        [source_variable(), choice("class", "Class", classes, ".+")],
        [
            Group("Now", _overview()),
            Group("Drift", _drift()),
            Group("Ranks among the held-out images of the fit", [_ranks(statistic) for statistic in _MEASURES]),
            *(_distribution(statistic) for statistic in _MEASURES),
            Group("How many explanations", _volume()),
        ],
    )


def _overview() -> Sequence[Stat]:
    distance = (
        "The largest distance of live ranks from evenly spread ones, where at least 100 explanations stand behind it."
    )
    panels = []
    for window, name in (("6h", "6 h"), ("1h", "1 h")):
        description = described(distance + " Over all pods.", "below 0.15.", _ACT, _ALERT)
        panel = stat(f"Drift ({name})", description, "none", _DISTANCE, now(f"max({drift(window)})"))
        panels.append(panel.decimals(2).no_value("too few"))
    behind = stat(
        "Ranked (6 h)",
        described(
            "Explanations of the last six hours whose rank is known: those of the predicted class. Over all pods.",
            "at least 100: with fewer, no drift is told.",
            "too few calls, or a bundle without ranks: fit it again.",
        ),
        "short",
        limits((None, WARNING), (100, NEUTRAL)),
        now(f"max(pathlens:pathway_drift:observations_6h{{{RECORDED}}})"),
    )
    volume = stat(
        "Explanations/s (5 min)",
        described(
            "Explanations of all sources.", "what the applications usually ask for.", "at 0, ask the applications."
        ),
        "cps",
        limits((None, NEUTRAL)),
        now(rate(f"{_SPARSITY}_count", EXPLANATIONS, window="5m")),
    )
    panels += [behind.decimals(0).no_value("none"), volume.decimals(1).no_value("none")]
    for metric, name, shows in _MEASURES.values():
        short = name.removesuffix(" with the class pathway")
        panel = stat(
            f"Median {short} (1 h)",
            described(
                shows, "steady from day to day; the level is the model's own.", "compare with the days before, below."
            ),
            "percentunit",
            limits((None, NEUTRAL)),
            now(f"{quantile(0.5, metric, EXPLANATIONS, window='1h')} >= 0"),
        )
        panels.append(panel.decimals(1).no_value("none"))
    classes = stat(
        "Classes that drift (6 h)",
        described(
            "Classes whose distance is at least 0.15 with at least 100 explanations. Over all pods.",
            "0.",
            "a few: their pictures changed. Nearly all: the model or the decoding changed.",
            _ALERT,
        ),
        "none",
        limits((None, GOOD), (1, BAD)),
        now(f"count(count by (namespace, model, version, class) (({drift_by_class('6h')}) >= 0.15)) or vector(0)"),
    )
    return [*panels, classes]


def _drift() -> Sequence[Builder[dashboard.Panel]]:
    legend = "{{model}} {{version}} {{source}}: {{statistic}}"
    distance = (
        "Distance (Kolmogorov-Smirnov) between the ranks of live explanations and evenly spread ranks, by model, "
        "version, "
        "source and statistic. Over all pods. It counts with at least 100 explanations, which is beside it."
    )
    chance = "below the dashed line at 0.15. With n explanations, chance alone reaches 1.63 / √n: 0.16 with 100."
    panels = [
        lines(
            f"Drift over {name}",
            described(distance, chance, _ACT, _ALERT),
            "none",
            over_time(f"pathlens:pathway_drift:ks_{window}{{{RECORDED}}}", legend),
        )
        for window, name in (("6h", "6 hours"), ("1h", "1 hour"))
    ]
    for panel in panels:
        with_limits(panel, limits((None, "transparent"), (0.15, BAD))).axis_soft_max(0.3).decimals(2)
    behind = lines(
        "Explanations behind it, 6 hours",
        described(
            "How many explanations the distance over six hours is taken from.", "above the dashed line at 100.", "wait."
        ),
        "short",
        over_time(f"pathlens:pathway_drift:observations_6h{{{RECORDED}}}", legend),
    )
    with_limits(behind, limits((None, "transparent"), (100, WARNING))).decimals(0)
    for panel in (*panels, behind):
        for statistic, colour in STATISTICS.items():
            panel.override_by_regexp(f": {statistic}$", [fixed(colour)])
    worst = bars(
        "Drift by class, the ten largest (6 hours)",
        described(
            "The same distance for each class alone, where at least 100 explanations stand behind it. Over all pods.",
            "all below 0.15.",
            _ACT,
            _ALERT,
        ),
        "none",
        now(f"topk(10, {drift_by_class('6h')})", f"{_CLASS} {{{{source}}}}: {{{{statistic}}}}"),
    )
    worst.thresholds(_DISTANCE).max(1).decimals(2).orientation(common.VizOrientation.HORIZONTAL).span(12).height(9)
    distances = f'pathlens:pathway_drift_by_class:ks_6h{{{RECORDED},class=~"$class"}}'
    by_class = history(
        "Drift by class over time (6 hours)",
        described(
            "The largest distance of each class of a version over its sources and statistics; darker is further, up to "
            "0.5. With few explanations it is large by chance. Over all pods.",
            "light.",
            "a line that darkens tells when a class began to drift; all lines at once: the model or the decoding.",
            _ALERT,
        ),
        "none",
        over_time(f"max by (namespace, model, version, class) ({distances})", _CLASS),
    )
    return [*panels, behind, worst, by_class.max(0.5).decimals(2).span(12).height(9)]


def _ranks(statistic: str) -> BarGauge:
    name = _MEASURES[statistic][1]
    matchers = f'{EXPLANATIONS},statistic="{statistic}"'
    counts = increase(f"{_RANK}_bucket", f'{matchers},le!="+Inf"', "le", "6h")
    panel = bars(
        f"Ranks by {name} (6 hours)",
        described(
            f"Where the {name} of live explanations lies among the held-out images of the fit that were predicted as "
            f"the same "
            "class: the share in each tenth, the lowest values on the left.",
            "flat, every bar near 10 %.",
            "a slope to the right: larger than at the fit; to the left: smaller; high at both ends: more spread; a "
            "hump in "
            "the middle: less spread.",
            _ALERT,
        ),
        "percentunit",
        buckets(f"{counts} / scalar({increase(f'{_RANK}_count', matchers, window='6h')} > 0)").instant(),
    )
    return panel.thresholds(limits((None, STATISTICS[statistic]))).max(0.5).decimals(0)


def _distribution(statistic: str) -> Group:
    metric, name, shows = _MEASURES[statistic]
    usual = "steady; the level is the model's own."
    quantiles = lines(
        f"Quantiles of {name}",
        described(
            shows + " Ten, fifty and ninety per cent of the explanations lie below the lines.", usual, _ACT, _ALERT
        ),
        "percentunit",
        *(over_time(quantile(share, metric, EXPLANATIONS), f"{share * 100:.0f} %") for share in (0.9, 0.5, 0.1)),
    )
    spread = heat(
        f"Distribution of {name}",
        described(
            shows + " Explanations per second.", "a steady band.", "a second band: some classes or sources differ."
        ),
        "percentunit",
        rate(f"{metric}_bucket", EXPLANATIONS, "le"),
    )
    by_class = history(
        f"Median {name} by class",
        described(shows + " A line for each class of a version; darker is more.", "each line in one shade.", _ACT),
        "percentunit",
        over_time(quantile(0.5, metric, EXPLANATIONS, "namespace, model, version, class"), _CLASS),
    )
    return Group(name[0].upper() + name[1:], [coloured(quantiles.max(1), QUANTILES), spread, by_class.decimals(0)])


def _volume() -> Sequence[Timeseries]:
    by_source = stacked(
        "Explanations by source",
        described(
            "Explanations per second, by the source of their pathway.",
            "what the applications ask for; transferred unless they choose.",
            "neuron_mct and neuron_intgrad take a multiple of the time: see the dashboard Service.",
            "PathlensSourceMissing",
        ),
        "cps",
        over_time(rate(f"{_SPARSITY}_count", EXPLANATIONS, "source"), "{{source}}"),
    )
    by_class = stacked(
        "Explanations by class",
        described(
            "Explanations per second, by the class that they explain; classes beyond the first twenty of a version "
            "are *other*.",
            "the mixture that the applications usually see.",
            "another mixture is no drift by itself, since ranks are taken within each class.",
        ),
        "cps",
        over_time(rate(f"{_SPARSITY}_count", EXPLANATIONS, "model, class"), "{{model}}: {{class}}"),
    )
    return [coloured(by_source.span(12), SOURCES), by_class.span(12)]
