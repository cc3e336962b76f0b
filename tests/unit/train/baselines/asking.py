"""What a predictor makes of one session."""

import numpy as np
from jaxtyping import Float

from tests.unit.train.building import batch_of
from train.measure.ranking import Predictor


def scores_after(predictor: Predictor, session: list[int]) -> list[Float[np.ndarray, "N"]]:
    """The scores after each click; a last click is made up, as nothing is asked after it."""
    batch = batch_of([[*session, 0]])
    return [np.array(scores[0], dtype=np.float64) for scores in predictor.predict(batch)]


def best_first(predictor: Predictor, session: list[int]) -> list[list[int]]:
    """The list after each click."""
    return [
        np.argsort(-scores, kind="stable").tolist() for scores in scores_after(predictor, session)
    ]
