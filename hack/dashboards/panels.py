"""What the three dashboards are put together from: panels, variables, and a laid-out, numbered dashboard. Pure.

Called by rollout.py, cost.py and gateway.py. It must not know which metrics there are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from grafana_foundation_sdk.builders import common as common_builders
from grafana_foundation_sdk.builders import dashboard as dashboards
from grafana_foundation_sdk.builders import prometheus, stat, statetimeline, table, timeseries
from grafana_foundation_sdk.models import common, dashboard
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

SOURCE = dashboard.DataSourceRef(type_val="prometheus", uid="${datasource}")
TAG = "funicular"
POLICY = 'namespace=~"$namespace", policy=~"$policy"'
PODS = 'pod=~"$pod"'
HEIGHT = 8
COLORS = {  # of the words that the operator says: phases and outcomes
    "Pass|Promoted": "green",
    "Fail|Reverted|Reverting|Degraded": "red",
    "Error|Blocked|Invalid|Conflicted": "purple",
    "Inconclusive|AwaitingApproval|Paused": "yellow",
    "Ramping|Preparing": "blue",
    "Baseline|Superseded|Deleting": "text",
}


@dataclass(frozen=True, slots=True)
class Query:
    """One PromQL expression of a panel; `legend` in Grafana's `{{label}}` form."""

    expr: str
    legend: str = ""


@dataclass(frozen=True, slots=True)
class Row:
    """A heading and the panels below it."""

    title: str
    panels: tuple[Any, ...]  # builders of the SDK's panels: its Builder is invariant, so a common type does not exist


def _targets(queries: Sequence[Query], *, instant: bool = False) -> list[Any]:
    found = []
    for letter, query in zip("ABCDEFGH", queries, strict=False):
        built = prometheus.Dataquery().expr(query.expr).ref_id(letter).datasource(SOURCE)
        built = built.instant().format(PromQueryFormat.TABLE) if instant else built.range()
        found.append(built.legend_format(query.legend) if query.legend else built)
    return found


def lines(
    title: str,
    text: str,
    unit: str,
    *queries: Query,
    span: int = 8,
    stacked: bool = False,
    steps: bool = False,
    floor: float | None = 0,
    ceiling: float | None = None,
) -> timeseries.Panel:
    """Curves over time. `steps`: values that hold until the next one, as shares do."""
    panel = timeseries.Panel().title(title).description(text).datasource(SOURCE).unit(unit).span(span).height(HEIGHT)
    panel = panel.targets(_targets(queries)).line_width(2).show_points(common.VisibilityMode.NEVER)
    panel = panel.fill_opacity(20 if stacked else 0)
    legend = common_builders.VizLegendOptions().display_mode(common.LegendDisplayMode.LIST).show_legend(True)
    panel = panel.legend(legend.placement(common.LegendPlacement.BOTTOM).calcs(["lastNotNull"]))
    panel = panel.tooltip(common_builders.VizTooltipOptions().mode(common.TooltipDisplayMode.MULTI))
    if stacked:
        panel = panel.stacking(common_builders.StackingConfig().mode(common.StackingMode.NORMAL).group("A"))
    if steps:
        panel = panel.line_interpolation(common.LineInterpolation.STEP_AFTER)
    if floor is not None:
        panel = panel.min(floor)
    return panel.max(ceiling) if ceiling is not None else panel


def number(
    title: str, text: str, unit: str, query: Query, *, span: int = 4, bad_above: float | None = None, decimals: int = 0
) -> stat.Panel:
    """One large number; red above `bad_above`."""
    thresholds = [dashboard.Threshold(value=None, color="green" if bad_above is not None else "text")]
    if bad_above is not None:
        thresholds.append(dashboard.Threshold(value=bad_above, color="red"))
    panel = stat.Panel().title(title).description(text).datasource(SOURCE).unit(unit).span(span).height(4)
    panel = panel.targets(_targets((query,))).decimals(decimals)
    panel = panel.reduce_options(common_builders.ReduceDataOptions().calcs(["lastNotNull"]))
    panel = panel.thresholds(
        dashboards.ThresholdsConfig().mode(dashboard.ThresholdsMode.ABSOLUTE).steps(thresholds)
    ).color_mode(common.BigValueColorMode.VALUE)
    return panel.graph_mode(common.BigValueGraphMode.AREA)


def words(title: str, text: str, query: Query, *, span: int = 12) -> statetimeline.Panel:
    """When which word held: one row for each series, coloured by the word that its legend ends with."""
    panel = statetimeline.Panel().title(title).description(text).datasource(SOURCE).span(span).height(HEIGHT)
    panel = panel.targets(_targets((query,))).show_value(common.VisibilityMode.NEVER).merge_values(True)
    panel = panel.legend(common_builders.VizLegendOptions().show_legend(False))
    for pattern, color in COLORS.items():
        fixed = dashboard.DynamicConfigValue(id_val="color", value={"mode": "fixed", "fixedColor": color})
        panel = panel.override_by_regexp(f"/({pattern})$/", [fixed])
    return panel


def rows_of(
    title: str, text: str, unit: str, *queries: Query, names: dict[str, str], span: int = 24, height: int = HEIGHT
) -> table.Panel:
    """A table of the present values: `names` are the columns' titles, by label or `Value #A`; other labels are hidden."""
    panel = table.Panel().title(title).description(text).datasource(SOURCE).unit(unit).span(span).height(height)
    panel = panel.targets(_targets(queries, instant=True))
    panel = panel.with_transformation(dashboard.DataTransformerConfig(id_val="merge", options={}))
    order = {name: place for place, name in enumerate(names)}
    options = {"excludeByName": {"Time": True}, "renameByName": names, "indexByName": order}
    return panel.with_transformation(dashboard.DataTransformerConfig(id_val="organize", options=options))


def _variable(name: str, label: str, query: str) -> dashboards.QueryVariable:
    every = dashboard.VariableOption(selected=True, text="All", value="$__all")
    built = dashboards.QueryVariable(name).label(label).query(query).datasource(SOURCE).multi(True).include_all(True)
    built = built.all_value(".*").current(every).refresh(dashboard.VariableRefresh.ON_TIME_RANGE_CHANGED)
    return built.sort(dashboard.VariableSort.ALPHABETICAL_ASC)


def _variables(*, pods: bool) -> list[Any]:
    found: list[Any] = [
        dashboards.DatasourceVariable("datasource").label("Data source").type("prometheus"),
        _variable("namespace", "Namespace", "label_values(funicular_operator_phase, namespace)"),
        _variable("policy", "Policy", 'label_values(funicular_operator_phase{namespace=~"$namespace"}, policy)'),
    ]
    return [*found, _variable("pod", "Pod", "label_values(funicular_agent_envoy_up, pod)")] if pods else found


def board(
    uid: str, title: str, text: str, *rows: Row, pods: bool = False, since: str = "now-6h"
) -> dashboard.Dashboard:
    """Panels from left to right below their row's heading; ids count up, so that links to a panel outlive an edit of it."""
    built = dashboards.Dashboard(title).uid(uid).description(text).tags([TAG]).refresh("30s").time(since, "now")
    built = built.timezone("browser").tooltip(dashboard.DashboardCursorSync.CROSSHAIR).editable()
    built = built.variables(_variables(pods=pods))
    others = dashboards.DashboardLink("Funicular").type(dashboard.DashboardLinkType.DASHBOARDS).tags([TAG])
    built = built.link(others.as_dropdown(True).include_vars(True).keep_time(True))
    for row in rows:
        built = built.with_row(dashboards.Row(row.title))
        for panel in row.panels:
            built = built.with_panel(panel)
    made = built.build()
    for number_, panel in enumerate(made.panels or (), start=1):
        panel.id_val = number_
    return made
