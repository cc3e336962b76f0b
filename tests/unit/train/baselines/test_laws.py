"""What holds for every baseline."""

from functools import cache

import numpy as np
import pytest

from tests.unit.train.baselines.asking import scores_after
from tests.unit.train.building import batch_of, markov_clicks
from train.baselines.factors import fit_als, fit_bpr
from train.baselines.named import build_baselines
from train.baselines.neighbours import stan, vmis_knn
from train.baselines.rules import (
    association_rules,
    decayed_transitions,
    item_knn,
    sequential_rules,
)
from train.data.clicks import split_by_time
from train.data.sessions import Catalogue, Sessions, build_sessions
from train.measure.metrics import figures
from train.measure.ranking import Predictor, rank_targets

N_ITEMS = 40
LEARNS_ORDER = ("markov", "decayed-markov", "sequential-rules")
LEARNS_COMPANY = ("association-rules", "item-knn", "vmis-knn", "stan")


@cache
def log(predictability: float) -> tuple[Sessions, Sessions, Catalogue]:
    older, newer = split_by_time(markov_clicks(predictability, 600, N_ITEMS, seed=3), 0.2)
    train = build_sessions(older)
    return train.sessions, build_sessions(newer, train.catalogue).sessions, train.catalogue


@cache
def every_baseline(predictability: float) -> dict[str, Predictor]:
    sessions, _, catalogue = log(predictability)
    n = len(catalogue)
    return {
        **build_baselines(sessions, n),
        "decayed-markov": decayed_transitions(
            sessions, n, half_life_s=1e4, popularity_half_life_s=1e4, popularity_weight=0.1
        ),
        "association-rules": association_rules(sessions, n),
        "sequential-rules": sequential_rules(sessions, n),
        "item-knn": item_knn(sessions, n),
        "vmis-knn": vmis_knn(sessions, n),
        "stan": stan(sessions, n),
        "als": fit_als(sessions, n, factors=8),
        "bpr": fit_bpr(sessions, n, factors=8, iterations=10),
    }


@pytest.mark.parametrize("name", list(every_baseline(0.9)))
def test_every_row_of_a_batch_gets_the_scores_of_its_own_prefix(name: str) -> None:
    predictor = every_baseline(0.9)[name]
    sessions = [[0, 1, 3, 1, 3], [2, 0, 0], [3, 3], [9, 9]]
    together = [np.array(scores) for scores in predictor.predict(batch_of(sessions))]
    assert [len(scores) for scores in together] == [4, 2, 1, 1]
    for row, session in enumerate(sessions):
        for n_known in range(1, len(session)):
            # Alone, without the clicks to come, and with another item in the target's place.
            alone = scores_after(predictor, session[:n_known])[-1]
            # Sums of products may be taken in another order for one row; counts may not.
            assert together[n_known - 1][row] == pytest.approx(alone, rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("name", [*LEARNS_ORDER, *LEARNS_COMPANY])
def test_what_follows_from_the_last_click_is_found(name: str) -> None:
    _, test, catalogue = log(0.9)
    found = figures(rank_targets(every_baseline(0.9)[name], test, len(catalogue)))
    # Nobody can know the tenth that is drawn at random. Methods that do not know the order list
    # the chain's items before and after the last click alike, and VMIS-kNN the known ones too.
    assert found["recall_at_1" if name in LEARNS_ORDER else "recall_at_10"] > 0.8


@pytest.mark.parametrize("name", [*LEARNS_ORDER, *LEARNS_COMPANY])
def test_nothing_is_found_where_nothing_follows(name: str) -> None:
    _, test, catalogue = log(0.0)
    found = figures(rank_targets(every_baseline(0.0)[name], test, len(catalogue)))
    assert found["predictions"] == 600
    # 10 of 40 by chance: four standard errors of 600 draws are .071.
    assert abs(found["recall_at_10"] - 0.25) < 0.071
