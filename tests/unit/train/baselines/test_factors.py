from collections.abc import Callable

import numpy as np
import pytest

from tests.unit.train.baselines.asking import scores_after
from tests.unit.train.building import markov_clicks
from train.baselines.factors import ALS, BPR, fit_als, fit_bpr
from train.data.clicks import split_by_time
from train.data.sessions import build_sessions
from train.measure.metrics import figures
from train.measure.ranking import Predictor, rank_targets

FACTORS = np.random.default_rng(0).normal(size=(6, 3)).astype(np.float32)


def test_als_solves_the_normal_equations_of_every_prefix() -> None:
    alpha, regularization = 5.0, 0.5
    als = ALS(FACTORS, regularization=regularization, alpha=alpha)
    prefix = [4, 1, 4, 2]
    for n_clicks, scores in enumerate(scores_after(als, prefix), start=1):
        clicks = np.bincount(prefix[:n_clicks], minlength=6)
        confidence = np.where(clicks > 0, alpha * clicks, 1.0)
        y = FACTORS.astype(np.float64)
        left = y.T @ (confidence[:, None] * y) + regularization * np.eye(3)
        session = np.linalg.solve(left, y.T @ (alpha * clicks))
        assert scores == pytest.approx(y @ session, abs=1e-5)


def test_bpr_takes_the_mean_of_the_clicked_items() -> None:
    bias = np.arange(6, dtype=np.float32)
    scores = scores_after(BPR(FACTORS, bias), [4, 1, 4])[2]
    assert scores == pytest.approx(FACTORS @ ((2 * FACTORS[4] + FACTORS[1]) / 3) + bias, abs=1e-5)


@pytest.mark.parametrize("fit", [fit_als, fit_bpr])
def test_factors_find_the_items_that_sessions_have_in_common(
    fit: Callable[..., Predictor],
) -> None:
    # A chain leads round a ring of 40 items: the next one is near those already clicked.
    older, newer = split_by_time(markov_clicks(1.0, n_sessions=400, n_items=40, seed=1), 0.1)
    train = build_sessions(older)
    test = build_sessions(newer, train.catalogue).sessions
    n_items = len(train.catalogue)
    predictor = fit(train.sessions, n_items, factors=16)
    recall = figures(rank_targets(predictor, test, n_items))["recall_at_10"]
    assert recall > 0.5  # by chance .25
