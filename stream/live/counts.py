"""Decayed counts: how often an item was clicked, and what came after it."""

from array import array
from collections.abc import Iterator, Sequence
from itertools import chain
from math import log2
from typing import Generic, Self, TypeVar

import numpy as np
from jaxtyping import Float64

from stream.contract.items import ITEM_FORMAT, ItemHead, ItemRecord
from stream.live.rules import (
    BACKWARD,
    DISTANCES,
    FORGET_BELOW,
    LARGEST_EXPONENT,
    MAX_SUCCESSORS,
    VIEW_BURST,
    VIEW_EVERY_MS,
    Rules,
)

K = TypeVar("K", str, int)


class Decayed(Generic[K]):
    """Weights by key, halved with every half-life that goes by, for R half-lives at once.

    Kept as of one moment, the landmark (forward decay: Cormode et al., "Forward Decay: A Practical
    Time Decay Model for Streaming Systems", ICDE 2009): a later click enters with a larger factor,
    so that nothing is touched as time goes by, and a late click counts as it would have in time.

    places: of each key in the columns. columns: for each half-life the weights as of the landmark.
    totals: of all that was added.
    """

    __slots__ = ("_half_lives_ms", "columns", "landmark_ms", "places", "totals")

    def __init__(self, half_lives_ms: Sequence[float], landmark_ms: int) -> None:
        self._half_lives_ms = half_lives_ms
        self.landmark_ms = landmark_ms
        self.places: dict[K, int] = {}
        self.columns: list[list[float]] = [[] for _ in half_lives_ms]
        self.totals = [0.0] * len(half_lives_ms)

    def add(self, key: K, weight: float, at_ms: int) -> None:
        """Count a click at a time, by the clock of the clicks."""
        age_ms = at_ms - self.landmark_ms
        if age_ms > LARGEST_EXPONENT * min(self._half_lives_ms):
            self.move_landmark(at_ms)
            age_ms = 0
        place = self.places.get(key)
        if place is None:
            if len(self.places) >= MAX_SUCCESSORS:
                self._drop_least()
            place = self.places[key] = len(self.places)
            for column in self.columns:
                column.append(0.0)
        for rate, half_life_ms in enumerate(self._half_lives_ms):
            grown: float = weight * 2.0 ** (age_ms / half_life_ms)
            self.columns[rate][place] += grown
            self.totals[rate] += grown

    @property
    def weights(self) -> dict[K, list[float]]:
        """The same by key: one for each half-life."""
        return dict(zip(self.places, map(list, zip(*self.columns, strict=True)), strict=True))

    def factors(self, now_ms: int) -> Float64[np.ndarray, "R"]:
        """What weights and totals are multiplied by to be those of now."""
        age_ms = now_ms - self.landmark_ms
        return np.array([2.0 ** (-age_ms / half_life) for half_life in self._half_lives_ms])

    def move_landmark(self, to_ms: int) -> None:
        """Keep weights and totals as of another time."""
        factors = self.factors(to_ms).tolist()
        self.landmark_ms = to_ms
        self.totals = [w * f for w, f in zip(self.totals, factors, strict=True)]
        self.columns = [[w * f for w in c] for c, f in zip(self.columns, factors, strict=True)]

    def _drop_least(self) -> None:
        """Drop a quarter of the keys, by their weight at the longest half-life; totals keep it."""
        longest = self.columns[-1]
        best_first = sorted(self.places.items(), key=lambda item: longest[item[1]], reverse=True)
        kept = best_first[: MAX_SUCCESSORS * 3 // 4]
        self.columns = [[column[place] for _, place in kept] for column in self.columns]
        self.places = {key: n for n, (key, _) in enumerate(kept)}


CLICKED = 0
"""The step of a click on the item itself."""
_STEP_WEIGHTS = {step: weight for step, weight in enumerate(DISTANCES, start=1)} | {
    -step: BACKWARD * weight for step, weight in enumerate(DISTANCES, start=1)
}


def steps(trail: Sequence[K], item: K) -> Iterator[tuple[K, K, int]]:
    """What a click on an item teaches after these, the latest last: (from, to, step).

    A step says how many clicks later ``to`` came; below 0, earlier. A step from an item to itself
    teaches nothing about others.
    """
    for step, former in zip(range(1, len(DISTANCES) + 1), reversed(trail), strict=False):
        if former != item:
            yield former, item, step
            yield item, former, -step


def transitions(trail: Sequence[K], item: K) -> Iterator[tuple[K, K, float]]:
    """The same with what each step weighs."""
    for former, successor, step in steps(trail, item):
        yield former, successor, _STEP_WEIGHTS[step]


class ItemCounts:
    """What is known of one item. For the meaning of each number see ``ItemHead``."""

    __slots__ = ("_rules", "as_of_ms", "clicks", "n_counted", "publish_from_ms", "successors")

    def __init__(self, rules: Rules, at_ms: int) -> None:
        self._rules = rules
        self.successors: Decayed[str] = Decayed(rules.half_lives_ms, at_ms)
        self.clicks = 0.0
        self.as_of_ms = at_ms
        self.publish_from_ms = at_ms
        self.n_counted = 0

    def count(self, other: str, step: int, at_ms: int) -> None:
        """Count an event: a step to or from another item, or a click on this one."""
        self.n_counted += 1
        halvings = (at_ms - self.as_of_ms) / self._rules.popularity_half_life_ms
        if halvings > 0:
            self.clicks *= 2.0**-halvings
            self.as_of_ms, halvings = at_ms, 0.0
        if step == CLICKED:
            self.clicks += 2.0**halvings
        else:
            self.successors.add(other, _STEP_WEIGHTS[step], at_ms)

    def is_due(self) -> bool:
        """Whether what has changed is to be published now; counts it as published if so."""
        due = self.as_of_ms >= self.publish_from_ms - VIEW_BURST * VIEW_EVERY_MS
        if due:
            self.publish_from_ms = max(self.publish_from_ms, self.as_of_ms) + VIEW_EVERY_MS
        return due

    @property
    def forget_at_ms(self) -> int:
        """When what is left falls below ``FORGET_BELOW``."""
        rules, left_ms = self._rules, 0.0
        if (clicks := self.clicks / FORGET_BELOW) > 1.0:
            left_ms = log2(clicks) * rules.popularity_half_life_ms
        if (total := self.successors.totals[-1] / FORGET_BELOW) > 0.0:
            age_ms = self.as_of_ms - self.successors.landmark_ms
            left_ms = max(left_ms, log2(total) * rules.longest_half_life_ms - age_ms)
        return self.as_of_ms + round(left_ms)

    def encode(self) -> bytes:
        """Return the bytes of the item's record; weights lose what float32 does not hold.

        They are as of one half-life ago at most: those as of long ago are huge, and whoever counts
        or reads with another time scale, after a change of bundle, would have them for ever.
        """
        if self.as_of_ms - self.successors.landmark_ms > self._rules.time_scale_ms:
            self.successors.move_landmark(self.as_of_ms)
        head = ItemHead(
            ITEM_FORMAT,
            self.forget_at_ms,
            self.publish_from_ms,
            self.as_of_ms,
            self.successors.landmark_ms,
            self.n_counted,
            self.clicks,
        )
        return ItemRecord(
            head,
            self.successors.totals,
            [*self.successors.places],
            array("f", chain.from_iterable(self.successors.columns)).tobytes(),
        ).encode()

    @classmethod
    def decode(cls, rules: Rules, raw: bytes) -> Self:
        """Return the counts of a record's bytes. Raises ValueError where they are none."""
        record = ItemRecord.decode(raw)
        head = record.head
        counts = cls(rules, head.as_of_ms)
        counts.publish_from_ms = head.publish_from_ms
        counts.n_counted, counts.clicks = head.n_counted, head.clicks
        successors = counts.successors
        if len(record.totals) != len(successors.totals):
            raise ValueError(
                f"not the counts of an item: {len(record.totals)} half-lives, expected "
                f"{len(successors.totals)}"
            )
        successors.landmark_ms, successors.totals = head.landmark_ms, record.totals
        n, weights = len(record.successor), array("f", record.weights).tolist()
        successors.columns = [
            weights[rate * n : (rate + 1) * n] for rate in range(len(record.totals))
        ]
        successors.places = dict(zip(record.successor, range(n), strict=True))
        return counts
