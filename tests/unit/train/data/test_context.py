import numpy as np
import polars as pl
import pytest

from stream.contract.context import FIRST_VALUE, MISSING, UNKNOWN
from train.command import TrainError
from train.data.context import context_indices, learn_fields
from train.data.sessions import TARGET_WEIGHT, build_catalogue, build_sessions

HOUR_S = 3600


def log(**columns: list[object]) -> pl.DataFrame:
    n = len(next(iter(columns.values())))
    defaults = {
        "session_id": ["s"] * n,
        "item_id": [str(i) for i in range(n)],
        "timestamp_ms": [1000 * i for i in range(n)],
    }
    return pl.DataFrame({**defaults, **columns})


def test_a_columns_values_are_numbered_the_most_frequent_first() -> None:
    clicks = log(device=["tv"] * 20 + ["phone"] * 30 + ["rare"] * 19 + [None, ""])
    fields = learn_fields(clicks, ["device"])
    assert fields[0].values == ("phone", "tv")
    assert fields[0].size == 4
    index = context_indices(log(device=["phone", "tv", "rare", "new", None, ""]), fields)
    assert index[:, 0].tolist() == [2, 3, UNKNOWN, UNKNOWN, MISSING, MISSING]


def test_numbers_and_truths_are_named_as_json_clicks_name_them() -> None:
    clicks = log(code=[3.0, 1.5, None] * 20, old=[True, False, None] * 20)
    fields = learn_fields(clicks, ["code", "old"])
    assert set(fields[0].values) == {"3", "1.5"}
    assert set(fields[1].values) == {"true", "false"}


def test_hour_and_weekday_are_those_of_the_declared_zone() -> None:
    # 1 January 1970, 00:30 UTC, was a Thursday; in Brasilia it was still Wednesday, 21:30.
    clicks = log(timestamp_ms=[1_800_000])
    utc = learn_fields(clicks, ["hour", "weekday"])
    brasilia = learn_fields(clicks, ["hour", "weekday"], utc_offset_s=-3 * HOUR_S)
    assert context_indices(clicks, utc).tolist() == [[FIRST_VALUE + 0, FIRST_VALUE + 3]]
    assert context_indices(clicks, brasilia).tolist() == [[FIRST_VALUE + 21, FIRST_VALUE + 2]]


def test_a_gap_falls_into_the_bin_that_ends_at_it_and_a_first_click_has_none() -> None:
    clicks = log(
        session_id=["a", "a", "a", "a", "a", "b"],
        timestamp_ms=[5, 5, 1_005, 3_006, 500_000_000, 500_000_000],
    )
    index = context_indices(clicks, learn_fields(clicks, ["gap"]))[:, 0]
    edges = len(learn_fields(clicks, ["gap"])[0].edges_s)
    assert index.tolist() == [MISSING, 2, 2, 4, FIRST_VALUE + edges, MISSING]


def test_a_column_the_log_lacks_is_an_error_to_learn_and_missing_to_read() -> None:
    clicks = log(device=["tv"] * 20)
    with pytest.raises(TrainError, match="'colour' is not a column"):
        learn_fields(clicks, ["colour"])
    fields = learn_fields(clicks, ["device"])
    assert context_indices(log(item_id=["1", "2"]), fields).tolist() == [[MISSING], [MISSING]]


def test_the_gap_of_a_session_counts_from_its_last_known_item() -> None:
    clicks = log(item_id=["1", "unknown", "1"], timestamp_ms=[0, 60_000, 64_000])
    catalogue = build_catalogue(log(item_id=["1"]))
    fields = learn_fields(clicks, ["gap"])
    sessions = build_sessions(clicks, catalogue, fields).sessions
    assert sessions.context.tolist() == [[MISSING], [FIRST_VALUE + 6]]  # 64 s, not 4 s


def test_sessions_keep_the_weights_of_their_clicks_as_targets() -> None:
    clicks = log(item_id=["1", "2"]).with_columns(pl.Series(TARGET_WEIGHT, [1.0, 0.5]))
    assert build_sessions(clicks).sessions.target_weight.tolist() == [1.0, 0.5]
    weights = build_sessions(clicks.drop(TARGET_WEIGHT)).sessions.target_weight
    assert (weights == np.ones(2)).all()
