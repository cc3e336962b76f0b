"""Lists without the items already clicked, for logs without repeats."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from train.measure.ranking import Predictor, SessionBatch


@dataclass(frozen=True, slots=True)
class NovelOnly:
    """A predictor's scores, with the items already clicked lowered to the lowest of all.

    Neighbours, factors and attributes put those items first. Where a log's publisher has removed
    repeats that wastes the first places; wherever there are some, it costs every one of them.
    """

    predictor: Predictor

    def predict(self, batch: SessionBatch) -> Iterator[Float[np.ndarray, "b N"]]:
        """The scores, known items at the row's lowest; every step reuses the array."""
        scores = np.empty((0, 0))
        for prefix, plain in zip(batch.steps(), self.predictor.predict(batch), strict=True):
            b = len(prefix)
            if not scores.size:
                scores = np.empty(plain.shape, dtype=plain.dtype)
            np.copyto(scores[:b], plain)
            scores[np.arange(b)[:, None], prefix] = plain.min(axis=1, keepdims=True)
            yield scores[:b]
