"""The oracle against a slow one written from the process, against luck, and against counting."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

from train.data.clicks import split_by_time
from train.data.oracle import OracleScore, score_oracle
from train.data.sessions import Indexed, Sessions, build_sessions
from train.data.synthetic import (
    CHAIN_SHARES,
    FIRST_DAY_MS,
    STEP_SHARES,
    Process,
    SyntheticConfig,
    build_process,
)
from train.data.synthetic import generate_synthetic as generate
from train.fit.loop import Schedule, fit
from train.fit.training_log import TrainingLog
from train.network.hyperparameters import Hyperparameters

SMALL = SyntheticConfig(seed=3, n_items=480, n_days=5)


@pytest.fixture(scope="module")
def train() -> pl.DataFrame:
    return split_by_time(generate(80_000, SMALL), days=1).train


@pytest.fixture(scope="module")
def test() -> pl.DataFrame:
    return split_by_time(generate(80_000, SMALL), days=1).test


def step_chances(
    process: Process, prefix: list[dict[str, int]], day: int, intent: int
) -> list[float]:
    """Probability of every item after this prefix for a visitor of this intent, term by term."""
    last = prefix[-1]
    repeat, chain, category, anything = STEP_SHARES[last["event"], int(last["dwell"] >= 20_000)]
    appeal = process.appeal[day, intent]
    same = [i for i in range(len(appeal)) if process.category[i] == process.category[last["item"]]]
    chances = [anything * share for share in appeal]
    for item in same:
        chances[item] += category * appeal[item] / sum(appeal[i] for i in same)
    for successor, share in zip(process.successors[last["item"]], CHAIN_SHARES, strict=True):
        chances[successor] += chain * share
    for click in prefix[-4:]:
        chances[click["item"]] += repeat / len(prefix[-4:])
    return chances


def slow_ranks(process: Process, session: pl.DataFrame) -> list[int]:
    index = {item_id: row for row, item_id in enumerate(process.item_ids)}
    events = {"view": 0, "cart": 1, "purchase": 2}
    clicks = [
        {"item": index[item_id], "event": events[event], "dwell": dwell}
        for item_id, event, dwell in session.select("item_id", "event_type", "dwell_ms").rows()
    ]
    day, in_day_ms = divmod(session["timestamp_ms"][0] - FIRST_DAY_MS, 86_400_000)
    weights = [
        float(prior * appeal[clicks[0]["item"]])
        for prior, appeal in zip(
            process.intent_shares[in_day_ms // (6 * 3_600_000)], process.appeal[day], strict=True
        )
    ]
    ranks = []
    for n in range(1, len(clicks)):
        by_intent = [step_chances(process, clicks[:n], day, z) for z in range(len(weights))]
        chances = np.array(weights) @ np.array(by_intent)
        target = clicks[n]["item"]
        ranks.append(int((chances >= chances[target]).sum()))
        weights = [w * chances[target] for w, chances in zip(weights, by_intent, strict=True)]
    return ranks


def test_the_oracle_ranks_as_the_process_written_out_term_by_term() -> None:
    clicks = generate(120, SMALL)
    process = build_process(SMALL)
    ranks = np.array([r for _, s in clicks.group_by("session_id") for r in slow_ranks(process, s)])
    score = score_oracle(SMALL, clicks)
    assert score.predictions == len(ranks) == 120 - clicks["session_id"].n_unique()
    assert score.recall == pytest.approx((ranks <= 20).mean())
    assert score.mrr == pytest.approx(np.where(ranks <= 20, 1 / ranks, 0).mean())


@pytest.mark.parametrize("context", [True, False])
@pytest.mark.parametrize("k", [1, 20])
def test_the_oracle_is_right_as_often_as_it_expects(
    train: pl.DataFrame, context: bool, k: int
) -> None:
    sessions = train["session_id"].unique(maintain_order=True).head(3000)
    clicks = train.filter(pl.col("session_id").is_in(sessions.implode()))
    score = score_oracle(SMALL, clicks, context=context, k=k)
    # Each outcome is a draw with the stated probability given all before it, so the difference
    # is a martingale: at most 1/2 / sqrt(n) a standard error.
    assert abs(score.recall - score.expected_recall) < 4 * 0.5 / score.predictions**0.5


def ranks_of(scores: np.ndarray, target: np.ndarray) -> np.ndarray:
    return np.asarray((scores >= np.take_along_axis(scores, target[:, None], axis=1)).sum(axis=1))


def pairs(sessions: Sessions) -> tuple[np.ndarray, np.ndarray]:
    """Every click but the last of its session, and the click after it."""
    has_next = np.ones(sessions.n_clicks, dtype=bool)
    has_next[sessions.start[1:] - 1] = False
    (at,) = np.nonzero(has_next)
    return sessions.item_index[at], sessions.item_index[at + 1]


@pytest.fixture(scope="module")
def indexed(train: pl.DataFrame, test: pl.DataFrame) -> tuple[Indexed, Indexed]:
    learned = build_sessions(train)
    return learned, build_sessions(test, learned.catalogue)


@pytest.fixture(scope="module")
def oracle(test: pl.DataFrame, indexed: tuple[Indexed, Indexed]) -> OracleScore:
    return score_oracle(SMALL, test, indexed[0].catalogue.item_ids)


def test_the_oracle_is_asked_the_cases_of_the_evaluator(
    oracle: OracleScore, indexed: tuple[Indexed, Indexed]
) -> None:
    asked = indexed[1]
    assert asked.dropped_clicks > 0
    assert oracle.predictions == asked.sessions.n_clicks - len(asked.sessions)


def test_the_oracle_beats_popularity_and_a_first_order_chain_by_far(
    oracle: OracleScore, indexed: tuple[Indexed, Indexed]
) -> None:
    learned, asked = (found.sessions for found in indexed)
    n_items = len(indexed[0].catalogue)
    popularity = np.bincount(learned.item_index, minlength=n_items) / learned.n_clicks
    chain = np.zeros((n_items, n_items))
    np.add.at(chain, pairs(learned), 1.0)
    last, target = pairs(asked)
    by_popularity = ranks_of(np.broadcast_to(popularity, (len(last), n_items)), target) <= 20
    by_chain = ranks_of(chain[last] + popularity, target) <= 20
    assert by_chain.mean() > by_popularity.mean() + 0.1
    assert oracle.recall > by_chain.mean() + 0.1


def test_a_trained_model_learns_the_process_and_does_not_beat_the_oracle(tmp_path: Path) -> None:
    process = SyntheticConfig(seed=5, n_items=240, n_days=4)
    older, newer = split_by_time(generate(16_000, process), fraction=0.25)
    learned = build_sessions(older)
    asked = build_sessions(newer, learned.catalogue)
    torch.set_num_threads(1)
    info = fit(
        TrainingLog(learned.sessions, asked.sessions, learned.catalogue, None),
        Hyperparameters(loss="cross-entropy", hidden_size=32, n_negatives=128, batch_size=32),
        Schedule(epochs=2),
        tmp_path,
    )
    bound = score_oracle(process, newer, learned.catalogue.item_ids, context=False)
    popularity = np.bincount(learned.sessions.item_index, minlength=len(learned.catalogue))
    _, target = pairs(asked.sessions)
    by_popularity = ranks_of(np.broadcast_to(popularity, (len(target), len(popularity))), target)
    luck = 3 * 0.5 / bound.predictions**0.5
    recall = info.metrics["recall_at_20"]
    assert info.metrics["predictions"] == bound.predictions
    assert (by_popularity <= 20).mean() + 0.1 < recall < bound.recall + luck


def test_a_model_that_sees_only_items_has_the_lower_bound(
    test: pl.DataFrame, oracle: OracleScore, indexed: tuple[Indexed, Indexed]
) -> None:
    items = score_oracle(SMALL, test, indexed[0].catalogue.item_ids, context=False)
    assert items.predictions == oracle.predictions
    assert 0 < oracle.recall - items.recall < 0.1


def test_a_text_log_is_scored_as_a_typed_one(test: pl.DataFrame, oracle: OracleScore) -> None:
    as_text = test.with_columns(pl.col("dwell_ms").cast(pl.String))
    known = build_sessions(split_by_time(generate(80_000, SMALL), days=1).train).catalogue
    assert score_oracle(SMALL, as_text, known.item_ids) == oracle


def test_clicks_of_another_process_are_refused(test: pl.DataFrame) -> None:
    with pytest.raises(pl.exceptions.InvalidOperationError):
        score_oracle(SyntheticConfig(seed=3, n_items=240, n_days=5), test)
