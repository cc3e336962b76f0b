"""Lists as they are served: the blend of all sources, cut to the K best, for many sessions at once.

What ``blend`` says, in a fixed number of passes over a matrix with a row for each session: made one
by one, a list took half as long again.
"""

from collections.abc import Sequence
from typing import NamedTuple

import msgspec
import numpy as np
from jaxtyping import Float64, Int64

from stream.live.rules import DISTANCES, PREFIXES, prefix_class
from stream.live.view import Successors, View, earlier_shares

SOURCES = ("transitions", "popularity", "network", "session")
"""What a list says of where an item came from: the one that gave most of its score."""
POPULARITY = SOURCES.index("popularity")
_AT_ONCE = 64
"""So many lists are made together: fewer cost more passes, and the sums of more leave the cache."""
_LOW = np.uint64(0xFFFFFFFF)
_SHIFT = np.uint64(32)


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


class _Cells(NamedTuple):
    """What every source gives: B sessions by as many cells as they need, 0 where there is none."""

    items: Int64[np.ndarray, "B C"]
    worth: Float64[np.ndarray, "B C"]
    source: Int64[np.ndarray, "C"]


class Lister:
    """Makes lists of K items from one view. Not thread-safe."""

    def __init__(self, view: View, weights: Float64[np.ndarray, "P S"], k: int) -> None:
        assert weights.shape == (PREFIXES, len(view.rules.sources) + 1), "the bundle was checked"
        self._view, self._k = view, k
        self._weights, self._rows = weights, weights.tolist()
        self._local = np.zeros(1024, dtype=np.int64)

    def popular(self, now_ms: int) -> Listed:
        """What is popular now, for a session of which nothing is known."""
        found = self._view.most_popular(now_ms)
        best = np.lexsort((found.item, -found.share))[: self._k]
        items, scores = found.item[best].tolist(), found.share[best].tolist()
        return Listed(items, scores, [POPULARITY] * len(items))

    def make(self, wanted: Sequence[Wanted], network: NetworkBest, n_rows: int) -> list[Listed]:
        """The lists of sessions of one item at least. n_rows: of the view."""
        lists: list[Listed] = []
        for begin in range(0, len(wanted), _AT_ONCE):
            part = wanted[begin : begin + _AT_ONCE]
            lists += self._best(self._cells(part, network), part, n_rows)
        return lists

    def _cells(self, wanted: Sequence[Wanted], network: NetworkBest) -> _Cells:
        n, first = len(wanted), len(self._view.rules.half_lives_ms) * len(DISTANCES)
        classes = [prefix_class(one.n_clicks) for one in wanted]
        weights = self._weights[classes]
        places, followed, scales = self._followed(wanted, classes)
        sizes = [len(of_item.items) for of_item in followed]
        longest = max(sizes, default=0)
        popular = self._view.most_popular(max(one.now_ms for one in wanted))
        own_places, own_items, own_worths = _own(wanted, weights[:, first + 1 : first + 3].tolist())
        widths = (
            longest * len(DISTANCES),
            len(popular.item),
            network.items.shape[1],
            max(len(one.trail) for one in wanted),
        )
        _, of_popular, of_network, of_own, width = np.cumsum((0, *widths)).tolist()
        items, worth = np.zeros((n, width), dtype=np.int64), np.zeros((n, width))
        flat_items, flat_worth = items.reshape(-1), worth.reshape(-1)
        if followed:
            starts = [row * width + step * longest for row, step in places]
            within = np.arange(sum(sizes)) - np.repeat(np.cumsum([0, *sizes[:-1]]), sizes)
            at = np.repeat(starts, sizes) + within
            flat_items[at] = np.concatenate([of_item.items for of_item in followed])
            of_rates = np.concatenate([of_item.weights for of_item in followed], axis=1)
            flat_worth[at] = (of_rates * np.repeat(np.array(scales).T, sizes, axis=1)).sum(axis=0)
        items[:, of_popular:of_network] = popular.item
        worth[:, of_popular:of_network] = weights[:, first, None] * popular.share
        known = [row for row, one in enumerate(wanted) if one.network >= 0]
        if known:
            of = [wanted[row].network for row in known]
            items[known, of_network:of_own] = network.items[of]
            worth[known, of_network:of_own] = weights[known, -1, None] * network.shares[of]
        at = np.array([row * width + of_own + place for row, place in own_places])
        flat_items[at], flat_worth[at] = own_items, own_worths
        return _Cells(items, worth, np.repeat(range(len(SOURCES)), widths))

    def _followed(
        self, wanted: Sequence[Wanted], classes: Sequence[int]
    ) -> tuple[list[tuple[int, int]], list[Successors], list[list[float]]]:
        """What came after each session's last items: their places, and what each rate counts."""
        half_lives_ms = self._view.rules.half_lives_ms
        rates, following = len(half_lives_ms), self._view.following
        places, followed, scales = [], [], []
        for row, (one, of_class) in enumerate(zip(wanted, classes, strict=True)):
            weights = self._rows[of_class]
            for step, item in enumerate(one.trail[: -len(DISTANCES) - 1 : -1]):
                found = following(item)
                if found is None:
                    continue
                places.append((row, step))
                followed.append(found)
                of_step = weights[step * rates : (step + 1) * rates]
                totals = found.denominators(half_lives_ms, one.now_ms)
                scales.append([w / total for w, total in zip(of_step, totals, strict=True)])
        return places, followed, scales

    def _best(self, cells: _Cells, wanted: Sequence[Wanted], n_rows: int) -> list[Listed]:
        """The K best items of each row of cells, by the sum of what they have there."""
        items, worth, source = cells
        n, k = len(items), min(self._k, items.shape[1])
        if n_rows > len(self._local):
            self._local = np.zeros(2 * n_rows, dtype=np.int64)
        # Numbers of the items that are there at all, so that the sums are few.
        local, flat = self._local, items.reshape(-1)
        local[flat] = 1
        excluded = [(row, item) for row, one in enumerate(wanted) for item in one.excluded]
        of_row, of_item = np.array(excluded, dtype=np.int64).reshape(-1, 2).T
        local[of_item] = 1
        there = np.flatnonzero(local[:n_rows])
        local[there] = np.arange(len(there))
        begins = len(there) * np.arange(n)
        place = (local[items] + begins[:, None]).reshape(-1)
        score = np.bincount(place, worth.reshape(-1), n * len(there))
        score[local[of_item] + begins[of_row]] = 0.0
        # An item that several sources have is looked at in one of its cells.
        slot, cell = np.empty(n * len(there), dtype=np.int64), np.arange(len(place))
        slot[place] = cell
        found = np.where(slot[place] == cell, score[place], 0.0).astype(np.float32)
        # The bits of floats above 0 are ordered as they are; below them, the item orders ties.
        bits = found.view(np.uint32).astype(np.uint64) << _SHIFT
        order = (bits | (_LOW - flat.astype(np.uint64))).reshape(n, -1)
        order = np.sort(np.partition(order, -k, axis=1)[:, -k:], axis=1)[:, ::-1]
        listed = (_LOW - (order & _LOW)).astype(np.int64)
        scores = (order >> _SHIFT).astype(np.uint32).view(np.float32)
        # What each source gave to what is listed.
        slot[place] = -1
        slot[(local[listed] + begins[:, None]).reshape(-1)] = np.arange(n * k)
        local[there] = 0
        of_listed = slot[place]
        given = np.flatnonzero(of_listed >= 0)
        by_source = np.bincount(
            of_listed[given] * len(SOURCES) + source[given % len(source)],
            worth.reshape(-1)[given],
            n * k * len(SOURCES),
        )
        best_source = by_source.reshape(n, k, len(SOURCES)).argmax(axis=2).tolist()
        n_listed = np.count_nonzero(scores, axis=1).tolist()  # those of 0 are the last
        return [
            Listed(items[:m], scores[:m], sources[:m])
            for items, scores, sources, m in zip(
                listed.tolist(), scores.tolist(), best_source, n_listed, strict=True
            )
        ]


def _own(
    wanted: Sequence[Wanted], weights: Sequence[Sequence[float]]
) -> tuple[list[tuple[int, int]], list[int], list[float]]:
    """The sessions' own items: their places, rows of the view, and what they count.

    weights: of the last item and of those before it, by session.
    """
    places, items, worths = [], [], []
    for row, (one, (of_last, of_earlier)) in enumerate(zip(wanted, weights, strict=True)):
        earlier = earlier_shares(one.trail)
        items += [one.trail[-1], *earlier]
        worths += [of_last, *(of_earlier * share for share in earlier.values())]
        places += [(row, place) for place in range(1 + len(earlier))]
    return places, items, worths
