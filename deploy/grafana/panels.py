"""Panels in the form that all dashboards of pathlens share."""

from collections.abc import Mapping, Sequence
from typing import Protocol, Self, TypeVar

from grafana_foundation_sdk.builders.bargauge import Panel as BarGauge
from grafana_foundation_sdk.builders.common import (
    GraphThresholdsStyleConfig,
    ReduceDataOptions,
    ScaleDistributionConfig,
    StackingConfig,
    VizLegendOptions,
    VizTooltipOptions,
)
from grafana_foundation_sdk.builders.dashboard import FieldColor, ThresholdsConfig
from grafana_foundation_sdk.builders.heatmap import FilterValueRange, HeatmapColorOptions, HeatmapTooltip, YAxisConfig
from grafana_foundation_sdk.builders.heatmap import Panel as Heatmap
from grafana_foundation_sdk.builders.prometheus import Dataquery
from grafana_foundation_sdk.builders.stat import Panel as Stat
from grafana_foundation_sdk.builders.statushistory import Panel as StatusHistory
from grafana_foundation_sdk.builders.timeseries import Panel as Timeseries
from grafana_foundation_sdk.models import common, dashboard, heatmap

from grafana.palette import NEUTRAL
from grafana.targets import SOURCE, buckets, lettered


class _Coloured(Protocol):
    def override_by_name(self, name: str, properties: list[dashboard.DynamicConfigValue]) -> Self: ...


_P = TypeVar("_P", bound=_Coloured)


def described(shows: str, normal: str, otherwise: str, *alerts: str) -> str:
    """Write what the reader sees with the mouse on a panel's corner.

    Args:
        shows: What the panel shows.
        normal: What it looks like when all is well.
        otherwise: What to do when it does not.
        alerts: Names of the alerts about it, which are headings of the runbook.

    Returns:
        The description, as Markdown.
    """
    runbook = f"\n\n**Runbook** (docs/runbook.md): {', '.join(alerts)}." if alerts else ""
    return f"{shows}\n\n**Normal:** {normal}\n\n**Otherwise:** {otherwise}{runbook}"


def limits(*steps: tuple[float | None, str]) -> ThresholdsConfig:
    """Make thresholds.

    Args:
        steps: From which value on which colour; the first value is None.

    Returns:
        The thresholds.
    """
    thresholds = [dashboard.Threshold(value=value, color=colour) for value, colour in steps]
    return ThresholdsConfig().mode(dashboard.ThresholdsMode.ABSOLUTE).steps(thresholds)


def stat(title: str, description: str, unit: str, thresholds: ThresholdsConfig, *queries: Dataquery) -> Stat:
    """Show a big number in the colour of its threshold, eight of which fill a row.

    Args:
        title: Title.
        description: Description.
        unit: Grafana's name of the unit.
        thresholds: From which value on which colour.
        queries: What it shows; one number for each.

    Returns:
        The panel.
    """
    text = common.BigValueTextMode.VALUE_AND_NAME if len(queries) > 1 else common.BigValueTextMode.VALUE
    return (
        Stat()
        .title(title)
        .description(description)
        .datasource(SOURCE)
        .targets(lettered(*queries))
        .span(3)
        .height(4)
        .unit(unit)
        .thresholds(thresholds)
        .color_scheme(FieldColor().mode(dashboard.FieldColorModeId.THRESHOLDS))
        .color_mode(common.BigValueColorMode.BACKGROUND_SOLID)
        .graph_mode(common.BigValueGraphMode.NONE)
        .text_mode(text)
        .reduce_options(ReduceDataOptions().calcs(["last"]).values(False).fields(""))
        .no_value("no data")
    )


def lines(title: str, description: str, unit: str, *queries: Dataquery) -> Timeseries:
    """Show lines over time from zero up, with a table of their last and largest values below.

    Args:
        title: Title.
        description: Description.
        unit: Grafana's name of the unit.
        queries: What it shows.

    Returns:
        The panel.
    """
    return (
        Timeseries()
        .title(title)
        .description(description)
        .datasource(SOURCE)
        .targets(lettered(*queries))
        .span(8)
        .height(8)
        .unit(unit)
        .min(0)
        .line_width(2)
        .fill_opacity(0)
        .show_points(common.VisibilityMode.AUTO)
        .color_scheme(FieldColor().mode(dashboard.FieldColorModeId.PALETTE_CLASSIC_BY_NAME))
        .legend(_legend())
        .tooltip(VizTooltipOptions().mode(common.TooltipDisplayMode.MULTI).sort(common.SortOrder.DESCENDING))
    )


def stacked(title: str, description: str, unit: str, *queries: Dataquery) -> Timeseries:
    """Show areas on top of each other, whose upper edge is their sum.

    Args:
        title: Title.
        description: Description.
        unit: Grafana's name of the unit.
        queries: What it shows.

    Returns:
        The panel.
    """
    stacking = StackingConfig().mode(common.StackingMode.NORMAL).group("A")
    return lines(title, description, unit, *queries).fill_opacity(60).line_width(1).stacking(stacking)


def events(title: str, description: str, *queries: Dataquery) -> Timeseries:
    """Show a bar for each moment at which something happened, as high as it happened often.

    Args:
        title: Title.
        description: Description.
        queries: What is counted.

    Returns:
        The panel.
    """
    bars = stacked(title, description, "short", *queries).draw_style(common.GraphDrawStyle.BARS)
    # With steps below a minute, Grafana's windows overlap, and an event would be counted in several bars.
    return bars.interval("1m").fill_opacity(100).decimals(0).axis_soft_max(1)


def with_limits(panel: Timeseries, thresholds: ThresholdsConfig) -> Timeseries:
    """Draw thresholds as dashed lines.

    Args:
        panel: The panel, which is changed.
        thresholds: The thresholds.

    Returns:
        The panel.
    """
    style = GraphThresholdsStyleConfig().mode(common.GraphThresholdsStyleMode.DASHED)
    return panel.thresholds(thresholds).thresholds_style(style)


def logarithmic(panel: Timeseries) -> Timeseries:
    """Let the axis grow by powers of ten.

    Args:
        panel: The panel, which is changed.

    Returns:
        The panel.
    """
    return panel.scale_distribution(ScaleDistributionConfig().type(common.ScaleDistribution.LOG).log(10)).min(0.001)


def heat(title: str, description: str, unit: str, expression: str) -> Heatmap:
    """Show a histogram over time: brighter where more was observed.

    Args:
        title: Title.
        description: Description.
        unit: Grafana's name of what was observed.
        expression: Buckets by `le` in PromQL.

    Returns:
        The panel.
    """
    colour = HeatmapColorOptions().mode(heatmap.HeatmapColorMode.SCHEME).scheme("Cividis").steps(64).exponent(0.5)
    return (
        Heatmap()
        .title(title)
        .description(description)
        .datasource(SOURCE)
        .targets(lettered(buckets(expression).range()))
        .span(8)
        .height(8)
        .calculate(False)
        .color(colour.scale(heatmap.HeatmapColorScale.EXPONENTIAL).fill(NEUTRAL).reverse(False))
        .cell_gap(1)
        # An empty bucket is the background, not the darkest colour.
        .filter_values(FilterValueRange().ge(1e-9))
        .y_axis(YAxisConfig().unit(unit).axis_placement(common.AxisPlacement.LEFT))
        .tooltip(HeatmapTooltip().mode(common.TooltipDisplayMode.SINGLE).y_histogram(True).show_color_scale(True))
        .show_value(common.VisibilityMode.NEVER)
        .show_legend()
    )


def bars(title: str, description: str, unit: str, query: Dataquery) -> BarGauge:
    """Show bars for this moment.

    Args:
        title: Title.
        description: Description.
        unit: Grafana's name of the unit.
        query: What they show.

    Returns:
        The panel.
    """
    return (
        BarGauge()
        .title(title)
        .description(description)
        .datasource(SOURCE)
        .targets(lettered(query))
        .span(8)
        .height(8)
        .unit(unit)
        .min(0)
        .display_mode(common.BarGaugeDisplayMode.BASIC)
        .orientation(common.VizOrientation.VERTICAL)
        .show_unfilled(False)
        .value_mode(common.BarGaugeValueMode.COLOR)
        .name_placement(common.BarGaugeNamePlacement.AUTO)
        .reduce_options(ReduceDataOptions().calcs(["last"]).values(False).fields(""))
        .color_scheme(FieldColor().mode(dashboard.FieldColorModeId.THRESHOLDS))
        .no_value("no explanations")
    )


def history(title: str, description: str, unit: str, query: Dataquery) -> StatusHistory:
    """Show a line of coloured fields for each series: darker is more.

    Args:
        title: Title.
        description: Description.
        unit: Grafana's name of the unit.
        query: What it shows.

    Returns:
        The panel.
    """
    return (
        StatusHistory()
        .title(title)
        .description(description)
        .datasource(SOURCE)
        .targets(lettered(query))
        .span(8)
        .height(8)
        .unit(unit)
        .min(0)
        .max(1)
        # The panel refuses to draw more fields than it has pixels.
        .max_data_points(48)
        .color_scheme(FieldColor().mode(dashboard.FieldColorModeId.CONTINUOUS_BLUES))
        .show_value(common.VisibilityMode.NEVER)
        .fill_opacity(90)
        .row_height(0.9)
        .col_width(0.9)
        .legend(VizLegendOptions().show_legend(False).placement(common.LegendPlacement.BOTTOM))
        .tooltip(VizTooltipOptions().mode(common.TooltipDisplayMode.SINGLE))
    )


def coloured(panel: _P, colours: Mapping[str, str]) -> _P:
    """Give series the colours that they have on every panel.

    Args:
        panel: The panel, which is changed.
        colours: Colours by the name of the series.

    Returns:
        The panel.
    """
    for name, colour in colours.items():
        panel.override_by_name(name, [fixed(colour)])
    return panel


def fixed(colour: str) -> dashboard.DynamicConfigValue:
    """Make a fixed colour, for an override.

    Args:
        colour: The colour.

    Returns:
        The property.
    """
    return dashboard.DynamicConfigValue(id_val="color", value={"mode": "fixed", "fixedColor": colour})


def _legend(calculations: Sequence[str] = ("last", "max")) -> VizLegendOptions:
    legend = VizLegendOptions().show_legend(True).display_mode(common.LegendDisplayMode.TABLE)
    return legend.placement(common.LegendPlacement.BOTTOM).calcs(list(calculations)).sort_by("Max").sort_desc(True)
