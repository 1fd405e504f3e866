"""What the dashboards have in common: variables, links, annotations and their place on the grid."""

from collections.abc import Sequence
from dataclasses import dataclass

from grafana_foundation_sdk.builders.dashboard import (
    AnnotationQuery,
    Dashboard,
    DashboardLink,
    DatasourceVariable,
    QueryVariable,
    Row,
)
from grafana_foundation_sdk.builders.prometheus import Dataquery
from grafana_foundation_sdk.cog.builder import Builder
from grafana_foundation_sdk.models import dashboard
from grafana_foundation_sdk.models.dashboard import VariableOption

from grafana.palette import BAD, NEUTRAL, WARNING
from grafana.queries import ANSWERS, INTERVAL, PODS
from grafana.targets import SOURCE

TAG = "pathlens"


@dataclass(frozen=True)
class Group:
    """Panels under one heading.

    Attributes:
        title: The heading.
        panels: The panels, whose widths come to 24 in each line.
    """

    title: str
    panels: Sequence[Builder[dashboard.Panel]]


def framed(
    name: str, title: str, description: str, since: str, variables: Sequence[QueryVariable], groups: Sequence[Group]
) -> dashboard.Dashboard:
    """Put panels into a dashboard.

    Args:
        name: Name of the dashboard in its address, after `pathlens-`.
        title: Title.
        description: Description.
        since: Begin of the time range, in Grafana's form.
        variables: Variables beside those that all dashboards have.
        groups: The panels.

    Returns:
        The dashboard, with numbers for panels.
    """
    builder = (
        Dashboard(title)
        .uid(f"{TAG}-{name}")
        .description(description)
        .tags([TAG])
        .timezone("browser")
        .time(since, "now")
        .refresh("30s")
        # A moment is marked on all panels at once.
        .tooltip(dashboard.DashboardCursorSync.CROSSHAIR)
        .readonly()
        .variables([_datasource(), *_common_variables(), *variables])
        .annotations(_annotations())
        .link(_link())
    )
    number = 0
    for group in groups:
        number += 1
        builder.with_row(Row(group.title).id(number).collapsed(False))
        for panel in group.panels:
            number += 1
            builder.with_panel(_numbered(panel, number))
    built = builder.build()
    # The SDK hides links and annotations in a menu, and has no way to say otherwise.
    links = [link for panel in built.panels or [] if isinstance(panel, dashboard.Panel) for link in panel.links or []]
    for link in (*(built.links or []), *links):
        link.placement = None  # type: ignore[assignment]
    for annotation in (built.annotations and built.annotations.list_val) or []:
        annotation.placement = None  # type: ignore[assignment]
    return built


def source_variable() -> QueryVariable:
    """Make the variable that chooses sources of pathways.

    Returns:
        The variable.
    """
    query = f"label_values(pathlens_pathway_sparsity_ratio_count{{{ANSWERS}}}, source)"
    return choice("source", "Source", query, ".+")


def choice(name: str, label: str, query: str, everything: str) -> QueryVariable:
    """Make a variable with the values of a label, any number of which may be chosen.

    Args:
        name: Name of the variable.
        label: What the reader sees.
        query: Where the values come from.
        everything: What matches all of them. `.*` matches series without the label, too.

    Returns:
        The variable, with everything chosen.
    """
    return (
        _variable(name, label, query)
        .multi(True)
        .include_all(True)
        .all_value(everything)
        .current(VariableOption(selected=True, text=["All"], value=["$__all"]))
    )


def single_choice(name: str, label: str, query: str, value: str) -> QueryVariable:
    """Make a variable with the values of a label, one of which is chosen.

    Args:
        name: Name of the variable.
        label: What the reader sees.
        query: Where the values come from.
        value: What is chosen at first.

    Returns:
        The variable.
    """
    return _variable(name, label, query).current(VariableOption(selected=True, text=value, value=value))


def _common_variables() -> list[QueryVariable]:
    namespace = 'namespace=~"$namespace"'
    return [
        choice("namespace", "Namespace", "label_values(pathlens_build_info, namespace)", ".*"),
        choice("pod", "Pod", f"label_values(pathlens_build_info{{{namespace}}}, pod)", ".*"),
        choice("model", "Model", f"label_values(pathlens_model_info{{{PODS}}}, model)", ".+"),
        choice("version", "Version", f'label_values(pathlens_model_info{{{PODS},model=~"$model"}}, version)', ".+"),
    ]


def _variable(name: str, label: str, query: str) -> QueryVariable:
    return (
        QueryVariable(name)
        .label(label)
        .datasource(SOURCE)
        .query(query)
        .definition(query)
        # Versions and pods come and go while the dashboard is open.
        .refresh(dashboard.VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(dashboard.VariableSort.NATURAL_ASC)
    )


def _datasource() -> DatasourceVariable:
    return DatasourceVariable("datasource").label("Data source").type("prometheus")


def _annotations() -> list[Builder[dashboard.AnnotationQuery]]:
    restarts = f"sum by (pod, reason) (increase(pathlens_torchserve_restarts_total{{{PODS}}}[{INTERVAL}])) > 0"
    workers = f"sum by (pod) (increase(pathlens_worker_restarts_total{{{PODS}}}[{INTERVAL}])) > 0"
    changes = f"sum by (pod, result) (increase(pathlens_model_changes_total{{{PODS}}}[{INTERVAL}])) > 0"
    served = f"count by (model, version) (pathlens_model_info{{{ANSWERS}}}"
    rollouts = f"{served}) unless {served} offset 5m)"
    return [
        _annotation("TorchServe restarts", BAD, restarts, "TorchServe restarted", "{{pod}}: {{reason}}"),
        _annotation("Worker restarts", WARNING, workers, "Worker replaced", "{{pod}}"),
        _annotation("Model changes", NEUTRAL, changes, "Models changed", "{{pod}}: {{result}}"),
        _annotation("New versions", NEUTRAL, rollouts, "New version", "{{model}} {{version}}"),
    ]


def _annotation(name: str, colour: str, expression: str, title: str, text: str) -> AnnotationQuery:
    return (
        AnnotationQuery()
        .name(name)
        .datasource(SOURCE)
        .enable(True)
        .icon_color(colour)
        .target(Dataquery().expr(expression).ref_id("Anno").range().interval("1m"))
        .title_format(title)
        .text_format(text)
    )


def _link() -> DashboardLink:
    return (
        DashboardLink("pathlens")
        .type(dashboard.DashboardLinkType.DASHBOARDS)
        .icon("external link")
        .tooltip("The other dashboards of pathlens, for the same time and the same choices")
        .tags([TAG])
        .as_dropdown(False)
        .include_vars(True)
        .keep_time(True)
        .target_blank(False)
    )


def _numbered(panel: Builder[dashboard.Panel], number: int) -> Builder[dashboard.Panel]:
    built = panel.build()
    built.id_val = number
    return _Built(built)


class _Built(Builder[dashboard.Panel]):
    """A panel that is built already, for the dashboard's builder, which gives it its place."""

    def __init__(self, panel: dashboard.Panel) -> None:
        self._panel = panel

    def build(self) -> dashboard.Panel:
        return self._panel
