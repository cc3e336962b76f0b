"""Which items a training step is scored on besides its targets.

Extra negatives are drawn with probability proportional to support^alpha (Hidasi & Karatzoglou,
arXiv 1706.03847, "additional samples"), by the inverse of the cumulative distribution: one binary
search a draw, no rejection. The targets of a batch are each other's negatives.
"""

from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Bool, Float64, Int64

from train.network.kernels import number_items

# Drawn at once; the cost of a call to the generator and to searchsorted is spread over many steps.
_DRAWS = 131_072


class NegativeSampler:
    """Draws items with probability proportional to support^alpha. alpha 0 draws every item alike, 1
    by its clicks. Items without support are never drawn."""

    def __init__(self, support: Int64[np.ndarray, "N"], alpha: float) -> None:
        weight = np.where(support > 0, np.maximum(support, 1.0) ** alpha, 0.0)
        self._cumulative = np.cumsum(weight)
        self.probability = weight / self._cumulative[-1]
        self._support_share = support / support.sum()

    def blocks(
        self, n_negatives: int, rng: np.random.Generator
    ) -> Iterator[Int64[np.ndarray, "S"]]:
        """`n_negatives` items for each step, without end; an item can come twice."""
        n_steps = max(1, _DRAWS // max(1, n_negatives))
        while True:
            yield from self.draw(n_steps * n_negatives, rng).reshape(n_steps, n_negatives)

    def draw(self, n: int, rng: np.random.Generator) -> Int64[np.ndarray, "S"]:
        """n items, independent of each other."""
        point = rng.random(n) * self._cumulative[-1]
        # "right": a point on a step's edge belongs to the step above it, so that a weight of 0,
        # whose step has no width, is never hit.
        return np.asarray(np.searchsorted(self._cumulative, point, side="right"), dtype=np.int64)

    def log_inclusion(self, n_negatives: int, batch_size: int) -> Float64[np.ndarray, "N"]:
        """Log of each item's chance to be among a step's candidates.

        Drawn at least once in `n_negatives` draws, or a target of one of `batch_size` sessions,
        taken as draws by support. This is the log_q of `losses.cross_entropy`.
        """
        # An item's share can be 1 in a log of one item; log1p(-1) would be -inf, and rightly so,
        # but numpy warns: the clip changes the chance by less than 1e-9.
        missed = n_negatives * np.log1p(-np.minimum(self.probability, 1 - 1e-9))
        missed = missed + batch_size * np.log1p(-np.minimum(self._support_share, 1 - 1e-9))
        chance = -np.expm1(missed)
        return np.asarray(np.log(np.maximum(chance, np.finfo(np.float64).tiny)))


def own_targets(
    lanes: Sequence[int], target: Int64[np.ndarray, "B"]
) -> tuple[Int64[np.ndarray, "P"], Int64[np.ndarray, "P"]]:
    """The targets that a session has elsewhere in a step of several clicks, no negatives of it.

    `target` stands click after click, each of as many lanes as `lanes` says. Returns rows, and the
    targets of the same lane that are not the row's own. What a session clicks next but one is
    likely, and nothing in the sampling makes up for calling it wrong: with 4 clicks a step
    Recall@20 on foursquare-nyc's validation is .638 without such negatives and .616 with them.
    """
    lane = np.concatenate([np.arange(n) for n in lanes])
    same = (lane[:, None] == lane) & (target[:, None] != target)
    row, other = np.nonzero(same)
    return row, target[other]


def has_negative(
    target: Int64[np.ndarray, "B"],
    row: Int64[np.ndarray, "P"],
    own: Int64[np.ndarray, "P"],
    n_candidates: int,
) -> Bool[np.ndarray, "B"]:
    """Rows with a candidate that is neither the row's target nor one of its `own_targets`."""
    is_negative = np.ones((len(target), n_candidates), dtype=bool)
    is_negative[np.arange(len(target)), target] = False
    is_negative[row, own] = False
    return np.asarray(is_negative.any(axis=1))


class RowNumbers:
    """Numbers the distinct items of a step 0, 1, 2, ... in the order they come, without sorting. A
    table of N marks makes the cost of a step that of its own items, whatever N is."""

    def __init__(self, n_items: int) -> None:
        self._mark = np.full(n_items, -1, dtype=np.int64)

    def number(
        self, item_index: Int64[np.ndarray, "C"]
    ) -> tuple[Int64[np.ndarray, "U"], Int64[np.ndarray, "C"]]:
        """The distinct items, and for each given item its place among them."""
        distinct, place = np.empty_like(item_index), np.empty_like(item_index)
        n_distinct = number_items(item_index, self._mark, distinct, place)
        return distinct[:n_distinct], place
