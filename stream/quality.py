"""How good each part of a blended list would be alone, found out on a sample of the sessions.

A metric and no state: the parts' lists wait in memory for their session's next click. They end with
the process, and are not judged where another worker has answered their session meanwhile.
"""

from collections import OrderedDict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple
from zlib import crc32

import numpy as np

from stream.counts import rank_in_list
from stream.live.lists import Listed
from stream.model.blender import Ask, Blender
from stream.model.scorer import Scores

SAMPLED = 32
"""One session in so many. A click of theirs costs 1.6 times as much to plan, score and answer, for
a second list above all: 2 % over all clicks. 10 clicks/s still judge 700 lists an hour."""
MOST_SESSIONS = 4096
"""Of the sample, 3 kB each; those that have been quiet for longest are forgotten beyond so many."""


def is_sampled(session: bytes) -> bool:
    """Whether a session is one of the sample."""
    # By the highest bits: a producer may have chosen the partition by the lowest of the same CRC.
    return crc32(session) < 2**32 // SAMPLED


class _Part(NamedTuple):
    """What a part lists alone, best first."""

    items: Sequence[str]
    scores: Sequence[float]


class Parts(NamedTuple):
    """What the parts of a published list would have been, each alone.

    network: where it does not know the last item, its list before: so it answers without a view.
    """

    network: _Part
    counts: _Part
    popularity: _Part


class _Kept(NamedTuple):
    published: bytes
    """The list as the session's state keeps it: these are the parts of no other."""
    parts: Parts


_NOTHING = _Part((), ())


class Sample:
    """The parts' lists of the sampled sessions, each until the session's next click."""

    def __init__(self) -> None:
        self._kept: OrderedDict[bytes, _Kept] = OrderedDict()

    def make(
        self,
        wanted: Mapping[int, bytes],
        blender: Blender,
        asks: Sequence[Ask],
        scores: Scores,
        published: Sequence[Listed],
    ) -> dict[int, Parts]:
        """Return the parts of some of a batch's lists.

        wanted: the number of each list and its session, in order of the clicks. published: the
        lists that answer the asks.
        """
        view = blender.view
        # What the network had no part in is the view's alone already.
        blended = [number for number in wanted if asks[number].rank_row >= 0]
        none = replace(scores, top_index=scores.top_index[:0], top_score=scores.top_score[:0])
        apart = [asks[number]._replace(rank_row=-1) for number in blended]
        alone = blender.make(blender.gather(apart), none) if apart else []
        counts = dict(zip(blended, alone, strict=True))
        found = view.most_popular(asks[next(iter(wanted))].now_ms)
        by_share = np.lexsort((found.item, -found.share))
        popular = found.item[by_share], found.share[by_share]
        made: dict[int, Parts] = {}
        last: dict[bytes, Parts] = {}
        for number, session in wanted.items():
            _, _, _, rank_row = ask = asks[number]
            seen = {*blender.excluded(ask.trail)}
            k = len(published[number].items)
            if rank_row >= 0:  # an item_index is its item's row in the view
                best = scores.top_index[rank_row], scores.top_score[rank_row]
                network = _part(view.names, *best, seen, k)
            elif before := last.get(session):
                network = before.network
            else:
                kept = self._kept.get(session)
                network = kept.parts.network if kept else _NOTHING
            of_view = counts.get(number, published[number])
            made[number] = last[session] = Parts(
                network,
                _Part([view.names[row] for row in of_view.items], _float32(of_view.scores)),
                _part(view.names, *popular, seen, k),
            )
        return made

    def ranks(
        self, made: Mapping[int, Parts], session: bytes, listed: int | bytes, item_id: str
    ) -> tuple[int, int, int] | None:
        """Return an item's rank in the parts of a list; None where these are not known.

        made: of this batch. listed: the published list, its number in it or as the state keeps it.
        """
        if isinstance(listed, int):
            parts = made.get(listed)
        else:
            kept = self._kept.get(session)
            parts = kept.parts if kept and kept.published == listed else None
        if parts is None:
            return None
        network, counts, popularity = (rank_in_list(*part, item_id) for part in parts)
        return network, counts, popularity

    def keep(
        self,
        wanted: Mapping[int, bytes],
        made: Mapping[int, Parts],
        stored: Callable[[int], bytes],
    ) -> None:
        """Keep what a batch has made; of a session the last.

        stored: what a session's state keeps of the list of this number.
        """
        for number, session in wanted.items():
            self._kept[session] = _Kept(stored(number), made[number])
            self._kept.move_to_end(session)
        while len(self._kept) > MOST_SESSIONS:
            self._kept.popitem(last=False)


def _part(
    names: Sequence[str], rows: np.ndarray, scores: np.ndarray, seen: Collection[int], k: int
) -> _Part:
    """The k best of a source that are not among those seen."""
    first = rows[: k + len(seen)].tolist()
    best = [n for n, row in enumerate(first) if row not in seen][:k]
    return _Part([names[first[n]] for n in best], _float32(scores[best]))


def _float32(scores: Sequence[float] | np.ndarray) -> list[float]:
    """Scores with the ties that a published list has."""
    as_list: list[float] = np.asarray(scores, np.float32).tolist()
    return as_list
