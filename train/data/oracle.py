"""The best prediction of synthetic clicks: the oracle knows the process, but not the visitor.

It sees a session's prefix, as a model does, and keeps the exact probability of every intent
given the prefix (Bayes' rule); the list that maximises Recall@K and MRR@K is then the K most
probable next items.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import polars as pl
from jaxtyping import Bool, Float64, Int64

from train.data import synthetic as shop
from train.data.synthetic import Process, SyntheticConfig, build_process
from train.measure.metrics import gain
from train.measure.ranking import conservative_rank

CHUNK = 2048  # prefixes ranked at a time: 50 MB of probabilities at 3,000 items


class OracleScore(NamedTuple):
    """What the oracle reaches on a log, in the evaluation protocol of the models."""

    recall: float
    mrr: float
    predictions: int
    expected_recall: float
    """What the oracle itself expects its recall to be: the mean probability of its lists."""


class _Clicks(NamedTuple):
    """A log as the process sees it: flat arrays, one session after the other."""

    item: Int64[np.ndarray, "T"]
    position: Int64[np.ndarray, "T"]
    """Clicks before this one in its session."""
    day: Int64[np.ndarray, "T"]
    """Day of the session's first click."""
    prior: Float64[np.ndarray, "T Z"]
    """Probability of every intent before the session's first click."""
    shares: Float64[np.ndarray, "T 4"]
    """Shares of the four ways to the next click."""


def score_oracle(
    config: SyntheticConfig,
    clicks: pl.DataFrame,
    known_items: list[str] | None = None,
    *,
    context: bool = True,
    k: int = 20,
) -> OracleScore:
    """Recall@k and MRR@k of the oracle on clicks that generate_synthetic made with ``config``.

    ``clicks`` are whole sessions in the order of read_clicks. With ``known_items`` (default:
    all) only these are ranked and count as targets, and only where a click on one came before:
    the cases a model of that catalogue is asked. Clicks on other items are still seen, so no
    predictor from the same session expects more. Without ``context`` it sees neither event
    types nor times of the day nor pace, only the items: the bound of a model of item ids.
    Raises polars' InvalidOperationError for items that the process does not have.
    """
    process = build_process(config)
    seen = _read(process, clicks, context)
    known = np.ones(config.n_items, dtype=bool)
    if known_items is not None:
        known = np.isin(np.array(process.item_ids), known_items)
    intents = _filter_intents(process, seen)
    last = np.flatnonzero(_is_case(seen, known)) - 1
    ranks = np.empty(len(last), dtype=np.int64)
    expected = np.empty(len(last))
    for first in range(0, len(last), CHUNK):
        rows = last[first : first + CHUNK]
        chances = _predict(process, seen, intents[rows], rows)
        chances[:, ~known] = 0.0  # below every target: what was clicked was possible
        ranks[first : first + CHUNK] = conservative_rank(chances, seen.item[rows + 1])
        best = np.partition(chances, -k, axis=1)[:, -k:]
        expected[first : first + CHUNK] = best.sum(axis=1) / chances.sum(axis=1)
    return OracleScore(
        recall=float(gain(f"recall_at_{k}", ranks).mean()),
        mrr=float(gain(f"mrr_at_{k}", ranks).mean()),
        predictions=len(ranks),
        expected_recall=float(expected.mean()),
    )


def _read(process: Process, clicks: pl.DataFrame, context: bool) -> _Clicks:
    def number(name: str, values: Sequence[str]) -> pl.Expr:
        numbers = np.arange(len(values))
        return pl.col(name).replace_strict(values, numbers, return_dtype=pl.Int64)

    session = pl.col("session_id").rle_id()
    columns = clicks.select(
        number("item_id", process.item_ids),
        pl.int_range(pl.len()).over(session).alias("position"),
        pl.col("timestamp_ms").first().over(session),
        number("event_type", shop.EVENT_TYPES),
        pl.col("dwell_ms").cast(pl.Int64),
    )
    item, position, first_ms, event, dwell_ms = (column.to_numpy() for column in columns)
    day, in_day_ms = np.divmod(first_ms - shop.FIRST_DAY_MS, shop.DAY_MS)
    unhurried = dwell_ms >= shop.UNHURRIED_MS
    if context:
        prior = process.intent_shares[in_day_ms // (shop.PART_OF_DAY_HOURS * shop.HOUR_MS)]
        shares = shop.STEP_SHARES[event, unhurried.astype(np.int64)]
    else:
        parts = (
            shop.HOUR_SHARES.reshape(-1, shop.PART_OF_DAY_HOURS).sum(axis=1)
            / shop.HOUR_SHARES.sum()
        )
        prior = np.tile(parts @ process.intent_shares, (len(item), 1))
        # The first click of a session never has a pause before it, the others often enough.
        by_pace = np.tensordot(shop.EVENT_SHARES, shop.STEP_SHARES, axes=1)
        pace = np.where(position == 0, 0.0, shop.UNHURRIED_SHARE)[:, None]
        shares = (1.0 - pace) * by_pace[0] + pace * by_pace[1]
    return _Clicks(item, position, day, prior, shares)


def _is_case(seen: _Clicks, known: Bool[np.ndarray, "N"]) -> Bool[np.ndarray, "T"]:
    """Clicks on a known item after one on a known item of the same session."""
    target = known[seen.item]
    count = np.cumsum(target)
    before_session = (count - target)[np.arange(len(target)) - seen.position]
    return np.asarray(target & (count - target > before_session))


def _filter_intents(process: Process, seen: _Clicks) -> Float64[np.ndarray, "T Z"]:
    """Probability of every intent after each click, given the session up to that click."""
    appeal = process.appeal[seen.day, :, seen.item]
    likelihood = appeal.copy()  # of a first click
    at = np.flatnonzero(seen.position > 0)
    item, last, shares = seen.item[at], seen.item[at - 1], seen.shares[at - 1]
    category = process.category[last]
    same = (process.category[item] == category)[:, None] * appeal[at]
    repeats = sum(
        (_nth_last(seen, at - 1, n) == item).astype(float) for n in range(shop.REPEAT_WINDOW)
    )
    chain = (process.successors[last] == item[:, None]) @ shop.CHAIN_SHARES
    likelihood[at] = (
        (shares[:, 0] * repeats / np.minimum(seen.position[at], shop.REPEAT_WINDOW))[:, None]
        + (shares[:, 1] * chain)[:, None]
        + shares[:, 2, None] * same / process.category_appeal[seen.day[at], :, category]
        + shares[:, 3, None] * appeal[at]
    )
    evidence = np.cumsum(np.log(likelihood), axis=0)
    start = np.arange(len(seen.item)) - seen.position
    before = (evidence - np.log(likelihood))[start]
    joint = np.log(seen.prior) + evidence - before
    joint = np.exp(joint - joint.max(axis=1, keepdims=True))
    return np.asarray(joint / joint.sum(axis=1, keepdims=True))


def _predict(
    process: Process,
    seen: _Clicks,
    intents: Float64[np.ndarray, "B Z"],
    rows: Int64[np.ndarray, "B"],
) -> Float64[np.ndarray, "B N"]:
    """Probability of every item to be clicked after each of these clicks."""
    chances = np.empty((len(rows), process.config.n_items))
    item, shares, days = seen.item[rows], seen.shares[rows], seen.day[rows]
    category = process.category[item]
    for day in np.unique(days):
        on = np.flatnonzero(days == day)
        appeal = process.appeal[day]
        anything = (intents[on] * shares[on, 3, None]) @ appeal
        within = intents[on] * shares[on, 2, None] / process.category_appeal[day].T[category[on]]
        chances[on] = anything + (within @ appeal) * (process.category == category[on, None])
    # Within one of these steps a row appears once, so += adds all there is to add.
    row = np.arange(len(rows))
    for n, share in enumerate(shop.CHAIN_SHARES):
        chances[row, process.successors[item, n]] += shares[:, 1] * share
    of_repeats = shares[:, 0] / np.minimum(seen.position[rows] + 1, shop.REPEAT_WINDOW)
    for n in range(shop.REPEAT_WINDOW):
        repeated = _nth_last(seen, rows, n)
        there = repeated >= 0
        chances[row[there], repeated[there]] += of_repeats[there]
    return chances


def _nth_last(seen: _Clicks, rows: Int64[np.ndarray, "B"], n: int) -> Int64[np.ndarray, "B"]:
    """The item ``n`` clicks before each of these in the same session; -1 if there is none."""
    return np.where(seen.position[rows] >= n, seen.item[rows - n], -1)
