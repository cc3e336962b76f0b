"""Where the next click stood in every list of an evaluation."""

from dataclasses import dataclass, fields

import numpy as np
from jaxtyping import Bool, Float, Float32, Int64

from train.data.sessions import Sessions
from train.measure.compiled import compiled


@dataclass(frozen=True, slots=True)
class Ranks:
    """Every prediction of an evaluation, one row each, by session and then by position.

    Two models over the same sessions therefore line up row by row.
    """

    session: Int64[np.ndarray, "P"]
    """Row of the session in the evaluated sessions."""
    position: Int64[np.ndarray, "P"]
    """Clicks of the session that were known."""
    length: Int64[np.ndarray, "P"]
    """Clicks of the session, including those still to come."""
    target: Int64[np.ndarray, "P"]
    """item_index of the click that came."""
    rank: Int64[np.ndarray, "P"]
    """Place of the target in the list, from 1; among equal scores the last."""
    novel: Bool[np.ndarray, "P"]
    """The target is not among the known clicks."""
    weight: Float32[np.ndarray, "P"]
    """What the prediction counts; above 0."""

    def __len__(self) -> int:
        return len(self.rank)

    def of(self, rows: Bool[np.ndarray, "P"]) -> "Ranks":
        """Only the chosen predictions."""
        return Ranks(**{field.name: getattr(self, field.name)[rows] for field in fields(Ranks)})


@compiled
def conservative_rank(
    scores: Float[np.ndarray, "B N"], target: Int64[np.ndarray, "B"]
) -> Int64[np.ndarray, "B"]:
    """Place of each row's target from 1, behind every item that does not score below it.

    NaN is neither below nor above anything: it counts against the model on either side.
    """
    rank = np.empty(len(scores), dtype=np.int64)
    for b in range(len(scores)):
        rank[b] = place_of(scores[b], scores[b, target[b]])
    return rank


@compiled
def place_of(scores: Float[np.ndarray, "N"], score: float) -> int:
    """The place from 1 of an item with that score among all of these, itself included."""
    # 2 to 5 us a row of 43,097, as fast as it can be read; np.count_nonzero takes 6 to 11.
    n_below = 0
    for item in range(len(scores)):
        n_below += scores[item] < score
    return len(scores) - n_below


def ranks_of(sessions: Sessions, rank: Int64[np.ndarray, "T"]) -> Ranks:
    """Ranks of all clicks that are targets: not a session's first, and of a weight above 0.

    Row t of `rank` is the rank that click t had as the next one.
    """
    lengths = sessions.lengths
    session = np.repeat(np.arange(len(sessions)), lengths)
    position = np.arange(sessions.n_clicks) - np.repeat(sessions.start[:-1], lengths)
    is_target = (position > 0) & (sessions.target_weight > 0)
    return Ranks(
        session=session,
        position=position,
        length=lengths[session],
        target=sessions.item_index,
        rank=rank,
        novel=_first_in_session(sessions, session),
        weight=sessions.target_weight,
    ).of(is_target)


def _first_in_session(sessions: Sessions, session: Int64[np.ndarray, "T"]) -> Bool[np.ndarray, "T"]:
    # A stable sort brings the clicks on one item in one session together, the earliest first.
    order = np.lexsort((sessions.item_index, session))
    item, within = sessions.item_index[order], session[order]
    novel = np.ones(sessions.n_clicks, dtype=bool)
    novel[order[1:]] = (item[1:] != item[:-1]) | (within[1:] != within[:-1])
    return novel
