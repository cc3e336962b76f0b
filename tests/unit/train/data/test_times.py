"""The times of a log's clicks: what is read, found out, refused and said."""

from pathlib import Path

import pytest
from structlog.testing import capture_logs

from train.data.clicks import read_clicks
from train.data.columns import Columns


@pytest.mark.parametrize(
    ("unit", "text", "timestamp_ms"),
    [
        ("s", "1396437466", 1396437466000),
        ("s", "1.5", 1500),
        ("ms", "1396437466123", 1396437466123),
        ("ms", "17", 17),  # an order and no time, as in Diginetica
        ("iso", "2014-04-07T10:51:09.277Z", 1396867869277),
        ("iso", "2014-04-07 10:51:09", 1396867869000),
        ("iso", "2014-04-07T10:51:09+02:00", 1396860669000),
    ],
)
def test_times_are_read_in_the_declared_unit(
    tmp_path: Path, unit: str, text: str, timestamp_ms: int
) -> None:
    path = tmp_path / "log.csv"
    path.write_text(f"session_id,item_id,timestamp_ms\ns,a,{text}\n")
    columns = Columns.model_validate({"time_unit": unit})
    assert read_clicks(path, columns).clicks["timestamp_ms"].to_list() == [timestamp_ms]


@pytest.mark.parametrize(
    ("times", "warned"),
    [
        ("1396437466", True),
        ("1396437466123", False),
        ("17", False),  # an order and no time, as in Diginetica
    ],
)
def test_seconds_that_are_read_as_milliseconds_are_warned_of(
    tmp_path: Path, times: str, warned: bool
) -> None:
    (tmp_path / "log.csv").write_text(f"session_id,item_id,timestamp_ms\ns,a,{times}\n")
    with capture_logs() as warnings:
        read_clicks(tmp_path / "log.csv")
    assert [w["event"] for w in warnings] == ["times_look_like_seconds"] * warned
