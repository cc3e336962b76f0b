"""The view: which items follow which and which are popular, as far as the clicks are known."""

from array import array
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import NamedTuple, Protocol

import numpy as np
from jaxtyping import Float64, Int64

from stream.live.rules import (
    DISTANCES,
    LARGEST_EXPONENT,
    POPULAR,
    POPULAR_EVERY_MS,
    SHRINKAGE,
    Rules,
    growth,
)


class Candidates(NamedTuple):
    """What sources give for one session: C items with their shares, an item once per source."""

    item: Int64[np.ndarray, "C"]
    """Rows of the view."""
    source: Int64[np.ndarray, "C"]
    """Numbers of the sources, as in ``Rules.sources``; the network comes behind them."""
    share: Float64[np.ndarray, "C"]
    """Of what the source has counted: those of a source add up to 1 at most."""

    @classmethod
    def of(cls, parts: Sequence["Candidates"]) -> "Candidates":
        return cls(*(np.concatenate(of_parts) for of_parts in zip(*parts, strict=True)))


class Counted(Protocol):
    """What came after an item, as it is counted: ``Decayed`` of counts.py."""

    @property
    def places(self) -> Mapping[int, int]: ...
    @property
    def columns(self) -> Sequence[Sequence[float]]: ...
    @property
    def totals(self) -> Sequence[float]: ...
    @property
    def landmark_ms(self) -> int: ...


class Successors(NamedTuple):
    """What came after an item, as of ``landmark_ms``, still as bytes: most is asked for once.

    items: n rows of the view, int64. weights: of those n at the first rate, then at the second, and
    so on, float32. totals: R numbers, of all that was counted, dropped items too.
    """

    items: "array[int]"
    weights: bytes
    totals: Sequence[float]
    landmark_ms: int

    def denominators(self, half_lives_ms: Sequence[float], now_ms: int) -> list[float]:
        """What the weights of each rate are divided by.

        Decay is that of weights and totals alike, so that only the shrinkage sees it.
        """
        age_ms = now_ms - self.landmark_ms
        return [
            total + SHRINKAGE * growth(age_ms, half_life_ms)
            for total, half_life_ms in zip(self.totals, half_lives_ms, strict=True)
        ]


class View:
    """Counts of items, each of which is a row from 0 on."""

    def __init__(self, rules: Rules) -> None:
        self.rules = rules
        self._changed: dict[int, Counted] = {}
        self._successors: dict[int, Successors] = {}
        self._popularity = np.zeros(1024)  # as of the landmark
        self._landmark_ms: int | None = None
        self._popular: tuple[int, Candidates] | None = None

    def put(self, item: int, counts: Counted) -> None:
        """Let the item have these successors; they are read when they are first asked for."""
        self._changed[item] = counts

    def add_click(self, item: int, at_ms: int) -> None:
        """Count a click on an item as popularity."""
        grown = self._grown(at_ms)
        self._grow_to(item)
        self._popularity[item] += grown

    def clicks(self, items: Int64[np.ndarray, "n"], now_ms: int) -> Float64[np.ndarray, "n"]:
        """Decayed clicks on these items."""
        found = np.zeros(len(items))
        inside = items < len(self._popularity)
        if self._landmark_ms is not None:
            age = (now_ms - self._landmark_ms) / self.rules.popularity_half_life_ms
            found[inside] = self._popularity[items[inside]] * 2.0**-age
        return found

    def share_of(self, items: Int64[np.ndarray, "n"]) -> float:
        """Their share of all decayed clicks; 1 where none is known."""
        total = float(self._popularity.sum())
        inside = items[items < len(self._popularity)]
        return float(self._popularity[inside].sum()) / total if total else 1.0

    def candidates(self, trail: Sequence[int], now_ms: int) -> Candidates:
        """What the sources give for a session of these items, one at least, the latest last."""
        rates = len(self.rules.half_lives_ms)
        found = []
        for step, item in enumerate(reversed(trail[-len(DISTANCES) :])):
            successors = self.following(item)
            if successors is None:
                continue
            totals = successors.denominators(self.rules.half_lives_ms, now_ms)
            items = np.array(successors.items, dtype=np.int64)
            weights = np.frombuffer(successors.weights, "<f4").reshape(rates, -1).astype(float)
            found += [
                Candidates(items, np.full(len(items), step * rates + rate), of_rate / total)
                for rate, (of_rate, total) in enumerate(zip(weights, totals, strict=True))
            ]
        found.append(self.most_popular(now_ms))
        found.append(_own_items(trail, len(DISTANCES) * rates + 1))
        return Candidates.of(found)

    def _grown(self, at_ms: int) -> float:
        """What a click of then counts as of the landmark, which moves where that is too much."""
        if self._landmark_ms is None:
            self._landmark_ms = at_ms
        halvings = (at_ms - self._landmark_ms) / self.rules.popularity_half_life_ms
        if halvings > LARGEST_EXPONENT:
            self._popularity *= 2.0**-halvings
            self._landmark_ms, halvings = at_ms, 0.0
        return float(2.0**halvings)

    def _grow_to(self, item: int) -> None:
        if item >= len(self._popularity):
            self._popularity = np.pad(self._popularity, (0, max(item, len(self._popularity))))

    def most_popular(self, now_ms: int) -> Candidates:
        """The most popular items, as of a second ago at most."""
        source = len(DISTANCES) * len(self.rules.half_lives_ms)
        if self._popular is None or abs(now_ms - self._popular[0]) >= POPULAR_EVERY_MS:
            counts = self._popularity
            best = np.flatnonzero(counts)  # among many zeros a partition takes 20 times as long
            if len(best) > POPULAR:
                best = best[np.argpartition(counts[best], -POPULAR)[-POPULAR:]]
            shares = counts[best] / (counts.sum() or 1.0)
            self._popular = now_ms, Candidates(best, np.full(len(best), source), shares)
        return self._popular[1]

    def following(self, item: int) -> Successors | None:
        """What came after an item; None: nothing is known of it."""
        changed = self._changed.pop(item, None)
        if changed is not None:
            items = array("q", changed.places)
            weights = array("f", chain.from_iterable(changed.columns)).tobytes()
            totals = [*changed.totals]
            self._successors[item] = Successors(items, weights, totals, changed.landmark_ms)
        return self._successors.get(item)


def earlier_shares(trail: Sequence[int]) -> dict[int, float]:
    """The items before the last one, each with its share: by 1/age, the latest time it came."""
    if len(trail) == 1:
        return {}
    ages = dict(zip(trail, range(len(trail) - 1, -1, -1), strict=True))
    del ages[trail[-1]]
    total = sum(1.0 / age for age in ages.values())
    return {item: 1.0 / (age * total) for item, age in ages.items()}


def _own_items(trail: Sequence[int], source: int) -> Candidates:
    """The session's own items: the last, and as a second source those before it."""
    earlier = earlier_shares(trail)
    return Candidates(
        np.array([trail[-1], *earlier], dtype=np.int64),
        np.array([source, *[source + 1] * len(earlier)], dtype=np.int64),
        np.array([1.0, *earlier.values()]),
    )
