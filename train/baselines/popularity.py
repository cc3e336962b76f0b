"""The most clicked items: of all time, of late, or of the session itself."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float64, Int64

from train.baselines.votes import Votes, vote_scores
from train.data.sessions import Sessions
from train.measure.ranking import SessionBatch


def item_support(sessions: Sessions, n_items: int) -> Int64[np.ndarray, "N"]:
    """Clicks on every item."""
    return np.bincount(sessions.item_index, minlength=n_items)


def tie_break(support: Int64[np.ndarray, "N"]) -> Float64[np.ndarray, "N"]:
    """Support scaled below 1, so that it orders only what counts leave equal."""
    return np.asarray(support / (support.max(initial=0) + 1.0))


@dataclass(frozen=True, slots=True)
class Pop:
    """The most clicked items, whatever the session."""

    popularity: Float64[np.ndarray, "N"]

    def predict(self, batch: SessionBatch) -> Iterator[Float[np.ndarray, "b N"]]:
        """The same list for everybody."""
        for prefix in batch.steps():
            yield np.broadcast_to(self.popularity, (len(prefix), len(self.popularity)))


@dataclass(frozen=True, slots=True)
class SessionPop:
    """The session's own items by their clicks in it, then the most clicked ones (S-POP)."""

    support: Int64[np.ndarray, "N"]

    def predict(self, batch: SessionBatch) -> Iterator[Float[np.ndarray, "b N"]]:
        """Clicks in the session, equal ones by support."""
        return vote_scores(batch, tie_break(self.support), _own_clicks)


def pop(sessions: Sessions, n_items: int) -> Pop:
    """The most clicked items of all sessions."""
    return Pop(item_support(sessions, n_items).astype(np.float64))


def recent_pop(sessions: Sessions, n_items: int, *, half_life_s: float) -> Pop:
    """The same with clicks weighted by their age at the log's end."""
    return Pop(recent_popularity(sessions, n_items, half_life_s))


def session_pop(sessions: Sessions, n_items: int) -> SessionPop:
    """S-POP, equal clicks by those of all sessions."""
    return SessionPop(item_support(sessions, n_items))


def _own_clicks(prefix: Int64[np.ndarray, "b t"]) -> Votes:
    n_rows, n_clicks = prefix.shape
    return Votes(
        start=np.arange(n_rows + 1) * n_clicks,
        item=prefix.ravel().astype(np.int32),
        weight=np.ones(prefix.size),
    )


def age_weights(sessions: Sessions, half_life_s: float) -> Float64[np.ndarray, "T"]:
    """What a click counts: 1 at the end of the log, half as much every half-life before."""
    timestamp_ms = sessions.timestamp_ms
    age_ms = timestamp_ms.max(initial=0) - timestamp_ms
    return np.asarray(np.exp2(-age_ms / (1000.0 * half_life_s)))


def recent_popularity(
    sessions: Sessions, n_items: int, half_life_s: float
) -> Float64[np.ndarray, "N"]:
    """Every item's share of the clicks, each weighted by its age at the end of the log."""
    age = age_weights(sessions, half_life_s)
    weight = np.bincount(sessions.item_index, weights=age, minlength=n_items)
    return np.asarray(weight / max(weight.sum(), np.finfo(np.float64).tiny))
