"""Several predictors as one: what each makes of an item, weighted and added.

A part's row of scores is first made comparable: per score, or per list by the
reciprocal rank (Cormack et al., SIGIR 2009). The weights are fitted by `fit.py`.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Float, Float32
from pydantic import Field, model_validator

from stream.live.compiled import compiled
from train.command import Settings, TrainError, load_json
from train.measure.ranking import Predictor, SessionBatch, best_items

Transform = Literal["standardised", "root", "softmax", "share", "reciprocal-rank"]
"""standardised: mean 0 and deviation 1 over the catalogue. root: the same of the square roots,
which a few items with many votes dominate less. softmax: of log-odds, as a network gives them.
share: of all votes; both of them are probabilities. reciprocal-rank: 1 / (10 + place) in the
first 100 places, 0 after."""
FOR_VOTES: tuple[Transform, ...] = ("root", "share")
"""These need scores that are not negative."""

LIST_LENGTH = 100
RANK_OFFSET = 10.0  # Cormack's 60 is for lists of 1,000; 5 and 20 gave the same on RSC15-100k
N_LENGTHS = 4
"""Prefixes of 1, 2, 3, and 4 or more clicks have weights of their own: which part is best depends
on how many clicks it has seen."""


class BlendWeights(Settings):
    """What is kept of a blend: its parts stay where they are."""

    format: Literal[1] = 1
    parts: tuple[str, ...] = Field(min_length=1)
    """Names of the predictors. The weights suit only those they were fitted on, and a name does not
    say which: fit them again after another training."""
    transforms: tuple[Transform, ...]
    """How each one's scores are made comparable."""
    weights: tuple[tuple[float, ...], ...] = Field(min_length=N_LENGTHS, max_length=N_LENGTHS)
    """One row for prefixes of 1, 2, 3, and 4 or more clicks; a weight for each part."""

    @model_validator(mode="after")
    def _fit_together(self) -> "BlendWeights":
        widths = {len(self.transforms), *(len(row) for row in self.weights)}
        if widths != {len(self.parts)}:
            raise ValueError(
                f"{len(self.parts)} parts, but transforms and weights for {sorted(widths)}"
            )
        return self


@dataclass(frozen=True, slots=True)
class Blend:
    """The weighted sum of its parts, by the number of known clicks."""

    predictors: Mapping[str, Predictor]
    """The parts, and possibly others that `weights` does not name."""
    weights: BlendWeights

    def predict(self, batch: SessionBatch) -> Iterator[Float[np.ndarray, "b N"]]:
        """The sum for each of `batch.steps()`; the array is the same in every step. A part of
        weight 0 for a length is still asked: it carries its state from step to step."""
        parts = [self.predictors[name].predict(batch) for name in self.weights.parts]
        total = np.empty((0, 0), dtype=np.float32)
        for prefix, *scores in zip(batch.steps(), *parts, strict=True):
            if not total.size:
                total = np.empty(scores[0].shape, dtype=np.float32)
            b, n_clicks = prefix.shape
            total[:b] = 0.0
            row = self.weights.weights[min(n_clicks, N_LENGTHS) - 1]
            for part, transform, weight in zip(scores, self.weights.transforms, row, strict=True):
                if weight > 0:
                    add_comparable(part, transform, weight, total[:b])
            yield total[:b]

    def write(self, path: Path) -> None:
        """Keep transforms and weights as JSON."""
        path.write_text(self.weights.model_dump_json(indent=1) + "\n", encoding="utf-8")


def load_weights(path: Path) -> BlendWeights:
    """What `Blend.write` wrote. Raises TrainError for a file that is missing or holds no blend."""
    return load_json(BlendWeights, path, " is not a blend")


def load_blend(path: Path, predictors: Mapping[str, Predictor]) -> Blend:
    """The blend of a file that `Blend.write` wrote, over these parts. Raises TrainError as
    `load_weights` does, and where a part of the file is not among them."""
    weights = load_weights(path)
    missing = [name for name in weights.parts if name not in predictors]
    if missing:
        raise TrainError(
            f"{path} blends {', '.join(weights.parts)}, but the given models "
            f"({', '.join(predictors)}) do not include {', '.join(missing)}"
        )
    return Blend(predictors, weights)


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
