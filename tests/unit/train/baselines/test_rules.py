from math import sqrt

import numpy as np
import pytest
from jaxtyping import Float64

from tests.unit.train.baselines.asking import best_first, scores_after
from tests.unit.train.building import sessions_of
from train.baselines.named import build_baselines
from train.baselines.rules import (
    Rules,
    association_rules,
    count_transitions,
    decayed_transitions,
    item_knn,
    sequential_rules,
)

TRAINING = sessions_of([[0, 1, 0, 1], [0, 2], [2, 0, 1, 3]])
TIES = 1e-8  # above what support adds


def after(rules: Rules, item: int) -> Float64[np.ndarray, "N"]:
    """The scores after a click on this item."""
    return scores_after(rules, [item])[0]


def test_markov_lists_what_followed_the_last_click_then_the_most_clicked() -> None:
    # After 0 came 1 three times and 2 once; after 1 came 0 and 3 once each; after 3 nothing.
    markov = build_baselines(TRAINING, n_items=5)["markov"]
    assert best_first(markov, [0, 1, 3]) == [[1, 2, 0, 3, 4], [0, 3, 1, 2, 4], [0, 1, 2, 3, 4]]


def test_transitions_do_not_cross_from_one_session_into_the_next() -> None:
    chain = count_transitions(TRAINING, n_items=5)
    matrix = chain.followers.tocoo()
    pairs = dict(zip(zip(*matrix.coords, strict=True), matrix.data, strict=True))
    assert pairs == {(0, 1): 3, (1, 0): 1, (0, 2): 1, (2, 0): 1, (1, 3): 1}


def test_a_transition_halves_with_its_age_and_recent_popularity_stands_behind() -> None:
    # 0 -> 1 at seconds 1 and 5, 0 -> 2 at second 3: with a half-life of 2 s they count 1/4 + 1
    # and 1/2. The six clicks, with one of 1 s, count 1/32 to 1, which makes 63/32.
    rules = decayed_transitions(
        sessions_of([[0, 1], [0, 2], [0, 1]]),
        n_items=3,
        half_life_s=2.0,
        popularity_half_life_s=1.0,
        popularity_weight=2.0,
    )
    expected = [2 * 21 / 63, 1.25 + 2 * 34 / 63, 0.5 + 2 * 8 / 63]
    assert after(rules, 0) == pytest.approx(expected, abs=TIES)
    assert after(rules, 1) == pytest.approx([2 * 21 / 63, 2 * 34 / 63, 2 * 8 / 63], abs=TIES)


def test_association_rules_count_pairs_of_clicks_in_both_orders() -> None:
    rules = association_rules(TRAINING, n_items=5)
    # 0 and 1: four pairs in the first session, one in the last; 0 twice in the first.
    assert np.floor(after(rules, 0)).tolist() == [2, 5, 2, 1, 0]
    assert np.floor(after(rules, 3)).tolist() == [1, 1, 1, 0, 0]


def test_sequential_rules_count_later_clicks_by_one_over_the_distance() -> None:
    rules = sequential_rules(TRAINING, n_items=5)
    # 0 -> 1: distances 1, 3, 1 in the first session and 1 in the last.
    assert after(rules, 0) == pytest.approx([1 / 2, 3 + 1 / 3, 1, 1 / 2, 0], abs=TIES)
    assert after(rules, 3) == pytest.approx([0, 0, 0, 0, 0], abs=TIES)


def test_sequential_rules_look_no_further_than_their_steps() -> None:
    rules = sequential_rules(TRAINING, n_items=5, steps=1)
    assert after(rules, 0) == pytest.approx([0, 3, 1, 0, 0], abs=TIES)


def test_item_knn_is_the_cosine_of_the_sessions_two_items_occur_in() -> None:
    # Sessions with 0, 1, 2, 3: 3, 2, 2, 1; with 0 and 1: 2, 0 and 2: 2, 0 and 3: 1.
    plain = after(item_knn(TRAINING, n_items=5, shrinkage=0.0), 0)
    assert plain == pytest.approx([0, 2 / sqrt(6), 2 / sqrt(6), 1 / sqrt(3), 0], abs=TIES)
    shrunk = after(item_knn(TRAINING, n_items=5, shrinkage=1.0), 0)
    assert shrunk == pytest.approx([0, 2 / sqrt(12), 2 / sqrt(12), 1 / sqrt(8), 0], abs=TIES)


def test_equal_weights_are_ordered_by_support() -> None:
    # After 3 nothing was ever clicked; 1 and 2 have the same cosine to 0, 1 the more clicks.
    assert best_first(sequential_rules(TRAINING, n_items=5), [3]) == [[0, 1, 2, 3, 4]]
    assert best_first(item_knn(TRAINING, n_items=5), [0]) == [[1, 2, 3, 0, 4]]
