"""What follows an item, whatever came before it: the last click looks its followers up in a matrix.

The methods differ in the matrix alone: transitions (Markov), the same weighted by age, pairs of a
session (association rules), pairs in order (sequential rules; both from Ludewig & Jannach, arXiv
1803.09587), and the cosine of the sessions two items occur in (item-kNN, Hidasi et al., arXiv
1511.06939, section 4).
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import scipy.sparse  # type: ignore[import-untyped]  # its stubs are a package of their own
from jaxtyping import Float, Float64, Int64

from train.baselines.popularity import age_weights, item_support, recent_popularity, tie_break
from train.baselines.votes import Votes, vote_scores
from train.data.sessions import Sessions
from train.measure.ranking import SessionBatch

TIE_BREAK = 1e-9
"""What support counts next to fractional weights: it orders only equal ones."""


@dataclass(frozen=True, slots=True)
class Rules:
    """Items by what the last click's row of a matrix gives them, on top of `base`."""

    base: Float64[np.ndarray, "N"]
    followers: scipy.sparse.csr_array
    """N x N: row i holds what follows item i."""

    def predict(self, batch: SessionBatch) -> Iterator[Float[np.ndarray, "b N"]]:
        """The last click's followers, then all other items by `base`."""
        return vote_scores(batch, self.base, self._votes)

    def _votes(self, prefix: Int64[np.ndarray, "b t"]) -> Votes:
        rows = self.followers[prefix[:, -1]]
        return Votes(rows.indptr.astype(np.int64), rows.indices, rows.data)


def count_transitions(sessions: Sessions, n_items: int) -> Rules:
    """The first-order chain of neighbouring clicks, repeats included; equal counts by support."""
    return Rules(_by_support(sessions, n_items), _followers(sessions, n_items, 1))


def decayed_transitions(
    sessions: Sessions,
    n_items: int,
    *,
    half_life_s: float,
    popularity_half_life_s: float,
    popularity_weight: float,
) -> Rules:
    """The chain with transitions weighted by their age at the log's end, and recent popularity.

    The latter is smoothing: as if every item had been followed `popularity_weight` more times, by
    items as popular as they are now.
    """
    recent = recent_popularity(sessions, n_items, popularity_half_life_s)
    return Rules(
        popularity_weight * recent + TIE_BREAK * _by_support(sessions, n_items),
        _followers(sessions, n_items, 1, age_weights(sessions, half_life_s)),
    )


def association_rules(sessions: Sessions, n_items: int) -> Rules:
    """How often two clicks were in one session, in either order; equal counts by support. An item
    follows itself only where it was clicked twice."""
    longest = int(sessions.lengths.max(initial=2))
    later = _later_clicks(sessions, n_items, np.ones(longest - 1))
    return Rules(_by_support(sessions, n_items), (later + later.T).tocsr())


def sequential_rules(sessions: Sessions, n_items: int, *, steps: int = 10) -> Rules:
    """Clicks up to `steps` later in the session, each counted 1 / distance."""
    later = _later_clicks(sessions, n_items, 1.0 / np.arange(1, steps + 1))
    return Rules(TIE_BREAK * _by_support(sessions, n_items), later)


def item_knn(sessions: Sessions, n_items: int, *, shrinkage: float = 20.0) -> Rules:
    """The cosine of the sessions that two items occur in; an item is no neighbour of itself.
    `shrinkage` is added to both items' sessions, so that a pair seen once proves little."""
    item = sessions.item_index
    session = np.repeat(np.arange(len(sessions)), sessions.lengths)
    occurs = scipy.sparse.csr_array(
        (np.ones(len(item)), (session, item)), shape=(len(sessions), n_items)
    )
    occurs.data[:] = 1.0  # building it has added an item's clicks up
    n_sessions = np.bincount(occurs.indices, minlength=n_items)
    together = (occurs.T @ occurs).tocoo()
    row, column = together.row, together.col
    other = row != column
    norm = np.sqrt((n_sessions[row] + shrinkage) * (n_sessions[column] + shrinkage))
    cosine = scipy.sparse.csr_array(
        ((together.data / norm)[other], (row[other], column[other])), shape=(n_items, n_items)
    )
    return Rules(TIE_BREAK * _by_support(sessions, n_items), cosine)


def _by_support(sessions: Sessions, n_items: int) -> Float64[np.ndarray, "N"]:
    return tie_break(item_support(sessions, n_items))


def _followers(
    sessions: Sessions, n_items: int, distance: int, weight: float | Float64[np.ndarray, "T"] = 1.0
) -> scipy.sparse.csr_array:
    """Pairs of clicks that far apart in one session, the earlier one's item first; each adds what
    the later click weighs.
    """
    item, session = sessions.item_index, np.repeat(np.arange(len(sessions)), sessions.lengths)
    earlier = np.flatnonzero(session[distance:] == session[:-distance])
    later = earlier + distance
    weights = np.broadcast_to(weight, len(item))[later]
    return scipy.sparse.csr_array((weights, (item[earlier], item[later])), shape=(n_items, n_items))


def _later_clicks(
    sessions: Sessions, n_items: int, weight: Float64[np.ndarray, "distances"]
) -> scipy.sparse.csr_array:
    """All pairs of clicks of a session, the earlier one's item first, weighted by distance."""
    total = scipy.sparse.csr_array((n_items, n_items))
    for distance, counted in enumerate(weight.tolist(), start=1):
        followers = _followers(sessions, n_items, distance, counted)
        if not followers.nnz:
            break
        total += followers
    return total
