"""VMIS-kNN: what the most similar of the newest sessions with a shared item clicked.

Kersbergen, Sprangers, Schelter, "Serenade: Low-Latency Session-Based Recommendation in e-Commerce
at Scale" (SIGMOD 2022), section 3; the similarity is that of VS-kNN (Ludewig & Jannach, arXiv
1803.09587).
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

LONGEST_WINDOW = 9  # a match 10 clicks ago would count 1 - 10 / 10


@dataclass(frozen=True, slots=True)
class VMISKNN:
    """Votes of the k most similar among the m newest sessions that share a click."""

    index: SessionIndex
    base: Float32[np.ndarray, "N"]
    idf: Float64[np.ndarray, "N"]
    """log(sessions / sessions with the item)."""
    m: int
    k: int
    window: int
    """Last clicks of a session that count."""

    def predict(self, batch: SessionBatch) -> Iterator[Float[np.ndarray, "b N"]]:
        """The neighbours' votes; items that none of them clicked by support."""
        return vote_scores(batch, self.base, self._votes)

    def _votes(self, prefix: Int64[np.ndarray, "b t"]) -> Votes:
        index = self.index
        recent = np.ascontiguousarray(prefix[:, -self.window :])
        return Votes(
            *_vmis_votes(
                recent,
                index.posting_start,
                index.posting,
                index.session_start,
                index.item,
                self.idf,
                self.m,
                self.k,
            )
        )


def vmis_knn(
    sessions: Sessions, n_items: int, *, m: int = 500, k: int = 100, window: int = LONGEST_WINDOW
) -> VMISKNN:
    """VMIS-kNN over these training sessions.

    The defaults are those of the untuned figures it is known by: .5178/.1832 on Diginetica's
    official test, .6832/.3592 on RSC15-100k's. Raises ValueError for sizes without a meaning.
    """
    if not (0 < k <= m and 0 < window <= LONGEST_WINDOW):
        raise ValueError(
            f"VMIS-kNN takes 0 < k <= m and a window of 1 to {LONGEST_WINDOW} clicks, "
            f"found k={k}, m={m}, window={window}"
        )
    index = index_sessions(sessions, n_items)
    return VMISKNN(
        index=index,
        base=(1e-6 * tie_break(item_support(sessions, n_items))).astype(np.float32),
        idf=np.log(index.n_sessions / np.maximum(index.sessions_of_item(), 1)),
        m=m,
        k=k,
        window=window,
    )


@compiled
def _vmis_votes(
    recent: Int64[np.ndarray, "b w"],
    posting_start: Int64[np.ndarray, "N_plus_1"],
    posting: Int32[np.ndarray, "pairs"],
    session_start: Int64[np.ndarray, "S_plus_1"],
    session_item: Int32[np.ndarray, "pairs"],
    idf: Float64[np.ndarray, "N"],
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
        weight = (n_clicks - ago[:n_items]) / n_clicks
        n_found = merge_newest(
            item[:n_items], weight, posting_start, posting, session, similarity, match
        )
        n_kept = keep_most_similar(similarity[:n_found], k, kept)
        for i in kept[:n_kept]:
            # 1 - 0.1 x position of the newest shared click, the last click being at 1
            neighbour = similarity[i] * (1.0 - 0.1 * (ago[match[i]] + 1))
            for at in range(session_start[session[i]], session_start[session[i] + 1]):
                if n_votes == len(voted):
                    voted = np.concatenate((voted, np.empty_like(voted)))
                    points = np.concatenate((points, np.empty_like(points)))
                voted[n_votes] = session_item[at]
                points[n_votes] = neighbour * idf[session_item[at]]
                n_votes += 1
        start[row + 1] = n_votes
    return start, voted[:n_votes], points[:n_votes]
