"""How the demo cuts a log: by time, whole sessions to learn from, exact clicks to replay."""

from pathlib import Path

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deploy.demo.heldout import MAX_HELDOUT_SHARE, hold_out, read_log, shop_log
from deploy.demo.replay import in_order_of_time
from train.command import TrainError
from train.data.columns import IDLE_TIMEOUT_S
from train.data.synthetic import FIRST_DAY_MS, generate_synthetic
from train.fit.training_log import Reading


def log_of(*starts: tuple[str, list[int]]) -> pl.DataFrame:
    rows = [(session, f"i{at}", at) for session, times in starts for at in times]
    return pl.DataFrame(rows, schema=["session_id", "item_id", "timestamp_ms"], orient="row")


def test_the_newest_sessions_are_held_out_and_their_last_clicks_in_time_left_out() -> None:
    old = [(f"old{n}", [n, n + 50]) for n in range(10)]
    log = log_of(*old, ("x", [60, 70, 90]), ("y", [65, 66, 80]))
    train, heldout = hold_out(log, 5)
    assert train["session_id"].to_list() == [name for name, _ in old for _ in range(2)]
    # Five of six in time: x's click at 90 is left out. Still in the order of the log.
    assert heldout.rows() == log[20:22].rows() + log[23:26].rows()


LOG = generate_synthetic(1_500)


@given(st.integers(1, 400))
@settings(max_examples=30, deadline=None)
def test_no_session_stands_on_both_sides_and_none_begins_before_training_ends(
    n_heldout: int,
) -> None:
    n_wanted = min(n_heldout, int(MAX_HELDOUT_SHARE * len(LOG)))
    train, heldout = hold_out(LOG, n_heldout)
    assert len(heldout) == n_wanted
    assert not set(train["session_id"]) & set(heldout["session_id"])
    first_ms = LOG.group_by("session_id").agg(pl.col("timestamp_ms").min())
    begins = dict(first_ms.iter_rows())
    assert max(begins[s] for s in train["session_id"]) <= min(
        begins[s] for s in heldout["session_id"]
    )


def test_a_log_of_one_session_is_too_short() -> None:
    with pytest.raises(TrainError, match="a log of 5 clicks in 1 sessions is too short"):
        hold_out(log_of(("s", [1, 2, 3, 4, 5])), 2)


def test_the_shops_last_day_is_held_out() -> None:
    log = shop_log(300)
    assert len(log.heldout) == 300
    assert len(log.train) == pytest.approx(300 * 13, rel=0.02)
    last_day_ms = FIRST_DAY_MS + 13 * 86_400_000
    late = log.heldout.filter(pl.col("timestamp_ms") > last_day_ms - 7_200_000)
    assert len(late) == 300


def test_the_oracle_knows_the_shop_and_no_other_log(tmp_path: Path) -> None:
    shop = shop_log(200)
    oracle = shop.oracle(shop.train["item_id"].unique().to_list())
    assert oracle is not None
    assert 0.5 < oracle.recall_at_20 < 1.0
    assert 0.3 < oracle.mrr_at_20 < oracle.recall_at_20
    path = tmp_path / "log.csv"
    shop.train.write_csv(path)
    foreign = read_log(Reading(clicks=path), 100, tmp_path / "rejected.csv")
    assert foreign.oracle([]) is None


def test_only_a_log_with_event_types_is_learned_with_context(tmp_path: Path) -> None:
    log = shop_log(200).train
    assert shop_log(200).context
    for columns, expected in (
        (log.columns, True),
        (["session_id", "item_id", "timestamp_ms"], False),
    ):
        path = tmp_path / "log.parquet"
        log.select(columns).write_parquet(path)
        found = read_log(Reading(clicks=path), 100, tmp_path / "rejected.csv")
        assert bool(found.context) == expected


def test_a_log_with_other_names_is_written_with_those_of_a_click(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    log = shop_log(200).train.rename({"session_id": "who", "item_id": "sku", "event_type": "kind"})
    log.with_columns(title=pl.lit("x")).write_csv(path)
    columns = {"visitor": "who", "item": "sku", "event_type": "kind"}
    weights = {"view": 0.0, "purchase": 3.0}
    reading = Reading(clicks=path, columns=columns, event_types=weights)
    found = read_log(reading, 100, tmp_path / "rejected.csv")
    assert found.idle_timeout_s == IDLE_TIMEOUT_S
    assert found.train.columns == ["session_id", "item_id", "timestamp_ms", "event_type"]
    assert set(found.heldout["event_type"]) <= {"view", "purchase"}
    assert found.training[-2:] == ("--event-types", "view=0,purchase=3")
    assert found.health is not None
    wanted = log.filter(pl.col("kind").cast(pl.String) != "cart")
    assert found.health.visitors == wanted["who"].n_unique()


def test_an_unreadable_log_is_left_to_its_reader_to_report(tmp_path: Path) -> None:
    path = tmp_path / "none.csv"
    with pytest.raises(TrainError, match=r"none\.csv does not exist"):
        read_log(Reading(clicks=path), 10, tmp_path / "rejected.csv")


def test_a_replay_is_in_order_of_time_and_keeps_the_order_within_a_session() -> None:
    log = log_of(("s", [5, 7, 7]), ("t", [6, 7]))
    log = log.with_columns(item_id=pl.Series(["a", "b", "c", "d", "e"]))
    assert in_order_of_time(log)["item_id"].to_list() == ["a", "d", "b", "c", "e"]
