import numpy as np

from tests.unit.train.baselines.asking import best_first
from tests.unit.train.building import batch_of, sessions_of
from train.baselines.named import build_baselines
from train.baselines.novel import NovelOnly

BASELINES = build_baselines(sessions_of([[0, 1, 0, 1], [0, 2], [2, 0, 1, 3]]), n_items=5)


def test_known_items_stand_level_with_the_last() -> None:
    assert best_first(NovelOnly(BASELINES["pop"]), [1, 3, 0]) == [
        [0, 2, 3, 1, 4],
        [0, 2, 1, 3, 4],
        [2, 0, 1, 3, 4],
    ]


def test_the_predictors_own_scores_stay_as_they_are() -> None:
    batch = batch_of([[0, 1, 3, 2], [1, 0, 2]])
    alone = [scores.copy() for scores in BASELINES["markov"].predict(batch)]
    novel = NovelOnly(BASELINES["markov"]).predict(batch)
    for prefix, plain, without in zip(batch.steps(), alone, novel, strict=True):
        known = np.zeros(plain.shape, dtype=bool)
        known[np.arange(len(prefix))[:, None], prefix] = True
        assert (without == np.where(known, plain.min(axis=1, keepdims=True), plain)).all()
