"""A synthetic log: exact size, order, and every effect the process promises."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest
from pydantic import ValidationError

from tests.unit.train.building import markov_clicks
from train.data.clicks import read_clicks, write_clicks
from train.data.synthetic import (
    CATEGORIES,
    FIRST_DAY_MS,
    STEP_SHARES,
    SyntheticConfig,
    build_process,
    generate_synthetic,
)

SMALL = SyntheticConfig(seed=7, n_items=480, n_days=5)


@pytest.fixture(scope="module")
def clicks() -> pl.DataFrame:
    return generate_synthetic(60_000, SMALL)


@pytest.mark.parametrize("n_clicks", [2, 3, 1_001])
def test_a_log_has_exactly_as_many_clicks_as_asked_for(n_clicks: int) -> None:
    assert len(generate_synthetic(n_clicks, SMALL)) == n_clicks


def test_the_same_seed_gives_the_same_log_and_another_seed_another() -> None:
    log = generate_synthetic(500, SMALL)
    assert generate_synthetic(500, SMALL).equals(log)
    assert not generate_synthetic(500, SMALL.model_copy(update={"seed": 8})).equals(log)


def test_the_process_does_not_depend_on_how_many_clicks_are_made() -> None:
    assert build_process(SMALL).item_ids[:2] == ["bags-0000", "bags-0001"]
    assert np.array_equal(build_process(SMALL).successors, build_process(SMALL).successors)


def test_a_process_smaller_than_its_categories_is_refused() -> None:
    with pytest.raises(ValidationError, match="n_items"):
        SyntheticConfig(n_items=len(CATEGORIES))


def test_every_click_is_good_and_in_the_order_of_read_clicks(
    clicks: pl.DataFrame, tmp_path: Path
) -> None:
    write_clicks(clicks, tmp_path / "log.parquet")
    found = read_clicks(tmp_path / "log.parquet", idle_timeout_s=1800)
    assert found.rejected == {}
    assert found.clicks.equals(clicks)


def test_the_pause_before_a_click_is_its_dwell_and_below_the_idle_timeout(
    clicks: pl.DataFrame,
) -> None:
    gap_ms = pl.col("timestamp_ms").diff().over("session_id").fill_null(0)
    assert clicks.select((gap_ms == pl.col("dwell_ms")).all()).item()
    assert clicks.select(pl.col("dwell_ms").max()).item() <= 600_000


def test_sessions_overlap_in_time(clicks: pl.DataFrame) -> None:
    """Sorted by time, most clicks belong to another session than the click before."""
    session = clicks.sort("timestamp_ms")["session_id"].to_numpy()
    assert (session[1:] != session[:-1]).mean() > 0.8


def test_session_lengths_follow_the_power_law(clicks: pl.DataFrame) -> None:
    length = clicks["session_id"].value_counts()["count"]
    of = {n: int((length == n).sum()) for n in (2, 4, 8)}
    # P(2) / P(4) = P(4) / P(8) = 2^2; 5 standard errors of the smallest count, about 250.
    assert of[2] / of[4] == pytest.approx(4, rel=0.3)
    assert of[4] / of[8] == pytest.approx(4, rel=0.35)


def test_a_few_items_get_most_of_the_clicks(clicks: pl.DataFrame) -> None:
    count = clicks["item_id"].value_counts()["count"].sort(descending=True)
    assert count.head(48).sum() > 0.3 * len(clicks)


def test_no_item_is_clicked_before_it_is_for_sale(clicks: pl.DataFrame) -> None:
    process = build_process(SMALL)
    born = pl.DataFrame({"item_id": process.item_ids, "born": process.born})
    day = (pl.col("timestamp_ms") - FIRST_DAY_MS) // 86_400_000
    late = clicks.join(born, on="item_id").filter(pl.col("born") > 0)
    assert late["item_id"].n_unique() > 30
    assert late.select((day >= pl.col("born")).all()).item()


def test_an_event_type_sends_its_visitor_down_the_chain_as_often_as_stated(
    clicks: pl.DataFrame,
) -> None:
    process = build_process(SMALL)
    index = {item_id: row for row, item_id in enumerate(process.item_ids)}
    item = np.array([index[item_id] for item_id in clicks["item_id"]])
    goes_on = (clicks["session_id"] == clicks["session_id"].shift(-1)).fill_null(False).to_numpy()
    on_chain = np.append((process.successors[item[:-1]] == item[1:, None]).any(axis=1), False)
    hurried = (clicks["dwell_ms"] < 20_000).to_numpy()
    for event, name in enumerate(("view", "cart", "purchase")):
        for pace, chosen in enumerate((hurried, ~hurried)):
            rows = goes_on & chosen & (clicks["event_type"] == name).to_numpy()
            # Other steps reach a successor by chance, in up to 6 of 100 clicks.
            share = STEP_SHARES[event, pace, 1]
            error = 4 * (share * (1 - share) / rows.sum()) ** 0.5
            assert share - error < on_chain[rows].mean() < share + error + 0.06


def test_the_hour_changes_what_is_clicked(clicks: pl.DataFrame) -> None:
    part = (pl.col("timestamp_ms") - FIRST_DAY_MS) // (6 * 3_600_000) % 4
    first = clicks.group_by("session_id").first().with_columns(part=part)
    table = first.pivot(on="part", index="item_id", values="item_id", aggregate_function="len")
    counts = table.drop("item_id").fill_null(0).to_numpy()
    counts = counts[counts.sum(axis=1) >= 40]
    expected = counts.sum(axis=1, keepdims=True) * counts.sum(axis=0) / counts.sum()
    chi2 = ((counts - expected) ** 2 / expected).sum()
    freedom = (len(counts) - 1) * 3
    # Without an effect chi2 is freedom +- sqrt(2 freedom); 6 of those happen by chance never.
    assert chi2 > freedom + 6 * (2 * freedom) ** 0.5


def predictable_share(predictability: float) -> float:
    """How often the most frequent follower of an item follows it."""
    log = markov_clicks(predictability, n_sessions=400, n_items=20, seed=1)
    items = log["item_id"].cast(pl.Int64).to_numpy().reshape(400, 6)
    counts = np.zeros((20, 20))
    np.add.at(counts, (items[:, :-1].ravel(), items[:, 1:].ravel()), 1)
    return float(counts.max(axis=1).sum() / counts.sum())


def test_planted_structure_is_as_predictable_as_asked() -> None:
    assert predictable_share(1.0) == 1.0
    assert predictable_share(0.5) == pytest.approx(0.525, abs=0.04)  # 1 in 20 by chance
    assert predictable_share(0.0) < 0.15
