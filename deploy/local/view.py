"""What is going on, as a table."""

import math
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from local.prometheus import Prometheus

_P99 = (
    "1000 * histogram_quantile(0.99, sum by (le) (rate("
    'pathlens_request_duration_seconds_bucket{{method="{method}"}}[30s])))'
)
_FIGURES: Mapping[str, tuple[str, str]] = {
    "calls per second": ("sum(rate(pathlens_requests_total[15s]))", "{:.1f}"),
    "refused or failed per second": ('sum(rate(pathlens_requests_total{code!="OK"}[15s]))', "{:.1f}"),
    "p99 of Predict, ms": (_P99.format(method="Predict"), "{:.0f}"),
    "p99 of Explain, ms": (_P99.format(method="Explain"), "{:.0f}"),
    "calls in progress": ("sum(pathlens_inflight)", "{:.0f}"),
    "requests at TorchServe": ("sum(pathlens_upstream_inflight)", "{:.0f}"),
    "canaries without an answer": ('sum(pathlens_canaries_total{result="failed"})', "{:.0f}"),
    "drift of pathways (KS distance, 1 h)": ("max(pathlens:pathway_drift:ks_1h)", "{:.2f}"),
    "explanations that it is taken from": ("max(pathlens:pathway_drift:observations_1h)", "{:.0f}"),
}
_STYLES = {"firing": "bold red", "pending": "yellow"}


class View:
    """Asks Prometheus and draws what it knows.

    Args:
        prometheus: Whom to ask.
        addresses: What can be opened in a browser or called, by what it is.
    """

    def __init__(self, prometheus: Prometheus, addresses: Mapping[str, str]) -> None:
        self._prometheus = prometheus
        self._addresses = addresses

    def draw(self, left_seconds: float) -> Group:
        """Draw everything as it is now.

        Args:
            left_seconds: Seconds until the end.

        Returns:
            What rich prints.
        """
        return Group(self._links(left_seconds), self._figures(), self._alerts())

    def _links(self, left_seconds: float) -> Table:
        minutes, seconds = divmod(max(0, round(left_seconds)), 60)
        table = _table(f"pathlens, watched ({minutes}:{seconds:02} left; Ctrl-C ends it)")
        for name, address in self._addresses.items():
            table.add_row(name, address)
        return table

    def _figures(self) -> Table:
        table = _table("Now")
        for name, (expression, form) in _FIGURES.items():
            value = self._prometheus.number(expression)
            table.add_row(name, "-" if math.isnan(value) else form.format(value))
        return table

    def _alerts(self) -> Table:
        table = _table("Alerts")
        rules = [rule for rule in self._prometheus.rules() if rule["type"] == "alerting"]
        active = [(alert, rule) for rule in rules for alert in rule["alerts"]]
        for alert, rule in sorted(active, key=lambda pair: (str(pair[0]["state"]), str(pair[1]["name"]))):
            table.add_row(Text(rule["name"], _STYLES.get(alert["state"], "")), _state(alert, rule["duration"]))
        if not active:
            table.add_row("none", f"{len(rules)} rules are watching")
        return table


def _table(title: str) -> Table:
    table = Table(title=title, title_justify="left", show_header=False, box=None, padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True, min_width=38)
    table.add_column(overflow="fold")
    return table


def _state(alert: Mapping[str, Any], wait_seconds: float) -> str:
    labels = alert["labels"]
    told = f"{alert['state']}, {labels.get('severity', 'without severity')}"
    if alert["state"] != "pending":
        return told
    since = datetime.now(UTC) - datetime.fromisoformat(alert["activeAt"])
    left = max(0.0, wait_seconds - since.total_seconds())
    return f"{told}: fires in {left:.0f} s, if it goes on"
