"""The line of numbers on top of the service's dashboard."""

from collections.abc import Sequence

from grafana_foundation_sdk.builders.dashboard import DashboardLink
from grafana_foundation_sdk.builders.stat import Panel as Stat
from grafana_foundation_sdk.models import dashboard

from grafana.alerts import FIRING
from grafana.palette import BAD, GOOD, NEUTRAL, WARNING
from grafana.panels import described, limits, stat
from grafana.queries import CALLS, PODS, drift, failures, quantile, rate
from grafana.targets import now

_BY_URL = "&".join(
    f"${{{name}:queryparam}}" for name in ("datasource", "namespace", "pod", "model", "version", "source")
)


def overview() -> Sequence[Stat]:
    """Build the line.

    Returns:
        Eight numbers.
    """
    calls = stat(
        "Calls/s (5 min)",
        described(
            "Finished calls of all methods.", "what the applications usually send.", "at 0, ask the applications."
        ),
        "reqps",
        limits((None, NEUTRAL)),
        now(rate("pathlens_requests_total", CALLS, window="5m")),
    )
    alerts = stat(
        "Alerts",
        described("Alerts of pathlens that fire.", "0.", "they are named in the table below."),
        "none",
        limits((None, GOOD), (1, BAD)),
        now(f"count({FIRING}) or vector(0)"),
    )
    # An answered batch or stream has no objective; neither have the sources whose callers choose how long they take.
    explain = 'method="Explain",source=~"transferred|generated"'
    return [
        _pods(),
        _availability(),
        _burn(),
        _slowest("Predict", 'method="Predict"', 0.25),
        _slowest("Explain", explain, 1),
        calls.decimals(1),
        _drift(),
        alerts,
    ]


def _pods() -> Stat:
    panel = stat(
        "Pods",
        described(
            "Pods whose readiness is SERVING, and pods that run without being ready. By namespace and pod only.",
            "as many ready as there are replicas, and none that is not.",
            "look at the log of the pods where `pathlens_ready` is 0; with none ready, every call fails.",
            "PathlensNotReady",
            "PathlensAbsent",
            "PathlensGatewayDown",
            "PathlensTorchServeDown",
        ),
        "none",
        limits((None, BAD), (1, GOOD)),
        # Pods that are gone tell nothing at all, which has to read as none.
        now(f"sum(pathlens_ready{{{PODS}}}) or vector(0)", "ready"),
        now(f"count(pathlens_ready{{{PODS}}} == 0) or vector(0)", "not ready"),
    )
    steps = [{"color": GOOD, "value": None}, {"color": WARNING, "value": 1}]
    thresholds = {"mode": "absolute", "steps": steps}
    return panel.override_by_name("not ready", [dashboard.DynamicConfigValue(id_val="thresholds", value=thresholds)])


def _availability() -> Stat:
    panel = stat(
        "Available (range)",
        described(
            "Share of the sound calls in the time range that the service did not fail. Calls that no version "
            "answered have "
            "no model and always count.",
            "at or above the objective of 99.9 %.",
            "look at the errors below, by code.",
            "PathlensErrorBudgetBurn",
        ),
        "percentunit",
        limits((None, BAD), (0.999, GOOD)),
        now(f"1 - {failures('$__range')}"),
    )
    return panel.decimals(3).max(1).no_value("no calls")


def _burn() -> Stat:
    panel = stat(
        "Budget burn (1 h)",
        described(
            "How many times faster than allowed the error budget (0.1 % of the calls) went in the last hour. At 1 it "
            "lasts "
            "the month, at 14.4 two days.",
            "below 1.",
            "above 14.4 act now, above 1 today; if DEADLINE_EXCEEDED is all there is, today as well.",
            "PathlensErrorBudgetBurn",
        ),
        "none",
        limits((None, GOOD), (1, WARNING), (14.4, BAD)),
        now(f"{failures('1h')} / 0.001"),
    )
    return panel.decimals(1).no_value("no calls")


def _slowest(method: str, matchers: str, objective: float) -> Stat:
    panel = stat(
        f"p99 {method} (5 min)",
        described(
            f"99 % of the calls of {method} in the last five minutes took at most this long."
            + (
                " Only transferred and generated pathways, for which the objective holds."
                if method == "Explain"
                else ""
            ),
            f"at or below the objective of {objective:g} s.",
            "see *Latency* and *Where the time goes*.",
            "PathlensLatencyBudgetBurn",
        ),
        "s",
        limits((None, GOOD), (0.8 * objective, WARNING), (objective, BAD)),
        # A histogram that saw nothing has a quantile of NaN, which the comparison drops.
        now(f"{quantile(0.99, 'pathlens_request_duration_seconds', f'{CALLS},{matchers}', window='5m')} >= 0"),
    )
    return panel.decimals(2).no_value("no calls")


def _drift() -> Stat:
    panel = stat(
        "Drift (6 h)",
        described(
            "The largest distance (Kolmogorov-Smirnov) between the ranks of live explanations and evenly spread "
            "ranks, over "
            "models, sources and statistics with at least 100 explanations in six hours. Over all pods.",
            "below 0.15.",
            "predictions still come, but what carries them is no longer what it was when the model was fitted. Open "
            "the dashboard Explanations by this panel's link.",
            "PathlensPathwayDrift",
        ),
        "none",
        limits((None, GOOD), (0.1, WARNING), (0.15, BAD)),
        now(f"max({drift('6h')})"),
    )
    link = DashboardLink("Explanations").type(dashboard.DashboardLinkType.LINK)
    link.url(f"/d/pathlens-explanations?${{__url_time_range}}&{_BY_URL}")
    return panel.decimals(2).no_value("too few").links([link])
