"""By what rules clicks are counted and forgotten."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Float64

DISTANCES = (1.0, 0.5, 0.25)
"""What a click counts as a successor of the last item, of the one before it, and so on."""
BACKWARD = 0.1
"""What it counts the other way round, as a share of that."""
SHRINKAGE = 0.1
"""Added to an item's total: what was seen once is no certainty."""
MAX_SUCCESSORS = 100
"""An item's least successors are dropped beyond so many; 400 are worth no more on a news site."""
POPULAR = 100
"""So many popular items are candidates of every list."""
POPULAR_EVERY_MS = 1_000
NETWORK_BEST = 40
"""So many of the network's best are candidates of every list. On a news site 100 or 20 made them as
good, and 40 cost a third of what 100 cost more than 20."""
CLICKS_FLOOR = 0.05
"""Added to an item's clicks before the logarithm is taken."""
LARGEST_EXPONENT = 90.0
"""Of 2, until counts are moved to a later landmark: a float32 ends at 128."""
FORGET_BELOW = 0.05
"""An item is forgotten when neither its clicks nor its successors weigh so much."""
VIEW_EVERY_MS = 1_000
"""An item's counts are published once in so long of the log's time,"""
VIEW_BURST = 5
"""but so many changes at once before that: the last one of an item that is seldom clicked is not
followed by another that would publish it."""
PREFIXES = 5
"""Sessions of one click, two, three, four, and five or more are answered with different weights."""

SOURCES = ("transitions", "popularity", "network", "session")
"""What a list says of where an item came from: the one that gave most of its score."""


def growth(age_ms: float, half_life_ms: float) -> float:
    """By how much a click that is so old weighs less than one of now; 2^1000 at most."""
    return float(2.0 ** min(age_ms / half_life_ms, 1000.0))


def bias_of(clicks: Float64[np.ndarray, "N"], bias: float) -> Float64[np.ndarray, "N"]:
    """What is added to a network's scores: the logarithm of its items' decayed clicks."""
    return np.asarray(bias * np.log(clicks + CLICKS_FLOOR))


def prefix_class(n_clicks: int) -> int:
    """Which weights answer a session of so many clicks."""
    return min(n_clicks, PREFIXES) - 1


@dataclass(frozen=True)
class Rules:
    """How counts decay, and which items are listed at all."""

    time_scale_ms: int
    """How fast a log's habits change: transitions are counted with this half-life and with eight
    times as much."""
    popularity_half_life_ms: int
    """Of an item's clicks. What is popular may pass faster than what follows what: on RSC15-100k
    24 minutes to three hours beside 16 days."""
    excludes_seen: bool
    """Whether items of the session are in no list."""

    @cached_property
    def half_lives_ms(self) -> tuple[float, ...]:
        """Of the transitions: R rates."""
        return (float(self.time_scale_ms), 8.0 * self.time_scale_ms)

    @cached_property
    def longest_half_life_ms(self) -> float:
        return max(self.half_lives_ms)

    @cached_property
    def sources(self) -> tuple[str, ...]:
        """Names of the V sources of a view, in the order of their numbers."""
        steps = range(1, len(DISTANCES) + 1)
        rates = range(1, len(self.half_lives_ms) + 1)
        transitions = (f"transitions-{step}-{rate}" for step in steps for rate in rates)
        return (*transitions, "popularity", "last", "earlier")
