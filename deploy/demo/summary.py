"""What a replay came to, computed from the topics, beside the offline figures of the same clicks.

Pure functions over what was read: nothing here knows Kafka. A click is named by its source, the
partition and offset of its record.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl

from stream.contract.messages import Recommendation
from stream.watch.judge import Judge, Quality
from train.baselines.popularity import Pop
from train.data.clicks import cut_sessions
from train.data.context import ContextField
from train.data.sessions import Catalogue, Sessions, build_sessions
from train.measure.metrics import figures
from train.measure.predictor import ModelPredictor
from train.measure.ranking import Predictor, rank_targets
from train.network.checkpoint import Checkpoint

K = 20

Source = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Answer:
    """One record of the recommendations topic, and the reader's clock when it came."""

    source: Source
    recommendation: Recommendation
    received_ms: float


@dataclass(frozen=True, slots=True)
class Replay:
    """What the topics hold after a replay, and a reader saw of it."""

    appended_ms: dict[Source, int]
    """Every record of the clicks topic, with its append time."""
    answers: list[Answer]
    """Every committed record of the recommendations topic."""
    rejected: set[Source]
    """Clicks in the dead-letter topic."""


@dataclass(frozen=True, slots=True)
class OfflineFigures:
    """What the offline evaluator says of the replayed clicks."""

    recall_at_20: float
    mrr_at_20: float
    pop_recall_at_20: float
    predictions: int


@dataclass(frozen=True, slots=True)
class Summary:
    """What summary.json holds."""

    clicks: int
    recommendations: int
    missing: int
    dead_letters: int
    latency_p50_ms: float
    latency_p99_ms: float
    recall_at_20: float
    mrr_at_20: float
    offline_recall_at_20: float
    offline_mrr_at_20: float
    pop_recall_at_20: float
    oracle_recall_at_20: float | None
    """None where nobody knows the process behind the log."""


def parse_source(header: str) -> Source:
    """The click that a ``source`` header names, topic-partition-offset."""
    _, partition, offset = header.rsplit("-", 2)
    return int(partition), int(offset)


def in_click_order(answers: Iterable[Answer]) -> list[Answer]:
    """The answers in order of their clicks, one a click: within a session that is its order."""
    return [answer for _, answer in sorted({a.source: a for a in answers}.items())]


def judge(answers: Iterable[Answer], idle_timeout_s: int | None) -> Quality:
    """Recall@20 and MRR@20 of the published lists (see ``stream.watch.judge``)."""
    judge, quality = Judge(idle_timeout_s), Quality(K)
    for answer in in_click_order(answers):
        rank = judge.rank(answer.recommendation)
        if rank is not None:
            quality.add(rank)
    return quality


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
    """The sessions that the evaluator is asked about, cut as serving cuts them.

    Serving passes over items it has never seen, so a gap is one between known clicks: they are
    dropped first and sessions are cut after. ``clicks`` are in the order of ``read_clicks``.
    """
    known = clicks.filter(pl.col("item_id").is_in(catalogue.item_ids))
    if idle_timeout_s is not None:
        known = cut_sessions(known, idle_timeout_s)
    return build_sessions(known, catalogue, context).sessions


def evaluate_offline(checkpoint: Checkpoint, clicks: pl.DataFrame) -> OfflineFigures:
    """The model's figures on these clicks, and those of the items most popular in training."""
    n_items = len(checkpoint.catalogue)
    info = checkpoint.info
    sessions = offline_sessions(
        clicks, checkpoint.catalogue, info.idle_timeout_s, info.model.context
    )
    support = np.zeros(n_items, np.int64)
    for item in info.popular:
        support[item.item_index] = round(item.score)

    def evaluate(predictor: Predictor) -> dict[str, float]:
        return figures(rank_targets(predictor, sessions, n_items))

    model, pop = evaluate(ModelPredictor(checkpoint.model)), evaluate(Pop(support))
    return OfflineFigures(
        recall_at_20=model["recall_at_20"],
        mrr_at_20=model["mrr_at_20"],
        pop_recall_at_20=pop["recall_at_20"],
        predictions=int(model["predictions"]),
    )


def summarise(
    replay: Replay,
    offline: OfflineFigures,
    oracle_recall_at_20: float | None,
    idle_timeout_s: int | None,
) -> Summary:
    """The summary of a replay that was answered at least once."""
    quality = judge(replay.answers, idle_timeout_s)
    return Summary(
        clicks=len(replay.appended_ms),
        recommendations=len(replay.answers),
        missing=missing_clicks(replay),
        dead_letters=len(replay.rejected),
        latency_p50_ms=latency_ms(replay, 0.5),
        latency_p99_ms=latency_ms(replay, 0.99),
        recall_at_20=quality.recall,
        mrr_at_20=quality.mrr,
        offline_recall_at_20=offline.recall_at_20,
        offline_mrr_at_20=offline.mrr_at_20,
        pop_recall_at_20=offline.pop_recall_at_20,
        oracle_recall_at_20=oracle_recall_at_20,
    )
