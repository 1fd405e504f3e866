"""What panels ask Prometheus."""

from grafana_foundation_sdk.builders.prometheus import Dataquery
from grafana_foundation_sdk.cog.builder import Builder
from grafana_foundation_sdk.cog.variants import Dataquery as AnyQuery
from grafana_foundation_sdk.models import common
from grafana_foundation_sdk.models.prometheus import PromQueryFormat, QueryEditorMode

SOURCE = common.DataSourceRef(type_val="prometheus", uid="${datasource}")
"""The Prometheus that the reader chose."""


def now(expression: str, legend: str = "") -> Dataquery:
    """Ask for this moment, so that a value that is no longer told does not stay on the screen.

    Args:
        expression: PromQL.
        legend: Name of the answer.

    Returns:
        The query.
    """
    return _query(expression, legend).instant()


def over_time(expression: str, legend: str = "") -> Dataquery:
    """Ask for the whole time range.

    Args:
        expression: PromQL.
        legend: Name of each series, with its labels in double braces.

    Returns:
        The query.
    """
    return _query(expression, legend).range()


def buckets(expression: str) -> Dataquery:
    """Ask for a histogram, a series for each `le`.

    Args:
        expression: PromQL.

    Returns:
        The query.
    """
    return _query(expression, "{{le}}").format(PromQueryFormat.HEATMAP)


def lettered(*queries: Dataquery) -> list[Builder[AnyQuery]]:
    """Name queries A, B and so on, as panels need it.

    Args:
        queries: The queries of a panel, which are changed.

    Returns:
        The queries.
    """
    return [query.ref_id(letter) for letter, query in zip("ABCDEFGH", queries, strict=False)]


def _query(expression: str, legend: str) -> Dataquery:
    query = Dataquery().expr(expression).datasource(SOURCE).editor_mode(QueryEditorMode.CODE)
    return query.legend_format(legend or "__auto")
