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

from train.baselines.popularity import age_weights, recent_popularity
from train.baselines.support import item_support, tie_break
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
    last, following = _pairs(sessions, distance=1)
    base = tie_break(item_support(sessions, n_items))
    return _rules(base, _matrix(sessions, n_items, last, following, np.ones(len(last))))


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
    last, following = _pairs(sessions, distance=1)
    end_ms = int(sessions.timestamp_ms.max(initial=0))
    weight = age_weights(sessions.timestamp_ms[following], end_ms, half_life_s)
    recent = recent_popularity(sessions, n_items, popularity_half_life_s)
    equal = TIE_BREAK * tie_break(item_support(sessions, n_items))
    return _rules(
        popularity_weight * recent + equal, _matrix(sessions, n_items, last, following, weight)
    )


def association_rules(sessions: Sessions, n_items: int) -> Rules:
    """How often two clicks were in one session, in either order; equal counts by support.

    An item follows itself only where it was clicked twice.
    """
    longest = int(sessions.lengths.max(initial=2))
    later = _later_clicks(sessions, n_items, np.ones(longest - 1))
    return _rules(tie_break(item_support(sessions, n_items)), (later + later.T).tocsr())


def sequential_rules(sessions: Sessions, n_items: int, *, steps: int = 10) -> Rules:
    """Clicks up to `steps` later in the session, each counted 1 / distance."""
    later = _later_clicks(sessions, n_items, 1.0 / np.arange(1, steps + 1))
    return _rules(TIE_BREAK * tie_break(item_support(sessions, n_items)), later)


def item_knn(sessions: Sessions, n_items: int, *, shrinkage: float = 20.0) -> Rules:
    """The cosine of the sessions that two items occur in; an item is no neighbour of itself.

    `shrinkage` is added to both items' sessions, so that a pair seen once proves little.
    """
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
    return _rules(TIE_BREAK * tie_break(item_support(sessions, n_items)), cosine)


def _pairs(
    sessions: Sessions, distance: int
) -> tuple[Int64[np.ndarray, "pairs"], Int64[np.ndarray, "pairs"]]:
    """Rows of clicks that far apart in one session: of the earlier ones and of the later ones."""
    session = np.repeat(np.arange(len(sessions)), sessions.lengths)
    earlier = np.flatnonzero(session[distance:] == session[:-distance])
    return earlier, earlier + distance


def _matrix(
    sessions: Sessions,
    n_items: int,
    earlier: Int64[np.ndarray, "pairs"],
    later: Int64[np.ndarray, "pairs"],
    weight: Float64[np.ndarray, "pairs"],
) -> scipy.sparse.csr_array:
    """The weights of all pairs of clicks, added up by their items."""
    item = sessions.item_index
    return scipy.sparse.csr_array((weight, (item[earlier], item[later])), shape=(n_items, n_items))


def _later_clicks(
    sessions: Sessions, n_items: int, weight: Float64[np.ndarray, "distances"]
) -> scipy.sparse.csr_array:
    """All pairs of clicks of a session, the earlier one's item first, weighted by distance."""
    total = scipy.sparse.csr_array((n_items, n_items))
    for distance, counted in enumerate(weight.tolist(), start=1):
        earlier, later = _pairs(sessions, distance)
        if not len(earlier):
            break
        total += _matrix(sessions, n_items, earlier, later, np.full(len(earlier), counted))
    return total


def _rules(base: Float64[np.ndarray, "N"], matrix: scipy.sparse.csr_array) -> Rules:
    matrix.sum_duplicates()
    return Rules(base, matrix)
