"""Lists as they are served: the blend of all sources, cut to the K best.

What ``blend`` says, in fewer passes: a list is made for every click.
"""

from collections.abc import Sequence
from typing import NamedTuple

import msgspec
import numpy as np
from jaxtyping import Float64, Int64

from stream.live.rules import DISTANCES, PREFIXES, prefix_class
from stream.live.view import View, repeats

SOURCES = ("transitions", "popularity", "session", "network")
"""What a list says of where an item came from: the one that gave most of its score."""
_TRANSITIONS, POPULARITY, _SESSION, _NETWORK = range(len(SOURCES))


class NetworkBest(NamedTuple):
    """What a network lists of one session: K' items as rows of the view, with their shares."""

    items: Int64[np.ndarray, "C"]
    shares: Float64[np.ndarray, "C"]


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
    """Makes lists of K items from one view. Not thread-safe."""

    def __init__(self, view: View, weights: Float64[np.ndarray, "C S"], k: int) -> None:
        self._view = view
        self._weights: list[list[float]] = weights.tolist()
        self._k = k
        self._rates = len(view.rules.half_lives_ms)
        self._score = np.zeros(1024)
        self._place = np.zeros(1024, dtype=np.int64)
        assert len(self._weights) == PREFIXES, "a row for each class of prefix"

    def popular(self, now_ms: int) -> Listed:
        """What is popular now, for a session of which nothing is known."""
        found = self._view.most_popular(now_ms)
        best = np.lexsort((found.item, -found.share))[: self._k]
        items, scores = found.item[best].tolist(), found.share[best].tolist()
        return Listed(items, scores, [POPULARITY] * len(items))

    def make(
        self,
        trail: Sequence[int],
        n_clicks: int,
        now_ms: int,
        network: NetworkBest | None,
        n_rows: int,
    ) -> Listed:
        """The list of a session of these items, one at least, the latest last.

        n_clicks: of the session, of which the trail may be the last ones. n_rows: of the view.
        """
        view, rates = self._view, self._rates
        weights = self._weights[prefix_class(n_clicks)]
        parts: list[tuple[int, np.ndarray, np.ndarray]] = []
        for step, item in enumerate(reversed(trail[-len(DISTANCES) :])):
            successors = view.following(item)
            if successors is None:
                continue
            of_step = np.array(weights[step * rates : (step + 1) * rates])
            scale = of_step / view.denominators(successors, now_ms)
            parts.append((_TRANSITIONS, successors.items, scale @ successors.weights))
        first = rates * len(DISTANCES)
        popular = view.most_popular(now_ms)
        parts.append((POPULARITY, popular.item, weights[first] * popular.share))
        own = repeats(trail, first + 1)
        parts.append((_SESSION, own.item, np.take(weights, own.source) * own.share))
        if network is not None and weights[-1]:
            parts.append((_NETWORK, network.items, weights[-1] * network.shares))
        return self._best(parts, trail if view.rules.excludes_seen else (), n_rows)

    def _best(
        self,
        parts: Sequence[tuple[int, np.ndarray, np.ndarray]],
        excluded: Sequence[int],
        n_rows: int,
    ) -> Listed:
        if n_rows > len(self._score):
            self._score = np.zeros(2 * n_rows)
            self._place = np.zeros(2 * n_rows, dtype=np.int64)
        score, place, k = self._score, self._place, self._k
        sources, items, worths = zip(*parts, strict=True)
        for of_part, worth in zip(items, worths, strict=True):
            score[of_part] += worth  # an item is there once
        if excluded:
            score[list(excluded)] = 0.0
        candidates = np.concatenate(items)
        found = score[candidates]
        # An item has as many places here as sources have it.
        n_best = min(len(candidates), k * len(parts))
        best = np.argpartition(found, len(candidates) - n_best)[-n_best:]
        order = best[np.lexsort((candidates[best], -found[best]))]
        listed = [*dict.fromkeys(candidates[order].tolist())][:k]
        scores = score[listed].tolist()
        n_listed = len(scores) - scores.count(0.0)  # those of 0 are the last
        score[candidates] = 0.0
        place[listed] = range(1, len(listed) + 1)
        source = np.repeat(sources, [len(of_part) for of_part in items])
        of_place = np.bincount(
            place[candidates] * len(SOURCES) + source,
            weights=np.concatenate(worths),
            minlength=(len(listed) + 1) * len(SOURCES),
        ).reshape(-1, len(SOURCES))
        place[listed] = 0
        best_source = of_place[1:].argmax(axis=1).tolist()
        return Listed(listed[:n_listed], scores[:n_listed], best_source[:n_listed])
