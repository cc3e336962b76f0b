"""Lists as they are served: the blend of all sources, cut to the K best."""

from array import array
from collections.abc import Sequence
from itertools import chain
from typing import NamedTuple

import msgspec
import numpy as np
from jaxtyping import Float32, Float64, Int64

from stream.live.rules import DISTANCES, PREFIXES, SOURCES, prefix_class
from stream.live.view import Successors, View

POPULARITY = SOURCES.index("popularity")


class Wanted(NamedTuple):
    """A list that is wanted: of a session of these rows of the view, the latest last.

    n_clicks: of the session, of which the trail may be the last ones. network: the row of what the
    network lists after the same click; -1: it does not know the item. excluded: what is not listed.
    """

    trail: Sequence[int]
    n_clicks: int
    now_ms: int
    network: int
    excluded: Sequence[int] = ()


class NetworkBest(NamedTuple):
    """What a network lists of R sessions: C items each as rows of the view, with their shares."""

    items: Int64[np.ndarray, "R C"]
    shares: Float64[np.ndarray, "R C"]


class Gathered(NamedTuple):
    """What B lists are made of, without the network's part: see ``kernel.best_of_blend``."""

    trails: Int64[np.ndarray, "T"]
    trail_ends: Int64[np.ndarray, "B"]
    classes: Int64[np.ndarray, "B"]
    now_ms: Int64[np.ndarray, "B"]
    excluded: Int64[np.ndarray, "X"]
    excluded_ends: Int64[np.ndarray, "B"]
    followed: Int64[np.ndarray, "B steps"]
    begins: Int64[np.ndarray, "F+1"]
    successors: Int64[np.ndarray, "C"]
    counts: Float32[np.ndarray, "R*C"]
    totals: Float64[np.ndarray, "F*R"]
    landmarks_ms: Int64[np.ndarray, "F"]
    half_lives_ms: Float64[np.ndarray, "R"]
    popular: Int64[np.ndarray, "P"]
    popular_shares: Float64[np.ndarray, "P"]
    network_rows: Int64[np.ndarray, "B"]


class Listed(NamedTuple):
    """At most K items, best first, equal ones by row. ``sources``: numbers in ``SOURCES``."""

    items: list[int]
    scores: list[float]
    sources: list[int]

    @property
    def is_of_neighbours(self) -> bool:
        """Whether it says more than what is popular."""
        return any(source != POPULARITY for source in self.sources)


class LiveList(msgspec.Struct, array_like=True, frozen=True):
    """What a session's state keeps of a list. scores: float32; sources: a byte an item."""

    items: list[str]
    scores: bytes
    sources: bytes


encode_list = msgspec.msgpack.Encoder().encode
decode_list = msgspec.msgpack.Decoder(LiveList).decode


class Lister:
    """Makes lists of K items from one view. Not thread-safe.

    To make one takes seconds where the machine code of its loops is not cached yet.
    """

    def __init__(self, view: View, weights: Float64[np.ndarray, "P S"], k: int) -> None:
        assert weights.shape == (PREFIXES, len(view.rules.sources) + 1), "the bundle was checked"
        self._view, self._k = view, k
        self._weights = weights
        self._half_lives_ms = np.array(view.rules.half_lives_ms)
        self._cell_of = np.full(1024, -1, dtype=np.int32)
        # Workers of a network alone do without numba's second or two and 130 MB.
        from stream.live.kernel import best_of_blend

        self._best = best_of_blend
        nothing = NetworkBest(np.zeros((1, 0), np.int64), np.zeros((1, 0)))
        self.make(self.gather([Wanted([0], 1, 0, -1)]), nothing, 1)  # compiles it

    def popular(self, now_ms: int) -> Listed:
        """What is popular now, for a session of which nothing is known."""
        found = self._view.most_popular(now_ms)
        best = np.lexsort((found.item, -found.share))[: self._k]
        items, scores = found.item[best].tolist(), found.share[best].tolist()
        return Listed(items, scores, [POPULARITY] * len(items))

    def gather(self, wanted: Sequence[Wanted]) -> Gathered:
        """What the view has for these lists, one at least, of sessions of one item at least."""
        popular = self._view.most_popular(max(one.now_ms for one in wanted))
        followed, successors = self._followed(wanted)
        n_followed = [0, *(len(of_item.items) for of_item in successors)]
        return Gathered(
            *_end_to_end([one.trail for one in wanted]),
            np.array([prefix_class(one.n_clicks) for one in wanted]),
            np.array([one.now_ms for one in wanted]),
            *_end_to_end([one.excluded for one in wanted]),
            followed,
            np.cumsum(n_followed),
            _joined([of_item.items for of_item in successors], np.int64),
            _joined([of_item.weights for of_item in successors], np.float32),
            np.fromiter(chain.from_iterable(s.totals for s in successors), np.float64),
            np.array([of_item.landmark_ms for of_item in successors], np.int64),
            self._half_lives_ms,
            popular.item,
            popular.share,
            np.array([one.network for one in wanted]),
        )

    def make(self, gathered: Gathered, network: NetworkBest, n_rows: int) -> list[Listed]:
        """The lists, from what was gathered for them and the network. n_rows: of the view."""
        if n_rows > len(self._cell_of):
            self._cell_of = np.full(2 * n_rows, -1, dtype=np.int32)
        found = self._best(*gathered, *network, self._weights, self._cell_of, self._k)
        rows, worths, from_where, sizes = found
        lists = [*map(Listed, rows.tolist(), worths.tolist(), from_where.tolist())]
        for n in np.flatnonzero(sizes < self._k).tolist():
            here = slice(sizes[n])
            lists[n] = Listed(lists[n].items[here], lists[n].scores[here], lists[n].sources[here])
        return lists

    def _followed(
        self, wanted: Sequence[Wanted]
    ) -> tuple[Int64[np.ndarray, "B steps"], list[Successors]]:
        """What came after the sessions' last items, and which of it is whose; -1: nothing."""
        numbers: dict[int, int] = {}
        found: list[Successors] = []
        places: list[int] = []
        for one in wanted:
            last = one.trail[: -len(DISTANCES) - 1 : -1]
            for item in last:
                number = numbers.get(item)
                if number is None:
                    successors = self._view.following(item)
                    number = numbers[item] = -1 if successors is None else len(found)
                    if successors is not None:
                        found.append(successors)
                places.append(number)
            places += [-1] * (len(DISTANCES) - len(last))
        return np.array(places).reshape(-1, len(DISTANCES)), found


def _end_to_end(
    parts: Sequence[Sequence[int]],
) -> tuple[Int64[np.ndarray, "n"], Int64[np.ndarray, "B"]]:
    """All parts as one array, and where each ends in it."""
    ends = np.cumsum([len(part) for part in parts])
    return np.fromiter(chain.from_iterable(parts), np.int64, ends[-1]), ends


def _joined(parts: "Sequence[array[int] | bytes]", dtype: type[np.generic]) -> np.ndarray:
    """The numbers of all parts: numpy's concatenate takes five times as long."""
    return np.frombuffer(bytearray().join(parts), dtype)
