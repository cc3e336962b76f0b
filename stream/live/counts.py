"""Decayed counts: what came after an item."""

from collections.abc import Iterator, Sequence
from typing import Generic, TypeVar

import numpy as np
from jaxtyping import Float64

from stream.live.rules import BACKWARD, DISTANCES, LARGEST_EXPONENT, MAX_SUCCESSORS

K = TypeVar("K", str, int)


class Decayed(Generic[K]):
    """Weights by key, halved with every half-life that goes by, for R half-lives at once.

    Kept as of one moment, the landmark (forward decay: Cormode et al., "Forward Decay: A Practical
    Time Decay Model for Streaming Systems", ICDE 2009): a later click enters with a larger factor,
    so that nothing is touched as time goes by, and a late click counts as it would have in time.

    weights: by key, as of the landmark, one for each half-life. totals: of all that was added.
    """

    __slots__ = ("_half_lives_ms", "_landmark_ms", "totals", "weights")

    def __init__(self, half_lives_ms: Sequence[float], landmark_ms: int) -> None:
        self._half_lives_ms = half_lives_ms
        self._landmark_ms = landmark_ms
        self.weights: dict[K, list[float]] = {}
        self.totals = [0.0] * len(half_lives_ms)

    def add(self, key: K, weight: float, at_ms: int) -> None:
        """Count a click at a time, by the clock of the clicks."""
        age_ms = at_ms - self._landmark_ms
        if age_ms > LARGEST_EXPONENT * min(self._half_lives_ms):
            self._move_landmark(at_ms)
            age_ms = 0
        of_key = self.weights.get(key)
        if of_key is None:
            if len(self.weights) >= MAX_SUCCESSORS:
                self._drop_least()
            of_key = self.weights[key] = [0.0] * len(self.totals)
        for rate, half_life_ms in enumerate(self._half_lives_ms):
            grown: float = weight * 2.0 ** (age_ms / half_life_ms)
            of_key[rate] += grown
            self.totals[rate] += grown

    def factors(self, now_ms: int) -> Float64[np.ndarray, "R"]:
        """What weights and totals are multiplied by to be those of now."""
        age_ms = now_ms - self._landmark_ms
        return np.array([2.0 ** (-age_ms / half_life) for half_life in self._half_lives_ms])

    def _move_landmark(self, to_ms: int) -> None:
        factors = self.factors(to_ms).tolist()
        self._landmark_ms = to_ms
        self.totals = [w * f for w, f in zip(self.totals, factors, strict=True)]
        self.weights = {
            key: [w * f for w, f in zip(of_key, factors, strict=True)]
            for key, of_key in self.weights.items()
        }

    def _drop_least(self) -> None:
        """Drop a quarter of the keys, by their weight at the longest half-life; totals keep it."""
        best_first = sorted(self.weights, key=lambda key: self.weights[key][-1], reverse=True)
        self.weights = {key: self.weights[key] for key in best_first[: MAX_SUCCESSORS * 3 // 4]}


def transitions(trail: Sequence[K], item: K) -> Iterator[tuple[K, K, float]]:
    """What a click on an item teaches after these, the latest last: (from, to, weight).

    A step from an item to itself teaches nothing about others.
    """
    for former, weight in zip(reversed(trail), DISTANCES, strict=False):
        if former != item:
            yield former, item, weight
            yield item, former, BACKWARD * weight
