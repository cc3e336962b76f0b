from math import exp, sqrt

import pytest

from tests.unit.train.baselines.asking import scores_after
from tests.unit.train.building import sessions_of
from train.baselines.neighbours import stan

# The sessions' last clicks are 6, 4 and 0 seconds before the log's end.
TRAINING = sessions_of([[0, 1, 0, 1], [0, 2], [2, 0, 1, 3]])
E1, E2 = exp(-1), exp(-2)
TIES = 1e-5


def test_votes_fall_with_the_age_of_clicks_and_sessions_and_with_the_distance() -> None:
    # Known: 0, then 1, which weigh 1/e and 1; the cosine divides by the root of a session's items.
    nearest = (1 + E1) / sqrt(4)
    first = (1 + E1) / sqrt(2) * exp(-1) / nearest
    second = E1 / sqrt(2) * exp(-4 / 6) / nearest
    predictor = stan(TRAINING, n_items=5, click_scale=1.0, session_scale_s=6.0, distance_scale=1.0)
    # The last session has 1 at position 2; the first one 1 at 3 and 0 at 2; the second 0 at 0.
    expected = [E1 + E1 * first + second, 1 + first, E2 + E1 * second, E1, 0]
    assert scores_after(predictor, [0, 1])[1] == pytest.approx(expected, abs=TIES)


def test_without_a_scale_for_sessions_the_old_ones_count_as_much() -> None:
    predictor = stan(sessions_of([[0, 1], [0, 2]]), n_items=3, distance_scale=1.0)
    assert scores_after(predictor, [0])[0] == pytest.approx([2, E1, E1], abs=TIES)


def test_the_only_neighbours_vote_in_full_however_old_they_are() -> None:
    sessions = sessions_of([[0, 1], *[[2, 3]] * 500])
    predictor = stan(sessions, n_items=4, session_scale_s=1.0, distance_scale=1.0)
    assert scores_after(predictor, [0])[0][:2] == pytest.approx([1, E1], abs=TIES)
