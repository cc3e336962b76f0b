"""Synthetic click logs of a known random process, so that the best possible score is known.

A visitor of a shop arrives at some hour with a hidden intent. Each next click goes back to one of
the last clicks, on along the last item's chain, to another item of its category, or to anything;
the last two favour what the intent likes. How often each happens depends on the last click's event
type and pace. One click reveals little about the intent and a few reveal nearly all of it, so a
model that remembers the session beats one that sees only its last click (see oracle.py).
"""

from dataclasses import dataclass
from functools import cached_property
from statistics import NormalDist

import numpy as np
import polars as pl
from jaxtyping import Float64, Int64
from pydantic import Field, PositiveInt

from train.command import Settings

CATEGORIES = (  # noqa: SIM905 - a list takes 24 lines
    "bags beds bikes books boots cameras chairs coats desks games guitars hats "
    "jeans knives lamps mugs pans phones plants rugs shirts skis tents watches"
).split()
EVENT_TYPES = ("view", "cart", "purchase")
EVENT_SHARES = (0.86, 0.10, 0.04)
DWELL_MEDIAN_MS = 15_000  # log-normal, one natural unit wide
SHORTEST_DWELL_MS = 1_000
LONGEST_DWELL_MS = 600_000  # far below any idle timeout: sessions stay whole
UNHURRIED_MS = 20_000
"""A visitor who stayed this long on the previous page is looking closely."""
UNHURRIED_SHARE = 1 - NormalDist().cdf(np.log(UNHURRIED_MS / DWELL_MEDIAN_MS))

# Shares of repeat, chain, category and anything, by event type, then hurried and unhurried.
STEP_SHARES = np.array(
    [
        [[0.14, 0.10, 0.60, 0.16], [0.18, 0.14, 0.63, 0.05]],
        [[0.10, 0.55, 0.25, 0.10], [0.10, 0.60, 0.25, 0.05]],
        [[0.05, 0.50, 0.15, 0.30], [0.05, 0.55, 0.20, 0.20]],
    ]
)
REPEAT_WINDOW = 4  # a repeat is one of so many last clicks, each as likely
CHAIN_SHARES = np.array([0.6, 0.3, 0.1])  # the successors of an item

N_INTENTS = 16
LIKED_BY = 4  # so many intents like an item
DISLIKE = 0.02  # the weight of an item that the intent does not like; a liked one has 1
POPULARITY_EXPONENT = 1.0
LENGTH_EXPONENT = 2.0
MAX_LENGTH = 50
NEW_ITEMS = 0.15  # share of the catalogue that appears after the first day, evenly
FIRST_DAY_MS = 1_704_067_200_000  # 1 January 2024, a Monday
DAY_MS = 86_400_000
HOUR_MS = 3_600_000
PART_OF_DAY_HOURS = 6
# Visitors by hour, UTC: a quiet night and a busy evening.
HOUR_SHARES = np.array(
    [2, 1, 1, 1, 1, 1, 2, 3, 5, 6, 6, 6, 7, 6, 6, 6, 6, 7, 8, 9, 10, 9, 6, 4], dtype=np.float64
)


class SyntheticConfig(Settings):
    """The random process: the same settings give the same one, whatever the number of clicks."""

    seed: int = Field(default=0, ge=0)
    """Seed of the items and of the visitors."""
    n_items: int = Field(default=2000, ge=10 * len(CATEGORIES))
    """Items in the catalogue on the last day."""
    n_days: PositiveInt = 14
    """Days the log covers."""


@dataclass(frozen=True)
class Process:
    """What the process knows. Items are numbered by category; Z intents, D days, N items."""

    config: SyntheticConfig
    category: Int64[np.ndarray, "N"]
    born: Int64[np.ndarray, "N"]
    """First day an item is for sale."""
    successors: Int64[np.ndarray, "N 3"]
    """Along an item's chain; never newer than the item."""
    appeal: Float64[np.ndarray, "D Z N"]
    """Share of each item in what an intent would pick from all of them on that day."""
    intent_shares: Float64[np.ndarray, "4 Z"]
    """Intents by part of the day: night, morning, afternoon, evening."""

    @cached_property
    def item_ids(self) -> list[str]:
        return [f"{CATEGORIES[c]}-{item:04d}" for item, c in enumerate(self.category)]

    @cached_property
    def category_start(self) -> Int64[np.ndarray, "categories_and_end"]:
        return np.searchsorted(self.category, np.arange(len(CATEGORIES) + 1))

    @cached_property
    def category_appeal(self) -> Float64[np.ndarray, "D Z categories"]:
        """The appeal of each category's items together."""
        return np.add.reduceat(self.appeal, self.category_start[:-1], axis=2)


def build_process(config: SyntheticConfig) -> Process:
    """The process of these settings."""
    rng = np.random.default_rng([config.seed, 0])
    n = config.n_items
    category = np.arange(n) * len(CATEGORIES) // n
    new = rng.random(n) < NEW_ITEMS
    new[np.searchsorted(category, np.arange(len(CATEGORIES)))] = False  # so none is empty
    born = np.where(new, rng.integers(0, config.n_days, n), 0)
    oldest_first = np.argsort(born, kind="stable")
    not_newer = np.searchsorted(born[oldest_first], born, side="right")
    successors = oldest_first[(rng.random((n, len(CHAIN_SHARES))) * not_newer[:, None]).astype(int)]
    popularity = (rng.permutation(n) + 1.0) ** -POPULARITY_EXPONENT
    liked = rng.random((n, N_INTENTS)).argsort(axis=1) < LIKED_BY
    on_sale = born <= np.arange(config.n_days)[:, None]
    appeal = np.where(liked.T, popularity, DISLIKE * popularity) * on_sale[:, None, :]
    return Process(
        config=config,
        category=category,
        born=born,
        successors=successors,
        appeal=appeal / appeal.sum(axis=2, keepdims=True),
        intent_shares=rng.dirichlet(np.ones(N_INTENTS), 24 // PART_OF_DAY_HOURS),
    )


def generate_synthetic(n_clicks: int, config: SyntheticConfig | None = None) -> pl.DataFrame:
    """A log of exactly ``n_clicks``: session_id, item_id, timestamp_ms, event_type, dwell_ms.

    Ordered as read_clicks orders logs; sessions overlap in time, and the longest pause is 10
    minutes. ``dwell_ms`` is the time spent on the page before this click, 0 on the first, so
    it is known when the click is made.
    """
    process = build_process(config or SyntheticConfig())
    rng = np.random.default_rng([process.config.seed, 1])
    length = _draw_lengths(rng, n_clicks)
    n_sessions = len(length)
    start = np.cumsum(length) - length
    day = rng.integers(0, process.config.n_days, n_sessions)
    hour = rng.choice(24, n_sessions, p=HOUR_SHARES / HOUR_SHARES.sum())
    begin_ms = FIRST_DAY_MS + day * DAY_MS + hour * HOUR_MS + rng.integers(0, HOUR_MS, n_sessions)
    intent = _draw_rows(rng, process.intent_shares, hour // PART_OF_DAY_HOURS)
    event_type = rng.choice(len(EVENT_TYPES), n_clicks, p=EVENT_SHARES)
    dwell_ms = np.clip(
        rng.lognormal(np.log(DWELL_MEDIAN_MS), 1.0, n_clicks), SHORTEST_DWELL_MS, LONGEST_DWELL_MS
    ).astype(np.int64)
    dwell_ms[start] = 0
    item = _draw_items(rng, process, length, day, intent, event_type, dwell_ms)

    # Everything so far has the longest session first; a log has the earliest first.
    earliest = np.argsort(begin_ms, kind="stable")
    length = length[earliest]
    first = np.cumsum(length) - length
    moved = np.repeat(start[earliest] - first, length) + np.arange(n_clicks)
    dwell_ms = dwell_ms[moved]
    since = np.cumsum(dwell_ms)
    return pl.DataFrame(
        {
            "session_id": _session_ids(length),
            "item_id": pl.Series(process.item_ids)[item[moved]],
            "timestamp_ms": since + np.repeat(begin_ms[earliest] - since[first], length),
            "event_type": pl.Series(EVENT_TYPES)[event_type[moved]],
            "dwell_ms": dwell_ms,
        }
    )


def _session_ids(length: Int64[np.ndarray, "S"]) -> pl.Series:
    """The number of every click's session, in eight digits."""
    return pl.Series(np.repeat(np.arange(len(length)), length)).cast(pl.String).str.zfill(8)


def _draw_lengths(rng: np.random.Generator, n_clicks: int) -> Int64[np.ndarray, "S"]:
    """Session lengths that add up to ``n_clicks``, longest first; a power law from 2 clicks."""
    possible = np.arange(2, MAX_LENGTH + 1)
    shares = possible**-LENGTH_EXPONENT
    length = rng.choice(possible, n_clicks // 2 + 1, p=shares / shares.sum())
    total = np.cumsum(length)
    length = length[: np.searchsorted(total, n_clicks) + 1]
    length[-1] -= length.sum() - n_clicks
    return np.sort(length)[::-1]


def _draw_rows(
    rng: np.random.Generator, shares: Float64[np.ndarray, "R C"], row: Int64[np.ndarray, "B"]
) -> Int64[np.ndarray, "B"]:
    """One column for every entry of ``row``, by that row's shares (each row adds up to 1)."""
    within = np.cumsum(shares, axis=1)[row]
    column = (rng.random((len(row), 1)) >= within).sum(axis=1)
    return np.asarray(np.minimum(column, shares.shape[1] - 1))  # the shares may add up to 1 - 1e-16


def _draw_items(
    rng: np.random.Generator,
    process: Process,
    length: Int64[np.ndarray, "S"],
    day: Int64[np.ndarray, "S"],
    intent: Int64[np.ndarray, "S"],
    event_type: Int64[np.ndarray, "T"],
    dwell_ms: Int64[np.ndarray, "T"],
) -> Int64[np.ndarray, "T"]:
    """The clicked items; the k-th click of all sessions is drawn in one go."""
    start = np.cumsum(length) - length
    # All days and intents in one rising array: row r's items lie between r and r + 1.
    n = process.config.n_items
    appeal = process.appeal.reshape(-1, n)
    ends = np.cumsum(appeal, axis=1)
    rising = (ends + np.arange(len(appeal))[:, None]).ravel()
    row = day * N_INTENTS + intent

    def pick(
        row: Int64[np.ndarray, "B"],
        first: Int64[np.ndarray, "B"] | int = 0,
        end: Int64[np.ndarray, "B"] | int = n,
    ) -> Int64[np.ndarray, "B"]:
        """An item from ``first`` up to ``end``, by its appeal in that row."""
        low = np.where(np.greater(first, 0), ends[row, first - 1], 0.0)
        at = row + low + rng.random(len(row)) * (ends[row, end - 1] - low)
        found = np.searchsorted(rising, at, side="right") - row * n
        return np.asarray(np.clip(found, first, end - 1))

    item = np.empty(int(length.sum()), dtype=np.int64)
    item[start] = pick(row)
    shares = STEP_SHARES.reshape(-1, STEP_SHARES.shape[-1])
    for click in range(1, int(length[0])):
        active = np.flatnonzero(length > click)
        last = start[active] + click - 1
        unhurried = dwell_ms[last] >= UNHURRIED_MS
        step = _draw_rows(rng, shares, event_type[last] * 2 + unhurried)
        drawn = item[last - rng.integers(0, min(click, REPEAT_WINDOW), len(active))]
        chain = np.flatnonzero(step == 1)
        successor = rng.choice(len(CHAIN_SHARES), len(chain), p=CHAIN_SHARES)
        drawn[chain] = process.successors[item[last[chain]], successor]
        same = np.flatnonzero(step == 2)
        category, bounds = process.category[item[last[same]]], process.category_start
        drawn[same] = pick(row[active[same]], bounds[category], bounds[category + 1])
        anything = np.flatnonzero(step == 3)
        drawn[anything] = pick(row[active[anything]])
        item[last + 1] = drawn
    return item
