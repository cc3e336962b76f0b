"""What a replay achieved, computed from the topics, and the offline figures of the same clicks.

Nothing here knows Kafka. A click is identified by its source, its record's partition and offset.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
from rich.console import Console
from rich.table import Table

from stream.contract.messages import Outcome, Recommendation
from stream.watch.judge import Judge, Quality
from train.baselines.named import BASELINES
from train.data.clicks import cut_sessions
from train.data.context import ContextField
from train.data.sessions import Catalogue, Sessions, build_sessions
from train.measure.metrics import figures
from train.measure.predictor import ModelPredictor
from train.measure.ranking import rank_targets
from train.network.checkpoint import Checkpoint

K = 20
ROWS = {
    "online": "online, from the topics",
    "online_known": "of these, next clicks on known items",
    "offline": "offline, the same clicks",
    "without_context": "the same network without context",
    "markov": "Markov chain: the last item alone",
    "pop": "most popular items",
    "oracle": "best possible (oracle)",
}

Source = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Answer:
    """One record of the recommendations topic, and the reader's clock when it came."""

    source: Source
    recommendation: Recommendation
    received_ms: float


@dataclass(frozen=True, slots=True)
class Replay:
    """What the topics hold after a replay, and what a reader saw of it."""

    appended_ms: dict[Source, int]
    """Every record of the clicks topic, with its append time."""
    answers: list[Answer]
    """Every committed record of the recommendations topic."""
    rejected: set[Source]
    """Clicks in the dead-letter topic."""


@dataclass(frozen=True, slots=True)
class Figures:
    """How often the next click was in the list, and how far up."""

    recall_at_20: float
    mrr_at_20: float


@dataclass(frozen=True, slots=True)
class Summary:
    """What summary.json holds."""

    clicks: int
    recommendations: int
    missing: int
    dead_letters: int
    latency_p50_ms: float
    latency_p99_ms: float
    view_age_p50_s: float | None
    """How old the stream's counts were that lists were made with, in the log's time: from the
    newest click that they knew of to the one that was answered. None: lists of the network alone.
    """
    figures: dict[str, Figures]
    """`online`, from the published lists; where they learn from the stream, `online_known` of the
    next clicks that the network knows. The others are of an offline evaluation of the same clicks
    by what was trained, unknown items left out: `offline`, `without_context`, `markov`, `pop`, and
    `oracle` for a known process."""


def parse_source(header: str) -> Source:
    """The click that a ``source`` header names, topic-partition-offset."""
    _, partition, offset = header.rsplit("-", 2)
    return int(partition), int(offset)


def in_click_order(answers: Iterable[Answer]) -> list[Answer]:
    """The answers in the order of their clicks, one per click; within a session, in its order."""
    return [answer for _, answer in sorted({a.source: a for a in answers}.items())]


def judge(
    answers: Iterable[Answer], idle_timeout_s: int | None, *, known_alone: bool = False
) -> Quality:
    """Recall@20 and MRR@20 of the published lists (see ``stream.watch.judge``).

    known_alone: next clicks on items that the network does not know are left out.
    """
    judge, quality = Judge(idle_timeout_s), Quality(K)
    for answer in in_click_order(answers):
        rank = judge.rank(answer.recommendation)
        is_known = answer.recommendation.outcome == Outcome.MODEL
        if rank is not None and (is_known or not known_alone):
            quality.add(rank)
    return quality


def view_age_s(answers: Iterable[Answer]) -> float | None:
    """The median age of the view when a click was answered; None: no list had one.

    A view may be ahead of a click, whose age is then below 0.
    """
    made = [a.recommendation for a in answers if a.recommendation.view_ms is not None]
    ages = [r.click.timestamp_ms - r.view_ms for r in made if r.view_ms is not None]
    return float(np.median(ages)) / 1000 if ages else None


def missing_clicks(replay: Replay) -> int:
    """Clicks that have neither a recommendation nor a dead letter."""
    answered = {answer.source for answer in replay.answers}
    return len(replay.appended_ms.keys() - answered - replay.rejected)


def latency_ms(replay: Replay, quantile: float) -> float:
    """Nearest-rank quantile of a reader's clock at receipt minus the click's append time."""
    latencies = [a.received_ms - replay.appended_ms[a.source] for a in replay.answers]
    return float(np.quantile(latencies, quantile, method="inverted_cdf"))


def offline_sessions(
    clicks: pl.DataFrame,
    catalogue: Catalogue,
    idle_timeout_s: int | None,
    context: Sequence[ContextField] = (),
) -> Sessions:
    """The sessions to evaluate, cut as serving cuts them.

    Serving ignores unknown items, so gaps are measured between known ones: unknown items are
    dropped before sessions are cut. ``clicks`` are in the order of ``read_clicks``.
    """
    known = clicks.filter(pl.col("item_id").is_in(catalogue.item_ids))
    if idle_timeout_s is not None:
        known = cut_sessions(known, idle_timeout_s)
    return build_sessions(known, catalogue, context).sessions


def evaluate_offline(
    models: Mapping[str, Checkpoint], train: pl.DataFrame, clicks: pl.DataFrame
) -> dict[str, Figures]:
    """The figures on `clicks` of these models, of a first-order Markov chain and of popularity. The
    models have learned from `train` with one catalogue; the other two count it."""
    checkpoint = next(iter(models.values()))
    info, catalogue = checkpoint.info, checkpoint.catalogue
    n_items = len(catalogue)
    known = offline_sessions(train, catalogue, info.idle_timeout_s)
    sessions = offline_sessions(clicks, catalogue, info.idle_timeout_s)
    found = {}
    for name, model in models.items():
        fields = model.info.model.context
        with_context = offline_sessions(clicks, catalogue, info.idle_timeout_s, fields)
        found[name] = rank_targets(ModelPredictor(model.model), with_context, n_items)
    for baseline in ("markov", "pop"):
        found[baseline] = rank_targets(BASELINES[baseline](known, n_items), sessions, n_items)
    offline = {name: figures(ranks) for name, ranks in found.items()}
    return {name: Figures(f["recall_at_20"], f["mrr_at_20"]) for name, f in offline.items()}


def summarise(
    replay: Replay, offline: Mapping[str, Figures], idle_timeout_s: int | None
) -> Summary:
    """The summary of a replay that was answered at least once."""
    age_s = view_age_s(replay.answers)
    online = {"online": judge(replay.answers, idle_timeout_s)}
    if age_s is not None:
        online["online_known"] = judge(replay.answers, idle_timeout_s, known_alone=True)
    return Summary(
        clicks=len(replay.appended_ms),
        recommendations=len(replay.answers),
        missing=missing_clicks(replay),
        dead_letters=len(replay.rejected),
        latency_p50_ms=latency_ms(replay, 0.5),
        latency_p99_ms=latency_ms(replay, 0.99),
        view_age_p50_s=age_s,
        figures={name: Figures(q.recall, q.mrr) for name, q in online.items()} | dict(offline),
    )


def print_summary(summary: Summary) -> None:
    """Print two tables to stdout: what was delivered, and how good it was."""
    console = Console(highlight=False)
    delivered = Table(title="delivered", title_justify="left", show_header=False, min_width=66)
    delivered.add_column()
    delivered.add_column(justify="right")
    lost = "bold red" if summary.missing else "bold green"
    delivered.add_row("clicks in", f"{summary.clicks:,}")
    delivered.add_row("recommendations out", f"{summary.recommendations:,}")
    delivered.add_row("missing", f"[{lost}]{summary.missing:,}[/]")
    delivered.add_row("dead letters", f"{summary.dead_letters:,}")
    delivered.add_row("latency p50, click's append to reader", f"{summary.latency_p50_ms:.1f} ms")
    delivered.add_row("latency p99", f"{summary.latency_p99_ms:.1f} ms")
    if summary.view_age_p50_s is not None:
        delivered.add_row(
            "age of the stream's counts in the log's time, p50", f"{summary.view_age_p50_s:,.1f} s"
        )
    console.print(delivered)
    quality = Table(title="next click in the list", title_justify="left", min_width=66)
    quality.add_column("")
    quality.add_column("Recall@20", justify="right")
    quality.add_column("MRR@20", justify="right")
    for key, name in ROWS.items():
        if key in summary.figures:
            found = summary.figures[key]
            cells = name, f"{found.recall_at_20:.4f}", f"{found.mrr_at_20:.4f}"
            quality.add_row(*cells, style="bold" if key == "online" else None)
    console.print(quality)
    if summary.view_age_p50_s is not None:
        console.print(
            "online: lists blended from the network and what the stream has counted since the start"
        )
    if without := summary.figures.get("without_context"):
        offline = summary.figures["offline"]
        console.print(
            f"context was worth {offline.recall_at_20 - without.recall_at_20:+.4f} Recall@20 and "
            f"{offline.mrr_at_20 - without.mrr_at_20:+.4f} MRR@20"
        )
