"""What people would use instead of a network: popularity, the session's own items, and counts of
which item follows which. Each is a `Predictor` of `train/evaluate.py`.

Items that a baseline knows nothing of are ordered by their support in the training log.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float64, Int64

from train.evaluate import Predictor, SessionBatch
from train.sessions import Sessions


def item_support(sessions: Sessions, n_items: int) -> Int64[np.ndarray, "N"]:
    """Clicks on every item."""
    return np.bincount(sessions.item_index, minlength=n_items)


def _tie_break(support: Int64[np.ndarray, "N"]) -> Float64[np.ndarray, "N"]:
    """Support scaled below 1, so that it orders only what counts leave equal."""
    return np.asarray(support / (support.max(initial=0) + 1.0))


@dataclass(frozen=True, slots=True)
class Pop:
    """The most clicked items, whatever the session."""

    support: Int64[np.ndarray, "N"]

    def predict(self, batch: SessionBatch) -> Iterator[Float[np.ndarray, "b N"]]:
        """The same list for everybody."""
        scores = self.support.astype(np.float64)
        for prefix in batch.steps():
            yield np.broadcast_to(scores, (len(prefix), len(scores)))


@dataclass(frozen=True, slots=True)
class SessionPop:
    """The session's own items by their clicks in it, then the most clicked ones (S-POP)."""

    support: Int64[np.ndarray, "N"]

    def predict(self, batch: SessionBatch) -> Iterator[Float[np.ndarray, "b N"]]:
        """Clicks in the session, equal ones by support."""
        tie_break = _tie_break(self.support)
        for prefix in batch.steps():
            scores = np.tile(tie_break, (len(prefix), 1))
            np.add.at(scores, (np.arange(len(prefix))[:, None], prefix), 1.0)
            yield scores


@dataclass(frozen=True, slots=True)
class Markov:
    """Items by how often they followed the last click in training: a first-order chain.

    Followers of item i are `follower[start[i]:start[i + 1]]`, counted by `count`: the matrix of
    transitions holds only pairs that occurred.
    """

    support: Int64[np.ndarray, "N"]
    start: Int64[np.ndarray, "N_plus_1"]
    follower: Int64[np.ndarray, "pairs"]
    count: Int64[np.ndarray, "pairs"]

    def predict(self, batch: SessionBatch) -> Iterator[Float[np.ndarray, "b N"]]:
        """Transitions from the last click, equal ones by support."""
        tie_break = _tie_break(self.support)
        for prefix in batch.steps():
            scores = np.tile(tie_break, (len(prefix), 1))
            for row, last in zip(scores, prefix[:, -1].tolist(), strict=True):
                followers = slice(self.start[last], self.start[last + 1])
                row[self.follower[followers]] += self.count[followers]
            yield scores


def count_transitions(sessions: Sessions, n_items: int) -> Markov:
    """The chain of the neighbouring clicks of the training sessions, repeats included."""
    within = np.ones(sessions.n_clicks, dtype=bool)
    within[sessions.start[1:] - 1] = False  # a session's last click is followed by nothing
    last = np.flatnonzero(within)
    pair = sessions.item_index[last] * n_items + sessions.item_index[last + 1]
    pair, count = np.unique(pair, return_counts=True)
    item, follower = np.divmod(pair, n_items)
    return Markov(
        support=item_support(sessions, n_items),
        start=np.searchsorted(item, np.arange(n_items + 1)),
        follower=follower,
        count=count,
    )


def build_baselines(sessions: Sessions, n_items: int) -> dict[str, Predictor]:
    """Every baseline, counted from the training sessions, by the name figures are kept under."""
    support = item_support(sessions, n_items)
    return {
        "pop": Pop(support),
        "s-pop": SessionPop(support),
        "markov": count_transitions(sessions, n_items),
    }
