"""The times of a log's clicks: what is read, found out, refused and said."""

from collections.abc import Sequence
from datetime import UTC, date, datetime
from pathlib import Path

import polars as pl
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs

from stream.contract.click import EARLIEST_MS
from train.command import TrainError
from train.data.clicks import read_clicks
from train.data.columns import Columns
from train.data.ids import Reason


@pytest.mark.parametrize(
    ("unit", "text", "timestamp_ms"),
    [
        ("s", "1396437466", 1396437466000),
        ("s", "1.5", 1500),
        ("ms", "1396437466123", 1396437466123),
        ("ms", "17", 17),  # an order and no time, as in Diginetica
        ("order", "17", 17),
        ("ms", " 1396437466123 ", 1396437466123),
        ("us", "1396437466123999", 1396437466123),
        ("ns", "1396437466123999999", 1396437466123),
        ("days", "41736.45218839", 1396867869077),
        ("iso", "2014-04-07T10:51:09.277Z", 1396867869277),
        ("iso", "2014-04-07 10:51:09", 1396867869000),
        ("iso", "2014-04-07T10:51:09+02:00", 1396860669000),
        ("iso", "2014-04-07T10:51:09.277999+0200", 1396860669277),
        ("iso", "2014-04-07 10:51:09,5-02", 1396875069500),
        ("iso", "2014-04-07 10:51:09.277 UTC", 1396867869277),
        ("iso", "2014-04-07 10:51:09 +0000 UTC", 1396867869000),
        ("iso", "2014-04-07 10:51:09 GMT", 1396867869000),
        ("iso", "2014/4/7 10:51", 1396867860000),
        ("iso", "2014-04-07", 1396828800000),
        ("compact", "20140407", 1396828800000),
        ("compact", "20140407T105109Z", 1396867869000),
        ("compact", "20140407105109277", 1396867869277),
        ("dmy", "07.04.2014 10:51:09", 1396867869000),
        ("dmy", "7/4/14, 10:51", 1396867860000),
        ("dmy", "07/Apr/2014:12:51:09 +0200", 1396867869000),
        ("mdy", "4/7/2014 10:51:09 PM", 1396911069000),
        ("mdy", "04/07/2014 12:51 am", 1396831860000),
        ("mdy", "April 7, 2014 10:51", 1396867860000),
        ("iso", "2012-02-29", 1330473600000),
        ("dmy", "Mon, 07 Apr 2014 12:51:09 +0200", 1396867869000),
        ("dmy", "07-APR-14 10.51.09.277000 PM", 1396911069277),
        ("dmy", "07-APR-14 12.51.09.277000 PM +02:00", 1396867869277),
        ("mdy", "Mon Apr 07 10:51:09 UTC 2014", 1396867869000),
        ("mdy", "Mon Apr  7 10:51:09 2014", 1396867869000),
        ("mdy", "Mon Apr 07 12:51:09 GMT+02:00 2014", 1396867869000),
        ("mdy", "Mon Apr 07 2014 12:51:09 GMT+0200 (Central European Time)", 1396867869000),
    ],
)
def test_times_are_read_in_the_declared_unit(
    tmp_path: Path, unit: str, text: str, timestamp_ms: int
) -> None:
    path = tmp_path / "log.csv"
    path.write_text(f'session_id,item_id,timestamp_ms\ns,a,"{text}"\n')
    columns = Columns.model_validate({"time_unit": unit})
    assert read_clicks(path, columns).clicks["timestamp_ms"].to_list() == [timestamp_ms]


@pytest.mark.parametrize(
    ("unit", "text"),
    [
        ("iso", "2013-02-29"),
        ("iso", "2013-04-31 10:51"),
        ("iso", "2013-13-01"),
        ("iso", "2013-00-01"),
        ("iso", "2013-04-00"),
        ("iso", "2013-04-07 24:00"),
        ("iso", "2013-04-07 10:60"),
        ("iso", "2013-04-07 10:51:61"),
        ("iso", "2013-04-07 13:51 PM"),
        ("iso", "2013-04-07 and more"),
        ("iso", "1396867869277"),
        ("mdy", "Foo 7, 2014"),
        ("mdy", "Mon Apr 07 10:51:09 CEST 2014"),  # of which there may be several
        ("dmy", "07-APR-14 10.61.09 PM"),
        ("ms", "1,396,867,869,277"),
        ("s", "nan"),
    ],
)
def test_a_time_that_does_not_exist_is_bad(tmp_path: Path, unit: str, text: str) -> None:
    forms = {"iso": "2013-04-07", "dmy": "7/4/2013", "mdy": "4/7/2013", "s": "1396437466"}
    good = forms.get(unit, "1396437466123")
    path = tmp_path / "log.csv"
    path.write_text(f'session_id,item_id,timestamp_ms\ns,a,{good}\ns,a,"{text}"\ns,a,{good}\n')
    found = read_clicks(path, Columns.model_validate({"time_unit": unit}))
    assert (len(found.clicks), found.rejected) == (2, {Reason.BAD_TIMESTAMP: 1})


FORMS = {
    "s": "{seconds}",
    "ms": "{seconds}123",
    "us": "{seconds}123456",
    "ns": "{seconds}123456789",
    "days": "{days}",
    "iso": "%Y-%m-%dT%H:%M:%S.250+00:00",
    "compact": "%Y%m%d%H%M%S",
    "dmy": "%d.%m.%Y %H:%M:%S",
    "mdy": "%m/%d/%Y %I:%M:%S %p",
}


def times(form: str, n: int = 40) -> list[str]:
    """Times of forty days in a form."""
    seconds = [1_396_437_466 + 86_400 * day for day in range(n)]
    return [
        datetime.fromtimestamp(at, UTC).strftime(form).format(seconds=at, days=at / 86_400 + 25_569)
        for at in seconds
    ]


def log_of(tmp_path: Path, values: Sequence[object], session: str = "s") -> Path:
    path = tmp_path / "log.csv"
    frame = {"session_id": [session] * len(values), "item_id": "a", "timestamp_ms": values}
    pl.DataFrame(frame).write_csv(path)
    return path


@pytest.mark.parametrize(
    ("unit", "form"),
    [
        ("dmy", "%a, %d %b %Y %H:%M:%S +0000"),
        ("dmy", "%d/%b/%Y:%H:%M:%S +0000"),
        ("dmy", "%d-%b-%y %I.%M.%S.000000 %p"),
        ("dmy", "%d-%b-%y %I.%M.%S %p"),
        ("mdy", "%a %b %d %H:%M:%S UTC %Y"),
        ("mdy", "%a %b %d %Y %H:%M:%S GMT+0000 (Coordinated Universal Time)"),
    ],
)
def test_times_with_a_month_by_its_name_need_no_unit(tmp_path: Path, unit: str, form: str) -> None:
    path = log_of(tmp_path, times(form, 7))
    with capture_logs() as logs:
        found = read_clicks(path).clicks["timestamp_ms"]
    assert [line["columns"] for line in logs] == [f"time_unit={unit}"]
    assert found.to_list() == [1000 * (1_396_437_466 + 86_400 * day) for day in range(7)]


@pytest.mark.parametrize("unit", FORMS)
def test_the_unit_is_found_out_and_said(tmp_path: Path, unit: str) -> None:
    path = log_of(tmp_path, times(FORMS[unit]))
    with capture_logs() as logs:
        found = read_clicks(path)
    assert [(line["event"], line["columns"]) for line in logs] == (
        [] if unit == "ms" else [("log_format_found", f"time_unit={unit}")]
    )
    assert all("milliseconds alone" in line["note"] for line in logs)
    assert found.rejected == {}
    declared = read_clicks(path, Columns.model_validate({"time_unit": unit}))
    assert declared.clicks.equals(found.clicks)
    assert found.clicks["timestamp_ms"].min() // 1000 == 1_396_437_466  # type: ignore[operator]


@given(
    unit=st.sampled_from([*FORMS]),
    seconds=st.lists(st.integers(400_000_000, 1_700_000_000), min_size=30, max_size=60),
)
@settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50, deadline=None
)
def test_what_is_found_out_reads_every_time_as_it_was(
    tmp_path: Path, unit: str, seconds: list[int]
) -> None:
    assume({13, 20} & {datetime.fromtimestamp(at, UTC).day for at in seconds})
    assume(unit != "ns" or min(seconds) > EARLIEST_MS // 1000)
    values = [
        datetime.fromtimestamp(at, UTC)
        .strftime(FORMS[unit])
        .format(seconds=at, days=at / 86_400 + 25_569)
        for at in seconds
    ]
    found = read_clicks(log_of(tmp_path, values)).clicks["timestamp_ms"]
    assert [at // 1000 for at in found] == sorted(seconds)


def test_a_typed_time_needs_no_unit(tmp_path: Path) -> None:
    days = [date(2014, 4, day) for day in range(1, 20)]
    frame = pl.DataFrame({"session_id": "s", "item_id": "a", "timestamp_ms": days})
    frame.write_parquet(tmp_path / "log.parquet")
    with capture_logs() as logs:
        found = read_clicks(tmp_path / "log.parquet", Columns(time_unit="s"))
    assert logs == []
    assert found.clicks["timestamp_ms"][0] == 1_396_310_400_000


def test_days_and_months_that_cannot_be_told_apart_are_asked_for(tmp_path: Path) -> None:
    values = [f"0{day}/09/2014 10:51" for day in range(1, 9)]
    path = log_of(tmp_path, values)
    with pytest.raises(TrainError, match=r"'01/09/2014 10:51'.*time_unit=dmy.*time_unit=mdy"):
        read_clicks(path)
    assert read_clicks(path, Columns(time_unit="mdy")).clicks["timestamp_ms"][0] % 10**9 > 0
    # One day above 12, which a sample of every other row lacks, decides.
    path = log_of(tmp_path, [*values * 2500, values[0], "13/09/2014 10:51"])
    with capture_logs() as logs:
        read_clicks(path)
    assert [line["columns"] for line in logs] == ["time_unit=dmy"]
    # Points stand between day and month alone.
    path = log_of(tmp_path, [value.replace("/", ".") for value in values])
    assert read_clicks(path).clicks["timestamp_ms"][0] == 1_409_568_660_000


@pytest.mark.parametrize(
    ("given", "found", "sentence"),
    [
        ("s", times(FORMS["iso"]), r"'2014-04-02T.*' in s.*cannot be read in s; .* time_unit=iso"),
        ("s", times(FORMS["ms"]), r"'1396437466123', which in s is after .*time_unit=ms"),
        ("ms", times(FORMS["s"]), r"in ms is 1970-01-17 .* look like s: set time_unit=s in"),
        ("ms", times(FORMS["us"]), r"in ms is after the year 9999; they look like us"),
        ("iso", times(FORMS["mdy"]), r"cannot be read in iso; they look like mdy"),
        (None, ["soon"] * 3, r"'soon', which cannot be read in ms; expected times .* time=NAME"),
        (None, ["2095-01-01"] * 3, r"'2095-01-01', which in iso is 2095-01-01 00:00:00; exp"),
        (None, ["1.79E+12", "1.80E+12"], r"'1.79E\+12', which have lost their digits in a spread"),
        (None, [1_396_437_466_123] * 100, "all 100 clicks have one time .*2014-04-02 11:17:46"),
    ],
)
def test_times_that_no_log_has_are_refused_in_a_sentence(
    tmp_path: Path, given: str | None, found: list[object], sentence: str
) -> None:
    path = log_of(tmp_path, found)
    with pytest.raises(TrainError, match=sentence.replace(" in s.*cannot", ".*cannot")) as raised:
        read_clicks(path, Columns.model_validate({"time_unit": given}))
    assert str(path) in str(raised.value)
    assert "\n" not in str(raised.value)
    assert [file.name for file in tmp_path.iterdir()] == ["log.csv"]


def test_an_order_is_no_time_and_warned_of_unless_it_is_declared(tmp_path: Path) -> None:
    path = log_of(tmp_path, range(40))
    with capture_logs() as logs:
        found = read_clicks(path)
    assert found.clicks["timestamp_ms"].to_list() == [*range(40)]
    assert [line["event"] for line in logs] == ["times_are_an_order"]
    with capture_logs() as logs:
        assert read_clicks(path, Columns(time_unit="order")).clicks.equals(found.clicks)
        large = read_clicks(log_of(tmp_path, times(FORMS["s"])), Columns(time_unit="order"))
    assert logs == []
    assert large.clicks["timestamp_ms"][0] == 1_396_437_466


def test_milliseconds_from_0_on_are_no_seconds(tmp_path: Path) -> None:
    """Though most are numbers that today's seconds have too."""
    found = read_clicks(log_of(tmp_path, range(0, 1_700_000_000, 40_000_000)))
    assert found.clicks["timestamp_ms"].max() == 1_680_000_000


def test_a_few_times_in_another_form_are_bad_and_most_of_them_are_said(tmp_path: Path) -> None:
    values = times(FORMS["iso"])
    found = read_clicks(log_of(tmp_path, [*values, "soon"]))
    assert found.rejected == {Reason.BAD_TIMESTAMP: 1}
    with capture_logs() as logs:
        found = read_clicks(log_of(tmp_path, [*values, *["soon"] * 50]), Columns(time_unit="iso"))
    assert found.rejected == {Reason.BAD_TIMESTAMP: 50}
    assert [line["event"] for line in logs] == ["times_not_read", "rows_rejected"]


def test_a_collected_log_is_in_milliseconds(tmp_path: Path) -> None:
    """Whatever they are: the stream has taken them so."""
    frame = {"session_id": "s", "item_id": "a", "timestamp_ms": range(1_396_437_466, 1_396_437_469)}
    kafka = {"kafka_topic": "clicks", "kafka_partition": 0, "kafka_offset": range(3)}
    pl.DataFrame(frame | kafka).write_parquet(tmp_path / "log.parquet")
    with capture_logs() as logs:
        found = read_clicks(tmp_path / "log.parquet")
    assert found.clicks["timestamp_ms"].to_list() == [1_396_437_466, 1_396_437_467, 1_396_437_468]
    assert logs == []


def test_a_date_and_the_time_of_the_day_are_one_time(tmp_path: Path) -> None:
    """As in Diginetica's own files."""
    path = tmp_path / "log.csv"
    path.write_text(
        "session_id,item_id,timeframe,eventdate\n1,a,2000,2014-04-07\n1,b,1000,2014-04-07\n"
        "1,c,,2014-04-07\n"
    )
    found = read_clicks(path, Columns(time="eventdate+timeframe"))
    assert found.clicks["timestamp_ms"].to_list() == [1396828801000, 1396828802000]
    assert found.clicks.columns == ["session_id", "item_id", "timestamp_ms"]
    assert found.rejected == {Reason.BAD_TIMESTAMP: 1}


@pytest.mark.parametrize(
    "value",
    ["26-03-01 00:00:00", "2026-03-01 ١٢:٣٤:٥٦"],
    ids=["a year of two digits", "digits that are no ASCII"],
)
def test_no_time_is_guessed_from_what_may_be_another(tmp_path: Path, value: str) -> None:
    with pytest.raises(TrainError, match="cannot be read in ms"):
        read_clicks(log_of(tmp_path, [value] * 40))


def test_ticks_of_100_ns_are_no_nanoseconds(tmp_path: Path) -> None:
    """639,079,200,000,000,000 is a time of 2026 in .NET, and in ns it would be one of 1990."""
    ticks = [639_079_200_000_000_000 + 36_000_000_000 * n for n in range(40)]
    with pytest.raises(TrainError, match="expected times since 1970"):
        read_clicks(log_of(tmp_path, ticks))
