"""Scores of different models on one scale, each row by itself, so that they can be added."""

from typing import Literal

import numpy as np
from jaxtyping import Float, Float32

from train.measure.compiled import compiled
from train.measure.lists import best_items

Transform = Literal["standardised", "root", "softmax", "share", "reciprocal-rank"]
"""standardised: mean 0 and deviation 1 over the catalogue. root: the same of the square roots,
which a few items with many votes dominate less. softmax: of log-odds, as a network gives them.
share: of all votes; both of them are probabilities. reciprocal-rank: 1 / (10 + place) in the
first 100 places, 0 after."""
FOR_VOTES: tuple[Transform, ...] = ("root", "share")
"""These need scores that are not negative."""

LIST_LENGTH = 100
RANK_OFFSET = 10.0  # Cormack's 60 is for lists of 1,000; 5 and 20 gave the same on RSC15-100k


def add_comparable(
    scores: Float[np.ndarray, "b N"],
    transform: Transform,
    weight: float,
    total: Float32[np.ndarray, "b N"],
) -> None:
    """Add `weight` times the comparable scores to `total`, row by row."""
    if transform == "reciprocal-rank":
        _add_reciprocal_ranks(scores, weight, total)
    elif transform in ("standardised", "root"):
        _add_standardised(scores, transform == "root", weight, total)
    else:
        _add_shares(scores, transform == "softmax", weight, total)


@compiled
def _add_standardised(
    scores: Float[np.ndarray, "b N"], root: bool, weight: float, total: Float32[np.ndarray, "b N"]
) -> None:
    n_rows, n_items = scores.shape
    for row in range(n_rows):
        # Around the first score, lest squares of large numbers cancel.
        around = np.sqrt(max(scores[row, 0], 0.0)) if root else scores[row, 0]
        first, second = 0.0, 0.0
        for item in range(n_items):
            score = scores[row, item]
            value = (np.sqrt(max(score, 0.0)) if root else score) - around
            first += value
            second += value * value
        mean = first / n_items
        deviation = np.sqrt(max(second / n_items - mean * mean, 0.0))
        scale = weight / deviation if deviation > 0 else 0.0
        for item in range(n_items):
            score = scores[row, item]
            value = (np.sqrt(max(score, 0.0)) if root else score) - around
            total[row, item] += scale * (value - mean)


@compiled
def _add_shares(
    scores: Float[np.ndarray, "b N"], log: bool, weight: float, total: Float32[np.ndarray, "b N"]
) -> None:
    n_rows, n_items = scores.shape
    share = np.empty(n_items, dtype=np.float32)
    for row in range(n_rows):
        highest = scores[row].max() if log else 0.0
        whole = 0.0
        for item in range(n_items):
            score = scores[row, item]
            share[item] = np.exp(score - highest) if log else score
            whole += share[item]
        scale = weight / whole if whole > 0 else 0.0
        for item in range(n_items):
            total[row, item] += scale * share[item]


@compiled
def _add_reciprocal_ranks(
    scores: Float[np.ndarray, "b N"], weight: float, total: Float32[np.ndarray, "b N"]
) -> None:
    listed = best_items(scores, LIST_LENGTH)
    for row in range(len(listed)):
        for place in range(listed.shape[1]):
            if listed[row, place] >= 0:
                total[row, listed[row, place]] += weight / (RANK_OFFSET + place + 1)
