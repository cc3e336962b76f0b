"""The report: kept evaluations as one page of HTML that needs nothing but a browser."""

import math
from collections import defaultdict
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from train.measure.lists import list_figures
from train.measure.metrics import CUTOFFS
from train.measure.results import Evaluation, LogCounts, compare_kept
from train.measure.significance import Difference, Estimate, Part, estimate, holm
from train.measure.slices import slicings
from train.report.plots import MOST_SERIES, Series, bar, decimals, line_plot, swatch

SHOWN = ("recall_at_20", "mrr_at_20")
"""The figures that have intervals, tests and plots."""
TITLES = {"recall": "Recall", "mrr": "MRR", "ndcg": "NDCG"}
_HEADLINE = (*SHOWN, "ndcg_at_20")


class Row(NamedTuple):
    """A model in a log's tables, the best Recall@20 first."""

    evaluation: Evaluation
    figures: dict[str, float]
    estimates: dict[str, Estimate]
    colour: int | None
    """None where there are too many models to plot this one."""

    @property
    def name(self) -> str:
        return self.evaluation.info.model

    @property
    def listed(self) -> bool:
        """Whether its lists were looked at."""
        return bool(self.evaluation.listed.any())

    @property
    def typical_support(self) -> float:
        """Geometric mean of 1 + the clicks in training on what its lists show, less 1."""
        return math.expm1(self.figures["log_support_at_20"])

    @property
    def per_second(self) -> float:
        """Predictions ranked a second."""
        return len(self.evaluation.ranks) / max(self.evaluation.info.seconds, 1e-9)


class Slice(NamedTuple):
    """One way to cut the evaluations of a log: plots, and the table behind them."""

    name: str
    plots: list[Markup]
    labels: list[str]
    predictions: dict[str, list[int]]
    """By model, a count for each label; of one model only where all have the same."""
    values: dict[str, dict[str, list[Estimate]]]
    """By metric and model, a value for each label."""


class Test(NamedTuple):
    """A model against the best one in a metric; the p-value after Holm's correction."""

    name: str
    difference: Difference | None
    """None where the two did not predict the same clicks."""
    p_value: float


class Section(NamedTuple):
    """Everything of one log."""

    log: LogCounts
    """As the model with the best Recall@20 read it."""
    catalogues_differ: bool
    """Whether models dropped different clicks of it, or know different items."""
    rows: list[Row]
    best: dict[str, Row]
    largest: dict[str, float]
    tests: dict[str, list[Test]]
    slices: list[Slice]
    trained: list[Row]
    """Those with epochs, which `training` plots."""
    training: list[Markup]
    clicked: dict[str, float]
    """`list_figures` of the targets, as if they had been lists."""
    clicked_support: float


def write_report(
    path: Path, evaluations: Sequence[Evaluation], title: str = "Next click: evaluation"
) -> None:
    """Write the page of these evaluations, with one section for each log, in their order."""
    by_log: dict[tuple[str, str], list[Evaluation]] = defaultdict(list)
    for evaluation in evaluations:
        by_log[evaluation.info.log.identity].append(evaluation)
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "decimals": decimals,
        "signed": _signed,
        "metric": _metric,
        "count": lambda number: f"{number:,.0f}",
        "day": _day,
        "p_value": _p_value,
    }
    sections = [_section(found) for found in by_log.values()]
    page = environment.get_template("page.html").render(
        title=title,
        style=Markup((Path(__file__).parent / "page.css").read_text("utf-8")),  # noqa: S704
        sections=sections,
        models=list(dict.fromkeys(row.name for section in sections for row in section.rows)),
        protocols=sorted({evaluation.info.protocol for evaluation in evaluations}),
        cutoffs=CUTOFFS,
        headline=_HEADLINE,
        shown=SHOWN,
        titles=TITLES,
        swatch=swatch,
        bar=bar,
        share_bar=lambda share: bar(Estimate(share, math.nan, math.nan), 1.0, best=False),
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page, encoding="utf-8")


def _section(evaluations: Sequence[Evaluation]) -> Section:
    measured = [(evaluation, evaluation.figures()) for evaluation in evaluations]
    measured.sort(key=lambda pair: -pair[1][SHOWN[0]])
    rows = [
        Row(
            evaluation,
            figures,
            estimate(evaluation.ranks, _HEADLINE)[0].figures,
            n if n < MOST_SERIES else None,
        )
        for n, (evaluation, figures) in enumerate(measured)
    ]
    ranks, support = measured[0][0].ranks, measured[0][0].support
    trained = [row for row in rows if row.evaluation.info.training and row.colour is not None]
    clicked = list_figures(np.bincount(ranks.target, minlength=len(support)), support)
    best = {metric: max(rows, key=lambda row: row.figures[metric]) for metric in _HEADLINE}
    return Section(
        log=rows[0].evaluation.info.log,
        catalogues_differ=len({(e.info.log, len(e.support)) for e in evaluations}) > 1,
        rows=rows,
        best=best,
        largest={
            metric: max(
                (v for row in rows for v in row.estimates[metric] if not math.isnan(v)), default=0.0
            )
            for metric in _HEADLINE
        },
        tests={metric: _tests(best[metric], rows, metric) for metric in SHOWN},
        slices=_slices([row for row in rows if row.colour is not None]),
        trained=trained,
        training=_training(trained),
        clicked=clicked,
        clicked_support=math.expm1(clicked["log_support_at_20"]),
    )


def _tests(best: Row, rows: Sequence[Row], metric: str) -> list[Test]:
    differences: dict[str, Difference] = {}
    others = [row for row in rows if row is not best]
    for row in others:
        try:
            differences[row.name] = compare_kept(row.evaluation, best.evaluation, metric)
        except ValueError:  # another catalogue, hence other clicks dropped
            continue
    corrected = dict(zip(differences, holm([d.p_value for d in differences.values()]), strict=True))
    return [
        Test(row.name, differences.get(row.name), corrected.get(row.name, math.nan))
        for row in others
    ]


def _slices(rows: Sequence[Row]) -> list[Slice]:
    parts: dict[str, dict[str, list[Part]]] = defaultdict(dict)
    for row in rows:
        ranks = row.evaluation.ranks
        for slicing in slicings(ranks, row.evaluation.support):
            parts[slicing.name][row.name] = estimate(ranks, SHOWN, slicing)
    result = []
    for name, by_model in parts.items():
        predictions = {model: [p.predictions for p in found] for model, found in by_model.items()}
        first = next(iter(predictions.values()))
        is_one = all(counts == first for counts in predictions.values())
        labels = [part.label for part in by_model[rows[0].name]]
        values = {
            metric: {model: [p.figures[metric] for p in found] for model, found in by_model.items()}
            for metric in SHOWN
        }
        plots = [
            line_plot(
                _metric(metric),
                name,
                labels,
                [Series(row.name, row.colour or 0, values[metric][row.name]) for row in rows],
                [_short(count) for count in first] if is_one else [],
                connect=name != "target",  # novel and repeat have no order
            )
            for metric in SHOWN
        ]
        if is_one:
            predictions = {rows[0].name: first}
        result.append(Slice(name, plots, labels, predictions, values))
    return result


def _training(trained: Sequence[Row]) -> list[Markup]:
    """Loss and figures by epoch, the measured one ringed."""
    plots = []
    for name in ("loss", *SHOWN):
        series, n_epochs = [], 0
        for row in trained:
            training = row.evaluation.info.training
            assert training is not None
            values = [
                record.loss if name == "loss" else record.metrics.get(name, math.nan)
                for record in training.history
            ]
            points = [Estimate(value, math.nan, math.nan) for value in values]
            series.append(Series(row.name, row.colour or 0, points, training.epoch - 1))
            n_epochs = max(n_epochs, len(points))
        title = "Training loss" if name == "loss" else f"{_metric(name)} on validation"
        if any(not math.isnan(point.value) for one in series for point in one.values):
            labels = [str(epoch) for epoch in range(1, n_epochs + 1)]
            plots.append(line_plot(title, "epoch", labels, series))
    return plots


def _metric(metric: str) -> str:
    """recall_at_20 as Recall@20."""
    name, k = metric.split("_at_")
    return f"{TITLES[name]}@{k}"


def _signed(value: float) -> str:
    return ("+" if value > 0 and float(f"{value:.4f}") else "") + decimals(value)


def _p_value(value: float) -> str:
    return "< .001" if value < 0.001 else f"{value:.3f}".lstrip("0") if value < 1 else "1"


def _short(number: int) -> str:
    return f"{number:,}" if number < 10_000 else f"{number / 1000:,.0f}k"


def _day(timestamp_ms: int) -> str:
    return datetime.fromtimestamp(timestamp_ms / 1000, UTC).strftime("%-d %B %Y")
