"""Several predictors as one: what each makes of an item, weighted and added.

A part's row of scores is first made comparable (`comparable.py`): per score, or per list by the
reciprocal rank (Cormack et al., SIGIR 2009). The weights are fitted by `fit.py`.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Float
from pydantic import Field, ValidationError, model_validator

from train.blend.comparable import Transform, add_comparable
from train.command import Settings, TrainError
from train.measure.ranking import Predictor, SessionBatch

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
        """The sum for each of `batch.steps()`; the array is the same in every step.

        A part of weight 0 for a length is still asked: it carries its state from step to step.
        """
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
    try:
        return BlendWeights.model_validate_json(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise TrainError(f"{path} cannot be read: {reason}") from error
    except ValidationError as error:
        problem = error.errors()[0]
        where = ".".join(str(part) for part in problem["loc"])
        raise TrainError(f"{path} is not a blend: {where} {problem['msg']}".strip()) from error


def load_blend(path: Path, predictors: Mapping[str, Predictor]) -> Blend:
    """The blend of a file that `Blend.write` wrote, over these parts.

    Raises TrainError as `load_weights` does, and where a part of the file is not among them.
    """
    weights = load_weights(path)
    missing = [name for name in weights.parts if name not in predictors]
    if missing:
        raise TrainError(
            f"{path} blends {', '.join(weights.parts)}: found no {', '.join(missing)} among "
            f"{', '.join(predictors)}"
        )
    return Blend(predictors, weights)
