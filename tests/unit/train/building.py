"""Sessions and batches from lists of item indices, one click a second."""

from collections.abc import Sequence

import numpy as np
import polars as pl

from train.data.sessions import Sessions
from train.data.synthetic import FIRST_DAY_MS
from train.measure.ranking import Ranks, SessionBatch


def sessions_of(items: Sequence[Sequence[int]]) -> Sessions:
    """These sessions, one beginning after the other's end."""
    item_index = np.array([item for session in items for item in session], dtype=np.int64)
    return Sessions(
        item_index=item_index,
        timestamp_ms=1000 * np.arange(len(item_index)),
        start=np.cumsum([0, *(len(session) for session in items)]),
        session_id=pl.Series([str(number) for number in range(len(items))], dtype=pl.String),
        context=np.zeros((len(item_index), 0), dtype=np.int32),
        target_weight=np.ones(len(item_index), dtype=np.float32),
    )


def batch_of(items: Sequence[Sequence[int]]) -> SessionBatch:
    """These sessions side by side; the longest comes first."""
    longest = len(items[0])
    padded = np.array([[*session, *[0] * (longest - len(session))] for session in items])
    return SessionBatch(
        item_index=padded,
        lengths=np.array([len(session) for session in items]),
        timestamp_ms=np.tile(1000 * np.arange(longest), (len(items), 1)),
        context=np.zeros((*padded.shape, 0), dtype=np.int32),
    )


def ranks_from(
    rank: Sequence[int], novel: Sequence[bool] | None = None, weight: Sequence[float] | None = None
) -> Ranks:
    """Predictions of one session that ranked its clicks so."""
    n = len(rank)
    return Ranks(
        session=np.zeros(n, dtype=np.int64),
        position=np.arange(1, n + 1),
        length=np.full(n, n + 1),
        target=np.zeros(n, dtype=np.int64),
        rank=np.array(rank, dtype=np.int64),
        novel=np.ones(n, dtype=bool) if novel is None else np.array(novel, dtype=bool),
        weight=np.ones(n, dtype=np.float32) if weight is None else np.array(weight, np.float32),
    )


def markov_clicks(predictability: float, n_sessions: int, n_items: int, seed: int) -> pl.DataFrame:
    """Sessions of 6 clicks in which the next item follows from the last with this probability.

    Otherwise it is any item. With 1 a first-order model is always right; with 0 none is better
    than chance.
    """
    rng = np.random.default_rng(seed)
    follower = rng.permutation(n_items)
    items = rng.integers(0, n_items, (n_sessions, 6))
    for click in range(1, 6):
        follows = rng.random(n_sessions) < predictability
        items[follows, click] = follower[items[follows, click - 1]]
    return pl.DataFrame(
        {
            "session_id": pl.Series(np.repeat(np.arange(n_sessions), 6))
            .cast(pl.String)
            .str.zfill(8),
            "item_id": pl.Series(items.ravel()).cast(pl.String),
            "timestamp_ms": FIRST_DAY_MS + 1_000 * np.arange(items.size),
        }
    )
