"""The alerts that fire, as a table of what Prometheus' own rules tell."""

from grafana_foundation_sdk.builders.common import TableSortByFieldState
from grafana_foundation_sdk.builders.table import Panel as Table
from grafana_foundation_sdk.models import dashboard
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

from grafana.palette import BAD, WARNING
from grafana.panels import described
from grafana.targets import SOURCE, lettered, now

FIRING = 'ALERTS{alertstate="firing",alertname=~"Pathlens.+",namespace=~"$namespace|"}'
_COLUMNS = ("severity", "alertname", "namespace", "pod", "model", "version", "method", "source")


def firing_alerts() -> Table:
    """Build the table.

    Returns:
        The panel.
    """
    query = now(f"max by ({', '.join(_COLUMNS)}) ({FIRING})").format(PromQueryFormat.TABLE)
    order = {name: position for position, name in enumerate(_COLUMNS)}
    columns = dashboard.DataTransformerConfig(
        id_val="organize",
        options={
            "excludeByName": {"Time": True, "Value": True},
            "indexByName": order,
            "renameByName": {"alertname": "alert"},
        },
    )
    severities = {"page": BAD, "ticket": WARNING}
    mapping = dashboard.ValueMap(
        {name: dashboard.ValueMappingResult(text=name, color=colour) for name, colour in severities.items()}
    )
    return (
        Table()
        .title("Firing alerts")
        .description(
            described(
                "Alerts of pathlens that fire in these namespaces.",
                "an empty table.",
                "look the alert up in docs/runbook.md, which has a section for each. Pages first, then tickets.",
            )
        )
        .datasource(SOURCE)
        .targets(lettered(query))
        .with_transformation(columns)
        .span(12)
        .height(7)
        .no_value("No alert fires.")
        .sort_by([TableSortByFieldState().display_name("severity").desc(False)])
        .override_by_name(
            "severity",
            [
                dashboard.DynamicConfigValue(id_val="mappings", value=[mapping]),
                dashboard.DynamicConfigValue(id_val="custom.cellOptions", value={"type": "color-background"}),
                dashboard.DynamicConfigValue(id_val="custom.width", value=110),
            ],
        )
    )
