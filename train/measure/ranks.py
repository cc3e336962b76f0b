"""Where the next click stood in every list of an evaluation."""

from dataclasses import dataclass, fields

import numpy as np
from jaxtyping import Bool, Float32, Int64

from train.data.sessions import Sessions


@dataclass(frozen=True, slots=True)
class Ranks:
    """Every prediction of an evaluation, one row each, by session and then by position.

    So two models over the same sessions line up row by row.
    """

    session: Int64[np.ndarray, "P"]
    """Row of the session in the evaluated sessions."""
    position: Int64[np.ndarray, "P"]
    """Clicks of the session that were known."""
    length: Int64[np.ndarray, "P"]
    """Clicks of the session, those still to come included."""
    target: Int64[np.ndarray, "P"]
    """item_index of the click that came."""
    rank: Int64[np.ndarray, "P"]
    """Place of the target in the list, from 1; among equal scores the last."""
    novel: Bool[np.ndarray, "P"]
    """The target is not among the known clicks."""
    weight: Float32[np.ndarray, "P"]
    """What the prediction counts for; above 0."""

    def __len__(self) -> int:
        return len(self.rank)

    def of(self, rows: Bool[np.ndarray, "P"]) -> "Ranks":
        """The chosen predictions alone."""
        return Ranks(**{field.name: getattr(self, field.name)[rows] for field in fields(Ranks)})


def ranks_of(sessions: Sessions, rank: Int64[np.ndarray, "T"]) -> Ranks:
    """Ranks of all clicks that are targets: not a session's first, and of a weight above 0.

    Row t of `rank` is the rank click t had as the next one.
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
