"""STAN: neighbours by how recent the shared clicks, the session and the items beside them are.

Garg, Gupta, Malhotra, Vig, Shroff, "Sequence and Time Aware Neighborhood for Session-based
Recommendations" (SIGIR 2019): three exponential decays on top of the cosine of two sessions.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float32, Float64, Int32, Int64

from train.baselines.neighbours import (
    SessionIndex,
    distinct_items,
    index_sessions,
    keep_most_similar,
    merge_newest,
)
from train.baselines.votes import Votes, item_support, tie_break, vote_scores
from train.data.sessions import Sessions
from train.measure.compiled import compiled
from train.measure.ranking import SessionBatch

WINDOW = 20
"""Last clicks of a session that count; by default the next one would weigh e^-5."""


@dataclass(frozen=True, slots=True)
class STAN:
    """Votes of the k sessions most similar in items, order and time, among the m newest."""

    index: SessionIndex
    base: Float32[np.ndarray, "N"]
    session_weight: Float64[np.ndarray, "S"]
    """By age, and by 1 / sqrt(distinct items)."""
    click_scale: float
    distance_scale: float
    m: int
    k: int

    def predict(self, batch: SessionBatch) -> Iterator[Float[np.ndarray, "b N"]]:
        """The neighbours' votes, the nearest counting 1; all else by support."""
        return vote_scores(batch, self.base, self._votes)

    def _votes(self, prefix: Int64[np.ndarray, "b t"]) -> Votes:
        index = self.index
        recent = np.ascontiguousarray(prefix[:, -WINDOW:])
        return Votes(
            *_stan_votes(
                recent,
                index.posting_start,
                index.posting,
                index.session_start,
                index.item,
                index.position,
                self.session_weight,
                self.click_scale,
                self.distance_scale,
                self.m,
                self.k,
            )
        )


def stan(
    sessions: Sessions,
    n_items: int,
    *,
    click_scale: float = 4.0,
    session_scale_s: float | None = None,
    distance_scale: float = 4.0,
    m: int = 2500,
    k: int = 500,
) -> STAN:
    """STAN over these training sessions.

    The scales are the paper's lambdas: clicks since a shared item's last one (1), the session's
    age in seconds (2; None: no such decay), and clicks between an item and the newest shared one
    in the neighbour (3). The age counts from the log's end: from the moment of the prediction
    all weights would change by one factor, which orders nothing.
    """
    index = index_sessions(sessions, n_items)
    age_s = (index.last_click_ms.max(initial=0) - index.last_click_ms) / 1000.0
    if session_scale_s is None:
        recency = np.ones(index.n_sessions)
    else:  # e^-745 would be 0, and a neighbour that old no neighbour
        recency = np.exp(-np.minimum(age_s / session_scale_s, 600.0))
    return STAN(
        index=index,
        base=(1e-6 * tie_break(item_support(sessions, n_items))).astype(np.float32),
        session_weight=recency / np.sqrt(np.maximum(np.diff(index.session_start), 1)),
        click_scale=click_scale,
        distance_scale=distance_scale,
        m=m,
        k=k,
    )


@compiled
def _stan_votes(
    recent: Int64[np.ndarray, "b w"],
    posting_start: Int64[np.ndarray, "N_plus_1"],
    posting: Int32[np.ndarray, "pairs"],
    session_start: Int64[np.ndarray, "S_plus_1"],
    session_item: Int32[np.ndarray, "pairs"],
    session_position: Int32[np.ndarray, "pairs"],
    session_weight: Float64[np.ndarray, "S"],
    click_scale: float,
    distance_scale: float,
    m: int,
    k: int,
) -> tuple[Int64[np.ndarray, "b_plus_1"], Int32[np.ndarray, "votes"], Float64[np.ndarray, "votes"]]:
    n_rows, n_clicks = recent.shape
    item = np.empty(n_clicks, dtype=np.int64)
    ago = np.empty(n_clicks, dtype=np.int64)
    session = np.empty(m, dtype=np.int64)
    similarity = np.empty(m, dtype=np.float64)
    match = np.empty(m, dtype=np.int64)
    kept = np.empty(k, dtype=np.int64)
    start = np.zeros(n_rows + 1, dtype=np.int64)
    voted = np.empty(1024, dtype=np.int32)
    points = np.empty(1024, dtype=np.float64)
    n_votes = 0
    for row in range(n_rows):
        n_items = distinct_items(recent[row], item, ago)
        weight = np.exp(-ago[:n_items] / click_scale)
        n_found = merge_newest(
            item[:n_items], weight, posting_start, posting, session, similarity, match
        )
        for i in range(n_found):
            similarity[i] *= session_weight[session[i]]
        n_kept = keep_most_similar(similarity[:n_found], k, kept)
        nearest = 0.0
        for i in kept[:n_kept]:
            nearest = max(nearest, similarity[i])
        for i in kept[:n_kept]:
            first, end = session_start[session[i]], session_start[session[i] + 1]
            matched = 0
            for at in range(first, end):
                if session_item[at] == item[match[i]]:
                    matched = session_position[at]
            for at in range(first, end):
                if n_votes == len(voted):
                    voted = np.concatenate((voted, np.empty_like(voted)))
                    points = np.concatenate((points, np.empty_like(points)))
                distance = abs(session_position[at] - matched)
                voted[n_votes] = session_item[at]
                # by the nearest one's similarity, lest old sessions fall below the tie-break
                points[n_votes] = similarity[i] / nearest * np.exp(-distance / distance_scale)
                n_votes += 1
        start[row + 1] = n_votes
    return start, voted[:n_votes], points[:n_votes]
