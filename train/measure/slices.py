"""Ways to cut an evaluation into parts that a model may be good or bad at."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Int64

from train.data.sessions import Sessions
from train.measure.ranking import Ranks

POPULARITY_SHARES = (0.01, 0.1, 0.5)
"""Where the bands of popularity end, as shares of the catalogue, the most clicked items first."""


class Slicing(NamedTuple):
    """Parts of an evaluation that together hold every prediction once."""

    name: str
    labels: tuple[str, ...]
    label: Int64[np.ndarray, "P"]
    """Index of every prediction's part in `labels`."""


def slicings(ranks: Ranks, support: Int64[np.ndarray, "N"]) -> Iterator[Slicing]:
    """By kind of target, position, session length and the target's popularity in training."""
    yield by_target(ranks)
    yield _by_bounds("clicks known", ranks.position, (1, 2, 3, 5, 10))
    yield _by_bounds("clicks in the session", ranks.length, (2, 3, 5, 10, 20))
    yield by_popularity(ranks, support)


def by_target(ranks: Ranks) -> Slicing:
    """Novel and repeat targets."""
    return Slicing("target", ("novel", "repeat"), np.where(ranks.novel, 0, 1))


def by_popularity(ranks: Ranks, support: Int64[np.ndarray, "N"]) -> Slicing:
    """Targets among the most clicked 1 % of the items, the next 9 %, the next 40 %, and the rest.
    Items of equal support are ordered by item_index; each band's end is rounded up to an item."""
    place = np.empty(len(support), dtype=np.int64)
    place[np.argsort(-support, kind="stable")] = np.arange(len(support))
    ends = [int(np.ceil(share * len(support))) for share in POPULARITY_SHARES]
    label = np.searchsorted(ends, place[ranks.target], side="right")
    return Slicing(
        "popularity of the target", ("top 1 %", "next 9 %", "next 40 %", "last 50 %"), label
    )


def _by_bounds(name: str, value: Int64[np.ndarray, "P"], last: Sequence[int]) -> Slicing:
    """Parts that end with each of `last`, the first one holding that value alone, and one for all
    above."""
    begins = (last[0], *(bound + 1 for bound in last[:-1]))
    labels = [f"{a}" if a == b else f"{a}\N{EN DASH}{b}" for a, b in zip(begins, last, strict=True)]
    return Slicing(name, (*labels, f"{last[-1] + 1}+"), np.searchsorted(last, value, side="left"))


def first_clicks(sessions: Sessions, support: Int64[np.ndarray, "N"]) -> Ranks:
    """The first click of every session as the target of the list that serving answers with when
    nothing is known yet: the most clicked items, whatever the model. `position` is 0.
    """
    first = sessions.start[:-1]
    first = first[sessions.target_weight[first] > 0]
    session = np.searchsorted(sessions.start, first, side="right") - 1
    target = sessions.item_index[first]
    # One list for all sessions: an item's rank counts every item with as many clicks or more.
    rank = len(support) - np.searchsorted(np.sort(support), support[target], side="left")
    return Ranks(
        session=session,
        position=np.zeros(len(first), dtype=np.int64),
        length=sessions.lengths[session],
        target=target,
        rank=rank,
        novel=np.ones(len(first), dtype=bool),
        weight=sessions.target_weight[first],
    )
