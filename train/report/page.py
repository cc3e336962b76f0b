"""``python -m train report``: kept evaluations as one page of HTML that needs only a browser."""

import math
from collections import defaultdict
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import numpy as np
from markupsafe import Markup
from pydantic import Field

from train.command import Settings, TrainError
from train.data.health import SOUND, Health, figures_of
from train.measure.metrics import CUTOFFS, list_figures
from train.measure.results import Evaluation, LogCounts, compare_kept, load_evaluations
from train.measure.significance import Difference, Estimate, estimate, holm
from train.measure.slices import slicings
from train.report.plots import MOST_SERIES, TEMPLATES, Series, bar, decimals, line_plot, swatch

SHOWN = ("recall_at_20", "mrr_at_20")
"""The figures that have intervals, tests and plots."""
TITLES = {"recall": "Recall", "mrr": "MRR", "ndcg": "NDCG"}
_HEADLINE = (*SHOWN, "ndcg_at_20")


class ReportSettings(Settings):
    """Write a page with tables and plots of kept evaluations, for a browser without a network."""

    runs: list[Path] = Field(min_length=1)
    """Folders with evaluations (*.evaluation.npz), searched with all folders below them; repeat the
    flag for more."""
    out: Path = Path("report.html")
    """Page to write."""
    title: str = "Next click: evaluation"
    """Heading of the page."""


def run_report(settings: ReportSettings) -> None:
    """Write the page. Raises TrainError without evaluations, or where it cannot be written."""
    evaluations = load_evaluations(settings.runs)
    try:
        write_report(settings.out, evaluations, settings.title)
    except OSError as error:
        raise TrainError(f"out={settings.out} cannot be written: {error.strerror}") from error


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
    learnt: list[tuple[str, Health]]
    """The logs that were learnt from, each with the names of its models."""
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
    TEMPLATES.filters |= {
        **{"decimals": decimals, "signed": _signed, "metric": _metric, "p_value": _p_value},
        **{"count": "{:,.0f}".format, "day": _day},
    }
    sections = [_section(found) for found in by_log.values()]
    page = TEMPLATES.get_template("page.html").render(
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
        figures_of=figures_of,
        sound=SOUND,
        share_bar=lambda share: bar(Estimate(share, math.nan, math.nan), 1.0, best=False),
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page, encoding="utf-8")


def _section(evaluations: Sequence[Evaluation]) -> Section:
    measured = [(evaluation, evaluation.figures()) for evaluation in evaluations]
    measured.sort(key=lambda pair: -pair[1][SHOWN[0]])
    rows = []
    for n, (evaluation, figures) in enumerate(measured):
        estimates = estimate(evaluation.ranks, _HEADLINE)[0].figures
        rows.append(Row(evaluation, figures, estimates, n if n < MOST_SERIES else None))
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
                (v for r in rows for v in r.estimates[metric] if not math.isnan(v)), default=0
            )
            for metric in _HEADLINE
        },
        tests={metric: _tests(best[metric], rows, metric) for metric in SHOWN},
        slices=_slices([row for row in rows if row.colour is not None]),
        trained=trained,
        training=_training(trained),
        learnt=_learnt(rows),
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
    result = []
    every = [slicings(row.evaluation.ranks, row.evaluation.support) for row in rows]
    for cuts in zip(*every, strict=True):
        name, labels = cuts[0].name, list(cuts[0].labels)
        parts = {
            row.name: estimate(row.evaluation.ranks, SHOWN, cut)
            for row, cut in zip(rows, cuts, strict=True)
        }
        predictions = {model: [p.predictions for p in found] for model, found in parts.items()}
        first = predictions[rows[0].name]
        is_one = all(counts == first for counts in predictions.values())
        values = {
            metric: {model: [p.figures[metric] for p in found] for model, found in parts.items()}
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
        counted = {rows[0].name: first} if is_one else predictions
        result.append(Slice(name, plots, labels, counted, values))
    return result


def _learnt(rows: Sequence[Row]) -> list[tuple[str, Health]]:
    names: dict[str, list[str]] = defaultdict(list)
    healths = {}
    for row in rows:
        training = row.evaluation.info.training
        if training is not None and training.health is not None:
            key = training.health.model_dump_json()
            healths[key] = training.health
            names[key].append(row.name)
    return [(", ".join(names[key]), health) for key, health in healths.items()]


def _training(trained: Sequence[Row]) -> list[Markup]:
    """Loss and figures by epoch, the measured one ringed."""
    trainings = [(row, kept) for row in trained if (kept := row.evaluation.info.training)]
    n_epochs = max((len(kept.history) for _, kept in trainings), default=0)
    plots = []
    for name in ("loss", *SHOWN):
        series = []
        for row, kept in trainings:
            values = [{"loss": r.loss, **r.metrics}.get(name, math.nan) for r in kept.history]
            points = [Estimate(value, math.nan, math.nan) for value in values]
            series.append(Series(row.name, row.colour or 0, points, kept.epoch - 1))
        if any(not math.isnan(point.value) for one in series for point in one.values):
            title = "Training loss" if name == "loss" else f"{_metric(name)} on validation"
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
