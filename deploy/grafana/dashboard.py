"""The Grafana dashboard as code: `python -m deploy.grafana.dashboard [--check]`.

What it shows stands in graphs.yaml. Edit there, never in Grafana: dashboard.json is provisioned
read-only, and a test compares it with the code.
"""

import itertools
import sys
from pathlib import Path

import msgspec
from grafana_foundation_sdk.builders import common, dashboard, prometheus, timeseries
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.common import (
    GraphTresholdsStyleMode,  # spelt so in Grafana's schema
    LegendDisplayMode,
    LegendPlacement,
    ScaleDistribution,
    StackingMode,
    TooltipDisplayMode,
)
from grafana_foundation_sdk.models.dashboard import DataSourceRef, Threshold, ThresholdsMode
from pydantic_settings import BaseSettings

from deploy.command import DeployError, options
from train.command import run_command

OUTPUT = Path(__file__).with_name("dashboard.json")
SOURCE = DataSourceRef(type_val="prometheus", uid="${source}")
WIDTH, HEIGHT = 8, 8  # three panels a row of Grafana's 24 columns


class Graph(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One panel: what it shows, in which unit of Grafana's, and its queries by legend."""

    title: str
    text: str
    unit: str
    queries: dict[str, str]
    limits: tuple[float, ...] = ()
    stacked: bool = False
    highest: float | None = None
    logarithmic: bool = False


ROWS = msgspec.yaml.decode(
    OUTPUT.with_name("graphs.yaml").read_bytes(), type=dict[str, list[Graph]]
)


def panel(graph: Graph, number: int) -> timeseries.Panel:
    """The graph as a panel of Grafana's, with its legend below."""
    built = (
        timeseries.Panel()
        .id(number)
        .title(graph.title)
        .description(graph.text)
        .unit(graph.unit)
        .datasource(SOURCE)
        .span(WIDTH)
        .height(HEIGHT)
        .fill_opacity(20 if graph.stacked else 0)
        .legend(
            common.VizLegendOptions()
            .display_mode(LegendDisplayMode.LIST)
            .placement(LegendPlacement.BOTTOM)
            .show_legend(True)
        )
        .tooltip(common.VizTooltipOptions().mode(TooltipDisplayMode.MULTI))
    )
    if graph.logarithmic:
        built = built.scale_distribution(
            common.ScaleDistributionConfig().type(ScaleDistribution.LOG).log(10)
        )
    else:
        built = built.min(0)
    if graph.highest is not None:
        built = built.max(graph.highest)
    if graph.stacked:
        built = built.stacking(common.StackingConfig().mode(StackingMode.NORMAL))
    if graph.limits:
        red = [Threshold(value=limit, color="red") for limit in graph.limits]
        steps = [Threshold(value=None, color="transparent"), *red]
        built = built.thresholds(
            dashboard.ThresholdsConfig().mode(ThresholdsMode.ABSOLUTE).steps(steps)
        ).thresholds_style(common.GraphThresholdsStyleConfig().mode(GraphTresholdsStyleMode.DASHED))
    for letter, (legend, expression) in zip("ABCDEFGH", graph.queries.items(), strict=False):
        built = built.with_target(
            prometheus.Dataquery()
            .ref_id(letter)
            .datasource(SOURCE)
            .expr(expression)
            .legend_format(legend)
            .range()
        )
    return built


def build() -> str:
    """The dashboard's JSON, ready for Grafana's provisioning."""
    board = (
        dashboard.Dashboard("nextclick")
        .uid("nextclick")
        .description("Recommendations for the next click: latency, throughput, live quality.")
        .tags(["nextclick"])
        .readonly()
        .refresh("5s")
        .time("now-30m", "now")
        .timezone("browser")
        .with_variable(dashboard.DatasourceVariable("source").label("Source").type("prometheus"))
    )
    number = itertools.count(1)
    for title, graphs in ROWS.items():
        board = board.with_row(dashboard.Row(title))
        for graph in graphs:
            board = board.with_panel(panel(graph, next(number)))
    return JSONEncoder(sort_keys=True, indent=2).encode(board.build()) + "\n"


class DashboardSettings(BaseSettings):
    """Write the Grafana dashboard as the code builds it."""

    model_config = options("deploy.grafana.dashboard")

    check: bool = False
    """Write nothing, and fail if the file differs."""


def write(settings: DashboardSettings) -> None:
    """Write the file, or check it. Raises DeployError if it differs from what the code builds."""
    if not settings.check:
        OUTPUT.write_text(build())
    elif not OUTPUT.exists() or OUTPUT.read_text() != build():
        raise DeployError(f"{OUTPUT.name} is out of date; run python -m deploy.grafana.dashboard")


if __name__ == "__main__":
    sys.exit(run_command(DashboardSettings, write))
