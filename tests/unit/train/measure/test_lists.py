import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from train.measure.metrics import list_figures
from train.measure.ranking import LIST_LENGTH, count_listed


@settings(deadline=None)  # the first call may compile
@given(
    st.lists(
        st.lists(st.sampled_from([-np.inf, -1.0, 0.0, 0.5, 2.0, np.nan]), min_size=30, max_size=30),
        min_size=1,
        max_size=4,
    )
)
def test_the_twenty_best_scores_are_listed_equal_ones_by_item_and_no_nan(
    rows: list[list[float]],
) -> None:
    expected = np.zeros(30, dtype=np.int64)
    for row in rows:
        best = sorted((-score, item) for item, score in enumerate(row) if not np.isnan(score))
        for _, item in best[:LIST_LENGTH]:
            expected[item] += 1
    listed = np.zeros(30, dtype=np.int64)
    count_listed(np.array(rows, dtype=np.float32), listed)
    assert listed.tolist() == expected.tolist()


def test_the_best_items_of_a_long_catalogue_are_found_wherever_they_stand() -> None:
    scores = np.random.default_rng(4).standard_normal((50, 3001), dtype=np.float32)
    listed = np.zeros(3001, dtype=np.int64)
    count_listed(scores, listed)
    best = np.argsort(-scores, axis=1, kind="stable")[:, :LIST_LENGTH]
    assert listed.tolist() == np.bincount(best.ravel(), minlength=3001).tolist()


def test_a_catalogue_shorter_than_a_list_is_listed_whole() -> None:
    listed = np.zeros(3, dtype=np.int64)
    count_listed(np.zeros((2, 3), dtype=np.float32), listed)
    assert listed.tolist() == [2, 2, 2]


def test_coverage_gini_and_popularity_worked_by_hand() -> None:
    result = list_figures(np.array([6, 2, 0, 0]), np.array([9, 1, 5, 0]))
    assert result["coverage_at_20"] == 0.5
    # Sorted 0 0 2 6: (-3 * 0 - 1 * 0 + 1 * 2 + 3 * 6) / (4 * 8)
    assert result["gini_at_20"] == pytest.approx(20 / 32)
    assert result["log_support_at_20"] == pytest.approx((6 * np.log(10) + 2 * np.log(2)) / 8)


def test_lists_that_share_the_catalogue_evenly_have_no_gini() -> None:
    assert list_figures(np.full(7, 3), np.arange(7))["gini_at_20"] == pytest.approx(0)
    one = list_figures(np.array([0, 0, 0, 9]), np.arange(4))
    assert one["gini_at_20"] == pytest.approx(3 / 4)
