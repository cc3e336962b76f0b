import pytest

from tests.unit.train.baselines.asking import best_first
from tests.unit.train.building import sessions_of
from train.baselines.named import build_baselines
from train.baselines.popularity import item_support, recent_popularity

# Support: item 0 four clicks, 1 three, 2 two, 3 one, 4 none.
TRAINING = sessions_of([[0, 1, 0, 1], [0, 2], [2, 0, 1, 3]])
BASELINES = build_baselines(TRAINING, n_items=5)


def test_support_counts_clicks_and_knows_items_without_any() -> None:
    assert item_support(TRAINING, 5).tolist() == [4, 3, 2, 1, 0]


def test_pop_lists_the_most_clicked_items_to_everybody() -> None:
    assert best_first(BASELINES["pop"], [3, 4]) == [[0, 1, 2, 3, 4]] * 2


def test_s_pop_lists_the_sessions_own_items_by_their_clicks_then_the_most_clicked() -> None:
    assert best_first(BASELINES["s-pop"], [3, 2, 3]) == [
        [3, 0, 1, 2, 4],
        [2, 3, 0, 1, 4],  # one click each: the more popular one first
        [3, 2, 0, 1, 4],
    ]


def test_recent_popularity_halves_a_click_with_every_half_life_before_the_logs_end() -> None:
    # Clicks on 0, 1, 1, 2 at seconds 0 to 3 count 1/8, 1/4, 1/2 and 1: 15/8 in all.
    shares = recent_popularity(sessions_of([[0, 1], [1, 2]]), n_items=4, half_life_s=1.0)
    assert shares == pytest.approx([1 / 15, 6 / 15, 8 / 15, 0.0])


def test_recent_popularity_of_an_age_ago_is_nothing_rather_than_no_number() -> None:
    assert recent_popularity(sessions_of([]), n_items=2, half_life_s=1.0).tolist() == [0.0, 0.0]
