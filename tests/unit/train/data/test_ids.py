"""Ids of any type as text, words for none, and what is said of both."""

import uuid
from decimal import Decimal
from pathlib import Path

import polars as pl
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs

from train.data.clicks import read_clicks
from train.data.ids import NOTHING, Reason

AT_MS = 1_396_437_466_123


def log_of(path: Path, items: pl.Series, sessions: object = "s") -> Path:
    at = [AT_MS + row for row in range(len(items))]
    frame = pl.DataFrame({"session_id": sessions, "item_id": items, "timestamp_ms": at})
    write = frame.write_csv if path.suffix == ".csv" else frame.write_parquet
    write(path)
    return path


def items_of(path: Path) -> list[str]:
    return read_clicks(path).clicks["item_id"].to_list()


@pytest.mark.parametrize(
    ("values", "dtype", "ids"),
    [
        ([1004.0, None, 7.0], pl.Float64, ["1004", "7"]),
        ([1004.0, float("nan"), 0.0], pl.Float32, ["1004", "0"]),
        ([1.5, 2.0], pl.Float64, ["1.5", "2.0"]),
        ([Decimal("1004.00"), Decimal("-7.00")], pl.Decimal(10, 2), ["1004", "-7"]),
        ([Decimal("1004.50"), Decimal("7.00")], pl.Decimal(10, 2), ["1004.50", "7.00"]),
        ([Decimal("1004"), None], pl.Decimal(38, 0), ["1004"]),
        (["1004.0", "", "NA", "7.0"], pl.String, ["1004", "7"]),
        (["1004.0", "7", "NA"], pl.String, ["1004", "7"]),
        (["7", "1004.0", "1.5"], pl.String, ["7", "1004.0", "1.5"]),
        (["7", "1004", "NA"], pl.String, ["7", "1004", "NA"]),
        (["1.0", "1.1"], pl.String, ["1.0", "1.1"]),
        (["007.0"], pl.String, ["007.0"]),
        ([2**53 + 1, -1], pl.Int64, [str(2**53 + 1), "-1"]),
        (["x", "y"], pl.Categorical, ["x", "y"]),
    ],
)
def test_an_id_is_the_same_from_a_text_file_and_from_parquet(
    tmp_path: Path, values: list[object], dtype: pl.DataType, ids: list[str]
) -> None:
    items = pl.Series(values, dtype=dtype)
    with capture_logs() as logs:
        assert items_of(log_of(tmp_path / "log.parquet", items)) == ids
        assert items_of(log_of(tmp_path / "log.csv", items)) == ids
    warned = [line["read_as"] for line in logs if line["event"] == "ids_are_whole_numbers"]
    is_changed = any("." in text for text in items.cast(pl.String).drop_nulls())
    is_changed = is_changed and not any("." in item for item in ids)
    assert len(warned) == 2 * is_changed
    assert {*warned} <= {*ids}


@given(
    values=st.one_of(
        st.lists(st.none() | st.integers(-(2**52), 2**52).map(float), min_size=1),
        st.lists(st.none() | st.integers(-999, 999).map(lambda n: n / 4), min_size=1),
        st.lists(st.none() | st.integers(-(2**63), 2**63 - 1), min_size=1),
        st.lists(st.none() | st.decimals(-9999, 9999, places=2), min_size=1),
        st.lists(st.none() | st.integers(-9, 9).map(lambda n: Decimal(n) * 1), min_size=1),
    )
)
@example(values=[1004.0, None])
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_any_column_of_numbers_has_the_same_ids_in_both(
    tmp_path: Path, values: list[float | int | Decimal | None]
) -> None:
    items = pl.Series([None if value is None or not value else value for value in values])
    if items.null_count() == len(items):
        return
    in_text, in_parquet = tmp_path / "log.csv", tmp_path / "log.parquet"
    assert items_of(log_of(in_text, items)) == items_of(log_of(in_parquet, items))


DAYS = {
    "integers": pl.Series([1004, 7, 20]),
    "floats": pl.Series([1004.0, 7.0, 20.0]),
    "decimals": pl.Series([Decimal("1004.00"), Decimal("7.00"), Decimal("20.00")]),
    "longer decimals": pl.Series([Decimal("1004.000"), Decimal("7.000"), Decimal("20.000")]),
    "text": pl.Series(["1004.0", "7.0", "20.0"]),
}


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
@pytest.mark.parametrize("second", DAYS.values(), ids=DAYS)
@pytest.mark.parametrize("first", DAYS.values(), ids=DAYS)
def test_a_number_is_one_id_however_each_file_writes_it(
    tmp_path: Path, first: pl.Series, second: pl.Series, suffix: str
) -> None:
    for day, items in enumerate((first, second)):
        log_of(tmp_path / f"{day}.{suffix}", items)
    assert sorted(items_of(tmp_path)) == ["1004"] * 2 + ["20"] * 2 + ["7"] * 2


def test_visitors_are_numbers_too_and_each_column_has_its_warning(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    path.write_text("visitor_id,item_id,timestamp_ms\n7.0,1,1\n7,1.0,2\n")
    with capture_logs() as logs:
        found = read_clicks(path)
    assert found.clicks["session_id"].to_list() == ["7-1", "7-1"]
    assert found.clicks["item_id"].to_list() == ["1", "1"]
    warned = {
        line["column"]: (line["found"], line["read_as"])
        for line in logs
        if line["event"] == "ids_are_whole_numbers"
    }
    assert warned == {"visitor_id": ("7.0", "7"), "item_id": ("1.0", "1")}


def test_a_missing_number_is_rejected_and_counted_once(tmp_path: Path) -> None:
    path = log_of(tmp_path / "log.csv", pl.Series(["1004.0", "nan", "7", "", "x\0"]))
    assert read_clicks(path).rejected == {Reason.BAD_ITEM_ID: 3}
    assert len(pl.read_csv(tmp_path / "log.csv.rejected.csv")) == 3


def test_ids_of_a_collected_log_are_what_the_stream_knows_them_by(tmp_path: Path) -> None:
    path = log_of(tmp_path / "log.parquet", pl.Series(["1004.0", "7.0"]))
    kafka = [pl.lit(0).alias("kafka_partition"), pl.int_range(2).alias("kafka_offset")]
    pl.read_parquet(path).with_columns(kafka).write_parquet(path)
    with capture_logs() as logs:
        assert items_of(path) == ["1004.0", "7.0"]
    assert "ids_are_whole_numbers" not in {line["event"] for line in logs}


def test_bytes_are_text_or_uuids(tmp_path: Path) -> None:
    texts = pl.Series(["a", "\u00e4", None, "sixteen bytes, yes"[:16]])
    path = log_of(tmp_path / "log.parquet", texts.cast(pl.Binary))
    assert items_of(path) == ["a", "\u00e4", "sixteen bytes, y"]
    ids = [uuid.UUID(int=n * 2**100 + 0xFF) for n in (1, 77, 2**27)]
    path = log_of(tmp_path / "log.parquet", pl.Series([one.bytes for one in ids]))
    assert items_of(path) == [str(one) for one in ids]
    mixed = log_of(tmp_path / "log.parquet", pl.Series([b"a", b"\xff"]))
    assert read_clicks(mixed).rejected == {Reason.BAD_ITEM_ID: 1}


WORDS = ["NA", "N/A", "null", "NULL", "None", r"\N", "(not set)", "undefined", "nan", "NaN", "-"]


def test_a_session_called_nothing_is_none_and_counted_by_word(tmp_path: Path) -> None:
    sessions = ["s", *WORDS, "NA", None, "t", "0", "Nancy"]
    items = pl.Series(["a"] * len(sessions))
    with capture_logs() as logs:
        found = read_clicks(log_of(tmp_path / "log.csv", items, sessions))
    assert found.clicks["session_id"].to_list() == ["s", "t", "0", "Nancy"]
    assert found.rejected == {Reason.NO_SESSION_ID: len(WORDS) + 2}
    counts = [line["found"].split(", ") for line in logs if line["event"] == "words_for_nothing"]
    assert len(counts) == 1
    assert counts[0][0] == "NA 2"
    assert sorted(counts[0][1:]) == sorted([*(f"{word} 1" for word in WORDS[1:]), "empty 1"])


def test_an_item_called_nothing_is_kept_and_said(tmp_path: Path) -> None:
    items = pl.Series(["a", "NA", "b", "NA", "null", None])
    with capture_logs() as logs:
        found = read_clicks(log_of(tmp_path / "log.csv", items))
    assert found.clicks["item_id"].to_list() == ["a", "NA", "b", "NA", "null"]
    assert found.rejected == {Reason.BAD_ITEM_ID: 1}
    counts = [line["found"] for line in logs if line["event"] == "words_for_nothing"]
    assert counts == ["NA 2, null 1"]


def test_words_for_nothing_are_known_in_every_case() -> None:
    assert {"NA", "na", "Null", "NULL", "None", "NaN", "(Not Set)", r"\N", ""} <= NOTHING
