import hypothesis.strategies as st
import numpy as np
import polars as pl
import pytest
from hypothesis import given

from tests.unit.train.building import ranks_from
from train.data.sessions import TARGET_WEIGHT, build_catalogue, build_sessions
from train.measure.metrics import CUTOFFS, METRICS, Lost, figures, gain, lost_predictions


def test_a_rank_past_the_cutoff_is_a_miss_and_one_at_it_is_a_hit() -> None:
    result = figures(ranks_from([1, 5, 6, 20, 21]))
    assert [result[f"recall_at_{k}"] for k in CUTOFFS] == [0.2, 0.4, 0.6, 0.8]
    assert result["mrr_at_20"] == pytest.approx((1 + 1 / 5 + 1 / 6 + 1 / 20) / 5)
    assert result["ndcg_at_5"] == pytest.approx((1 + 1 / np.log2(6)) / 5)


def test_novel_and_repeat_targets_are_measured_apart_and_add_up() -> None:
    result = figures(ranks_from([1, 2, 30, 4], novel=[True, False, False, True]))
    assert (result["novel_predictions"], result["repeat_predictions"]) == (2, 2)
    assert result["novel_mrr_at_5"] == pytest.approx((1 + 1 / 4) / 2)
    assert result["repeat_recall_at_20"] == 0.5
    halves = [result[f"{kind}_ndcg_at_10"] for kind in ("novel", "repeat")]
    assert result["ndcg_at_10"] == pytest.approx(sum(halves) / 2)


def test_a_target_of_weight_three_counts_as_three_of_weight_one() -> None:
    weighed = figures(ranks_from([1, 7, 40], weight=[1, 3, 2]))
    repeated = figures(ranks_from([1, 7, 7, 7, 40, 40]))
    assert weighed["predictions"] == 3
    assert all(weighed[metric] == pytest.approx(repeated[metric]) for metric in METRICS)


def test_predictions_that_were_lost_are_misses_under_their_own_name() -> None:
    result = figures(ranks_from([1, 2, 21]), Lost(predictions=2, weight=3.0))
    assert result["with_unknown_predictions"] == 5
    assert result["with_unknown_recall_at_20"] == pytest.approx(2 / 6)
    assert result["recall_at_20"] == pytest.approx(2 / 3)


def test_what_a_log_loses_is_every_later_click_that_has_no_rank() -> None:
    clicks = [
        ("a", "x", 1), ("a", "new", 2), ("a", "y", 3),  # the click on `new` is lost
        ("b", "new", 1), ("b", "x", 2),  # x stands behind nothing known: lost with its session
        ("c", "x", 9), ("c", "y", 8),  # one prediction, of x; nothing lost
        ("d", "y", 1),  # asks for nothing
        ("e", "new", 1), ("e", "x", 2), ("e", "y", 3), ("e", "newer", 4),  # x and newer are lost
    ]  # fmt: skip
    log = pl.DataFrame(clicks, schema=["session_id", "item_id", "timestamp_ms"], orient="row")
    known = build_catalogue(pl.DataFrame({"item_id": ["x", "y"]}))
    assert lost_predictions(log, build_sessions(log, known).sessions) == Lost(4, 4.0)
    weights = pl.when(pl.col("item_id") == "new").then(0.0).otherwise(2.0)
    weighed = log.with_columns(weights.cast(pl.Float32).alias(TARGET_WEIGHT))
    assert lost_predictions(weighed, build_sessions(weighed, known).sessions) == Lost(3, 6.0)
    everything = build_sessions(log)
    assert lost_predictions(log, everything.sessions) == Lost(0, 0.0)


@given(st.lists(st.tuples(st.integers(1, 60), st.booleans(), st.floats(0.1, 9)), max_size=40))
def test_figures_grow_with_k_and_mrr_never_exceeds_ndcg_nor_ndcg_recall(
    cases: list[tuple[int, bool, float]],
) -> None:
    ranks = [rank for rank, _, _ in cases]
    result = figures(ranks_from(ranks, [n for _, n, _ in cases], [w for _, _, w in cases]))
    for prefix in ("", "novel_", "repeat_"):
        by_k = {
            name: [result[f"{prefix}{name}_at_{k}"] for k in CUTOFFS]
            for name in ("mrr", "ndcg", "recall")
        }
        for values in by_k.values():
            assert values == sorted(values)
            assert values[0] == pytest.approx(by_k["recall"][0])
        for lower, upper in (("mrr", "ndcg"), ("ndcg", "recall")):
            assert all(a <= b + 1e-12 for a, b in zip(by_k[lower], by_k[upper], strict=True))


@pytest.mark.parametrize("metric", METRICS)
def test_the_first_place_is_worth_one_and_a_place_below_the_cutoff_nothing(metric: str) -> None:
    k = int(metric.split("_")[-1])
    assert gain(metric, np.array([1, k + 1])).tolist() == [1, 0]
    assert gain(metric, np.array([k]))[0] > 0
