"""Matrix factorisation: sessions as users, and a prefix folded in as a user of its own.

The `implicit` library trains the item factors: alternating least squares (Hu, Koren, Volinsky,
ICDM 2008) and BPR (Rendle et al., arXiv 1205.2618). What it learns of the training sessions is
dropped: an anonymous session has no row.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import scipy.sparse  # type: ignore[import-untyped]  # its stubs are a package of their own
from implicit.als import AlternatingLeastSquares  # type: ignore[import-untyped]  # has no types
from implicit.bpr import BayesianPersonalizedRanking  # type: ignore[import-untyped]  # the same
from jaxtyping import Float, Float32
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]  # the same

from train.data.sessions import Sessions
from train.measure.ranking import SessionBatch


@dataclass(frozen=True, slots=True)
class ALS:
    """The least-squares factors of a prefix, against every item's."""

    item_factors: Float32[np.ndarray, "N D"]
    regularization: float
    alpha: float
    """Confidence in one click; in an item not clicked it is 1."""

    def predict(self, batch: SessionBatch) -> Iterator[Float[np.ndarray, "b N"]]:
        """Scores by the exact solution of each prefix's normal equations (Hu et al., equation 4).

        A click adds one outer product to them, so their inverse is carried from step to step
        (Sherman & Morrison) instead of solved anew.
        """
        factors = self.item_factors.astype(np.float64)
        gram = factors.T @ factors + self.regularization * np.eye(factors.shape[1])
        inverse = np.tile(np.linalg.inv(gram), (len(batch.lengths), 1, 1))
        wanted = np.zeros((len(batch.lengths), factors.shape[1]))
        for prefix in batch.steps():
            b, last = len(prefix), prefix[:, -1]
            clicked = factors[last]
            # An item's first click also takes away the confidence of an item not clicked.
            first = (prefix[:, :-1] != last[:, None]).all(axis=1)
            gain = self.alpha - first
            step = np.einsum("bij,bj->bi", inverse[:b], clicked)
            gain /= 1.0 + gain * np.einsum("bi,bi->b", clicked, step)
            inverse[:b] -= gain[:, None, None] * step[:, :, None] * step[:, None, :]
            wanted[:b] += self.alpha * clicked
            session = np.einsum("bij,bj->bi", inverse[:b], wanted[:b])
            yield session.astype(np.float32) @ self.item_factors.T


@dataclass(frozen=True, slots=True)
class BPR:
    """The mean of the clicked items' factors, against every item's and its bias."""

    item_factors: Float32[np.ndarray, "N D"]
    item_bias: Float32[np.ndarray, "N"]

    def predict(self, batch: SessionBatch) -> Iterator[Float[np.ndarray, "b N"]]:
        """BPR learns a session's factors by many steps; the mean of its items stands in."""
        total = np.zeros((len(batch.lengths), self.item_factors.shape[1]), dtype=np.float32)
        for prefix in batch.steps():
            b, n_clicks = prefix.shape
            total[:b] += self.item_factors[prefix[:, -1]]
            yield (total[:b] / n_clicks) @ self.item_factors.T + self.item_bias


def fit_als(
    sessions: Sessions,
    n_items: int,
    *,
    factors: int = 128,
    regularization: float = 1.0,
    alpha: float = 20.0,
    iterations: int = 10,
) -> ALS:
    """ALS over the clicks of the training sessions, an item's clicks in one session added up."""
    own = {"factors": factors, "regularization": regularization, "alpha": alpha}
    kind = partial(AlternatingLeastSquares, iterations=iterations, **own)
    return ALS(_item_factors(kind, sessions, n_items), regularization, alpha)


def fit_bpr(
    sessions: Sessions,
    n_items: int,
    *,
    factors: int = 128,
    learning_rate: float = 0.05,
    regularization: float = 0.01,
    iterations: int = 100,
) -> BPR:
    """BPR over the clicks of the training sessions, an item counting once in a session."""
    own = {"factors": factors, "regularization": regularization, "learning_rate": learning_rate}
    kind = partial(BayesianPersonalizedRanking, iterations=iterations, **own)
    found = _item_factors(kind, sessions, n_items)
    # implicit keeps the bias as the last factor, which is 1 for every user.
    return BPR(found[:, :-1].copy(), found[:, -1].copy())


def _item_factors(
    kind: Callable[..., Any], sessions: Sessions, n_items: int
) -> Float32[np.ndarray, "N D"]:
    session = np.repeat(np.arange(len(sessions)), sessions.lengths)
    ones = np.ones(sessions.n_clicks, dtype=np.float32)
    clicks = scipy.sparse.csr_matrix(
        (ones, (session, sessions.item_index)), shape=(len(sessions), n_items)
    )
    with threadpool_limits(1, "blas"):  # implicit warns of BLAS threads next to its own
        model = kind(num_threads=1, random_state=0)
        model.fit(clicks, show_progress=False)
    return np.asarray(model.item_factors)
