from math import log

import numpy as np
import pytest

from tests.unit.train.baselines.asking import best_first, scores_after
from tests.unit.train.building import sessions_of
from train.baselines.neighbours import vmis_knn

# Sessions with 0, 1, 2, 3: 3, 2, 2, 1 of 3, so that 0 is worth ln 1, 1 and 2 ln 1.5, 3 ln 3.
TRAINING = sessions_of([[0, 1, 0, 1], [0, 2], [2, 0, 1, 3]])
TIES = 1e-5


def test_neighbours_vote_by_similarity_newest_match_and_rarity() -> None:
    # Known: 0, then 1. Clicks weigh 1/2 and 1. Sessions 0 and 2 share both, 1.5, and match the
    # last click, x 0.9; session 1 shares 0 alone, 0.5, a click before, x 0.8.
    scores = scores_after(vmis_knn(TRAINING, n_items=5), [0, 1])[1]
    expected = [0, 2.7 * log(1.5), (0.4 + 1.35) * log(1.5), 1.35 * log(3), 0]
    assert scores == pytest.approx(expected, abs=TIES)


def test_only_the_m_newest_are_looked_at_and_the_k_most_similar_vote() -> None:
    # The newest two are sessions 2 and 1, and 2 is the more similar.
    scores = scores_after(vmis_knn(TRAINING, n_items=5, m=2, k=1), [0, 1])[1]
    assert scores == pytest.approx(
        [0, 1.35 * log(1.5), 1.35 * log(1.5), 1.35 * log(3), 0], abs=TIES
    )


def test_clicks_before_the_window_count_for_nothing() -> None:
    recent = vmis_knn(TRAINING, n_items=5, window=2)
    assert (scores_after(recent, [3, 0, 2])[2] == scores_after(recent, [1, 0, 2])[2]).all()


def test_items_no_neighbour_clicked_stand_behind_by_support() -> None:
    knn = vmis_knn(sessions_of([[0, 1], [2, 3], [2, 3], [3, 4]]), n_items=6)
    assert best_first(knn, [0]) == [[0, 1, 3, 2, 4, 5]]


def test_a_neighbourhood_of_any_size_is_counted_whole() -> None:
    # 1,000 sessions of 5 items: more votes than the first buffer holds.
    sessions = sessions_of([[0, 1, 2, 3, 4 + n % 7] for n in range(1000)])
    scores = scores_after(vmis_knn(sessions, n_items=12, m=1000, k=1000), [0])[0]
    rare = np.array([143, 143, 143, 143, 143, 143, 142])  # sessions with 4, 5, ... 10
    assert scores[4:11] == pytest.approx(0.9 * rare * np.log(1000 / rare), rel=1e-5)


@pytest.mark.parametrize(("m", "k", "window"), [(10, 11, 9), (10, 0, 9), (10, 5, 10)])
def test_sizes_without_meaning_are_refused_in_one_sentence(m: int, k: int, window: int) -> None:
    with pytest.raises(ValueError, match=f"found k={k}, m={m}, window={window}"):
        vmis_knn(TRAINING, n_items=5, m=m, k=k, window=window)
