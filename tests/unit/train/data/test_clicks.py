"""Click logs: what is read, what is refused and said, and the laws of filter and split."""

import gzip
from datetime import UTC, datetime
from pathlib import Path

import polars as pl
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from structlog.testing import capture_logs

from train.command import TrainError
from train.data.clicks import (
    Filters,
    cut_sessions,
    filter_clicks,
    read_clicks,
    split_by_time,
    write_clicks,
)
from train.data.columns import Columns
from train.data.ids import NOTHING, Reason
from train.data.sessions import build_sessions

PUBLIC = Columns(preset="public")
Row = tuple[str, str, int]


def log(rows: list[Row]) -> pl.DataFrame:
    """A log in memory, its sessions ordered as read_clicks orders them."""
    frame = pl.DataFrame(
        rows,
        schema={"session_id": pl.String, "item_id": pl.String, "timestamp_ms": pl.Int64},
        orient="row",
    )
    first_ms = pl.col("timestamp_ms").min().over("session_id")
    return frame.sort(first_ms, "session_id", "timestamp_ms", maintain_order=True)


def rows(clicks: pl.DataFrame) -> list[Row]:
    return clicks.select("session_id", "item_id", "timestamp_ms").rows()


logs = st.lists(
    st.tuples(st.sampled_from("stuvw"), st.sampled_from("abcde"), st.integers(0, 2**40)),
    max_size=40,
).map(log)


# Reading


@pytest.mark.parametrize("name", ["log.tsv", "log.tsv.gz", "log.csv", "log.csv.gz"])
def test_public_preset_reads_seconds_to_the_millisecond(tmp_path: Path, name: str) -> None:
    text = "SessionId\tItemId\tTime\n3\t214716935\t1396437466.94\n3\t7\t1396438212.318\n"
    if ".csv" in name:
        text = text.replace("\t", ",")
    data = text.encode()
    path = tmp_path / name
    path.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    found = read_clicks(path, PUBLIC)
    assert rows(found.clicks) == [("3", "214716935", 1396437466940), ("3", "7", 1396438212318)]
    assert found.rejected == {}
    assert found.rejected_path is None
    assert [file.name for file in tmp_path.iterdir()] == [name]


def test_sessions_come_in_order_of_their_first_click_and_ties_in_file_order(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    path.write_text("session_id,item_id,timestamp_ms\nb,y,9\na,p,20\nb,x,9\na,o,10\nc,q,9\nb,w,5\n")
    assert rows(read_clicks(path).clicks) == [
        ("b", "w", 5),
        ("b", "y", 9),
        ("b", "x", 9),
        ("c", "q", 9),
        ("a", "o", 10),
        ("a", "p", 20),
    ]


def test_parquet_keeps_the_types_of_ids_and_context(tmp_path: Path) -> None:
    path = tmp_path / "log.parquet"
    at = datetime(2024, 5, 6, 7, 8, 9, 123000, tzinfo=UTC)
    pl.DataFrame(
        {"user": [1.0, None], "item_id": [214716935, 7], "timestamp_ms": [at, at], "dwell": [2, 3]}
    ).write_parquet(path)
    found = read_clicks(path, Columns(session="user"))
    assert found.clicks.row(0, named=True) == {
        "session_id": "1",
        "item_id": "214716935",
        "timestamp_ms": 1714979289123,
        "dwell": 2,
    }
    assert found.rejected == {Reason.NO_SESSION_ID: 1}


def test_text_context_is_kept_as_it_came(tmp_path: Path) -> None:
    path = tmp_path / "log.tsv"
    path.write_text('SessionId\tItemId\tTime\tArea\n1\t"2\t3\t007\n1\t2\t4\t\n')
    clicks = read_clicks(path, PUBLIC).clicks
    assert clicks["Area"].to_list() == ["007", None]
    assert clicks["item_id"].to_list() == ['"2', "2"]


ids = st.text(min_size=1, max_size=8).filter(lambda t: "\ufffd" not in t and t not in NOTHING)
items = st.text(
    st.characters(blacklist_categories=("Cc", "Cs"), blacklist_characters="\ufffd"),
    min_size=1,
    max_size=8,
)


@pytest.mark.parametrize("name", ["log.parquet", "log.csv", "log.csv.gz"])
@given(
    clicks=st.lists(
        st.tuples(ids.filter(lambda text: text[0] != "\0"), items, st.integers(2**39, 2**40)),
        min_size=1,
        max_size=20,
    ).map(log)
)
@example(clicks=log([('a"b', 'c",d', 1), ("x\ny", " ", 2), ("x\ny", "\u2028", 2)]))
@settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40, deadline=None
)
def test_what_was_written_is_read_back(tmp_path: Path, name: str, clicks: pl.DataFrame) -> None:
    write_clicks(clicks, tmp_path / name)
    found = read_clicks(tmp_path / name)
    assert found.rejected == {}
    assert found.clicks.equals(clicks)


# Bad rows


def test_bad_rows_are_counted_by_reason_and_written_beside_the_log(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    good = b"s,a,1,home"
    bad = [
        (b"s,a,2,home,more,still", "bad_field"),
        (b"s,caf\xe9,3,home", "not_utf8"),
        (b",a,4,home", "no_session_id"),
        (b"\0s,a,4,home", "bad_session_id"),
        (b"s" * 257 + b",a,5,home", "bad_session_id"),
        (b"s,,6,home", "bad_item_id"),
        (b"s,a\tb,7,home", "bad_item_id"),
        (b"s," + "ä".encode() * 129 + b",8,home", "bad_item_id"),
        (b"s,a,soon,home", "bad_timestamp"),
        (b"s,a,-1,home", "bad_timestamp"),
        (b"s,a,,home", "bad_timestamp"),
        (b"s,a,253370764800000,home", "bad_timestamp"),  # the year 9999
        (b"s", "bad_item_id"),
    ]
    lines = [b"session_id,item_id,timestamp_ms,page"]
    for line, _ in bad:
        lines += [line, good]
    path.write_bytes(b"\n".join(lines))
    with capture_logs() as warnings:
        found = read_clicks(path)
    rejected = [w for w in warnings if w["event"] == "rows_rejected"]
    assert [(w["bad_timestamp"], w["bad_field"]) for w in rejected] == [(4, 1)]
    assert rows(found.clicks) == [("s", "a", 1)] * len(bad)
    expected = [reason for _, reason in bad]
    assert found.rejected == {
        reason: expected.count(reason) for reason in Reason if reason in expected
    }
    assert found.rejected_path == tmp_path / "log.csv.rejected.csv"
    written = pl.read_csv(found.rejected_path, infer_schema=False)
    assert written["reason"].to_list() == expected
    assert [int(line) for line in written["line"]] == list(range(2, 2 * len(bad) + 1, 2))
    assert written["record"].to_list() == [
        line.decode(errors="backslashreplace") for line, _ in bad
    ]
    assert (found.n_records, found.n_filtered) == (2 * len(bad), 0)


@pytest.mark.parametrize(
    ("line", "item"),
    [
        ('s,"un,500', None),
        ('s,"u"n,500', None),
        ('s,"a",500,3', None),
        ('s,u"n,500', 'u"n'),
        ('s,"u""n",500', 'u"n'),
        ('s,"u,n",500', "u,n"),
    ],
)
def test_a_stray_quote_takes_its_own_line_alone(
    tmp_path: Path, line: str, item: str | None
) -> None:
    path = tmp_path / "log.csv"
    good = [(f"s{n:03}", "i", n) for n in range(400)]
    lines = [f"{session},{item},{at}" for session, item, at in good]
    text = [*lines[:9], line, *lines[9:200], line, *lines[200:], "s,a,1,surplus"]
    path.write_text("\n".join(["session_id,item_id,timestamp_ms", *text]))
    found = read_clicks(path)
    read = [] if item is None else [("s", item, 500)] * 2
    assert rows(found.clicks) == good + read
    assert found.rejected == {Reason.BAD_FIELD: 3 - len(read)}


def test_a_field_may_stand_on_several_lines(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    page = '"first\nsecond, ""third"""'
    text = ['session_id,item_id,timestamp_ms,"the\npage"', f"s,a,1,{page}", "s,b,2,home,more"]
    path.write_text("\n".join(text))
    found = read_clicks(path)
    assert found.clicks["the\npage"].to_list() == ['first\nsecond, "third"']
    assert found.rejected == {Reason.BAD_FIELD: 1}


def test_two_columns_without_a_name_are_not_one_name_twice(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    path.write_text("session_id,item_id,timestamp_ms,,\ns,a,1,,\n")
    assert rows(read_clicks(path).clicks) == [("s", "a", 1)]


def test_every_reason_is_the_same_without_a_ragged_row(tmp_path: Path) -> None:
    """The fast reader and the one that looks for ragged rows see the same bad rows."""
    lines = [
        b"session_id,item_id,timestamp_ms",
        b"s,caf\xe9,3",
        b",a,4",
        b"s,,6",
        b"s,a\tb,7",
        b"s,a,soon",
        b"s,a,1",
    ]
    fast, slow = tmp_path / "fast.csv", tmp_path / "slow.csv"
    fast.write_bytes(b"\n".join(lines))
    slow.write_bytes(b"\n".join([*lines, b"s,a,1,surplus"]))
    by_fast, by_slow = read_clicks(fast), read_clicks(slow)
    assert by_fast.clicks.equals(by_slow.clicks)
    assert by_slow.rejected == {**by_fast.rejected, Reason.BAD_FIELD: 1}


@given(st.binary(max_size=200))
@example(b'a,b\n1,"x\n2,3\n')
@example(b"\xff\xfe,b\n\xff\n")
@example(b"session_id,item_id,timestamp_ms\n1,2,3,4\n")
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_arbitrary_bytes_are_clicks_or_one_sentence(tmp_path: Path, data: bytes) -> None:
    for name in ("log.csv", "log.tsv", "log.tsv.gz", "log.parquet"):
        path = tmp_path / name
        path.write_bytes(data)
        try:
            assert len(read_clicks(path).clicks) > 0
        except TrainError as error:
            assert str(path) in str(error)
            assert "\n" not in str(error)


@given(st.lists(st.sampled_from(["s,a,1", "s,a,x", "s,a,1,2", "s", ",a,1", '"s,a,1', ""])))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_no_row_is_lost(tmp_path: Path, lines: list[str]) -> None:
    """In a tab-separated log a line is a row, but for an empty one: each is a click or stands in
    the rejected file."""
    path = tmp_path / "log.tsv"
    text = ["session_id\titem_id\ttimestamp_ms", "t\tb\t5", *(x.replace(",", "\t") for x in lines)]
    path.write_text("\n".join(text) + "\n")
    found = read_clicks(path)
    assert len(found.clicks) + sum(found.rejected.values()) == len(lines) - lines.count("") + 1


# One sentence


@pytest.mark.parametrize(
    ("name", "data", "sentence"),
    [
        ("log.csv", b"s,item_id,timestamp_ms\n1,2,3\n", "has no column 'session_id'"),
        (
            "log.csv",
            b"session_id,item_id,timestamp_ms\n",
            "has a header but no clicks",
        ),
        ("log.csv", b"", "is empty: it has no header"),
        ("log.csv", b"session_id,item_id,timestamp_ms\ns,,1\n", "no good click (bad_item_id 1)"),
        ("log.csv", b"session_id,item_id,timestamp_ms\ns,a,x\n", "'x', which cannot be read"),
        ("log.parquet", b"not a parquet file at all", "cannot be read"),
        ("log.csv.gz", gzip.compress(b"session_id")[:12] + b"broken" * 5, "copy it again"),
        (
            "log.tsv.gz",
            gzip.compress(b"session_id\titem_id\ttimestamp_ms\n" + b"s\ta\t1\n" * 99)[:-9],
            "is cut short",
        ),
        ("log.json", b"{}", "no line is an object"),
        ("log.csv", None, "does not exist"),
    ],
)
def test_an_unusable_log_is_one_sentence(
    tmp_path: Path, name: str, data: bytes | None, sentence: str
) -> None:
    path = tmp_path / name
    if data is not None:
        path.write_bytes(data)
    with pytest.raises(TrainError) as raised:
        read_clicks(path)
    assert sentence in str(raised.value)
    assert str(path) in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_column_of_lists_is_no_item(tmp_path: Path) -> None:
    path = tmp_path / "log.parquet"
    pl.DataFrame({"session_id": ["s"], "item_id": [[1]], "timestamp_ms": [1]}).write_parquet(path)
    with pytest.raises(TrainError, match="column 'item_id' has type List"):
        read_clicks(path)


def test_bad_rows_of_a_log_in_a_folder_of_others_come_to_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "theirs" / "log.csv"
    path.parent.mkdir()
    path.write_text("session_id,item_id,timestamp_ms\ns,a,1\ns,a,x\n")
    monkeypatch.chdir(tmp_path)
    # Tests may run as root, who may write everywhere.
    monkeypatch.setattr("os.access", lambda folder, mode: folder != path.parent)
    assert read_clicks(path).rejected_path == Path("log.csv.rejected.csv")
    assert (tmp_path / "log.csv.rejected.csv").exists()


@pytest.mark.parametrize(
    ("log", "name"),
    [
        ("*.parquet", "logs/day.rejected.csv"),
        (".", "logs/day.rejected.csv"),
        ("../*/*.parquet", "logs.rejected.csv"),
        ("../day/*.parquet", "logs/day.rejected.csv"),
    ],
)
def test_bad_rows_of_a_relative_glob_come_beside_its_folder_under_the_folders_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, log: str, name: str
) -> None:
    day = tmp_path / "logs" / "day"
    day.mkdir(parents=True)
    frame = pl.DataFrame({"session_id": ["s"] * 2, "item_id": ["a"] * 2, "timestamp_ms": [1, -1]})
    frame.write_parquet(day / "log.parquet")
    monkeypatch.chdir(day)
    found = read_clicks(log).rejected_path
    assert found is not None
    assert found.resolve() == tmp_path / name


def test_an_unwritable_place_for_bad_rows_is_one_sentence(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    path.write_text("session_id,item_id,timestamp_ms\ns,a,1\ns,a,x\n")
    with pytest.raises(TrainError, match="cannot write the log's bad rows to"):
        read_clicks(path, rejected_path=tmp_path / "absent" / "bad.csv")


# Sessions out of visitors


def test_visitors_are_cut_at_gaps_longer_than_the_timeout(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    path.write_text("who,item_id,at\nv,a,0\nv,b,1800\nv,c,3601\nw,d,10\nv,e,9000\n")
    columns = Columns(visitor="who", time="at", time_unit="s")
    found = read_clicks(path, columns, idle_timeout_s=1800)
    assert rows(found.clicks) == [
        ("v-1", "a", 0),
        ("v-1", "b", 1_800_000),
        ("w-1", "d", 10_000),
        ("v-2", "c", 3_601_000),
        ("v-3", "e", 9_000_000),
    ]
    with capture_logs() as logs:
        without = read_clicks(path, columns)
    assert without.clicks.equals(found.clicks)
    assert without.idle_timeout_s == 1800
    assert [line.get("idle_timeout_s") for line in logs if "log_format" in line["event"]] == [1800]


def test_a_session_without_a_long_gap_keeps_its_name() -> None:
    clicks = log([("s", "a", 0), ("s", "b", 5001), ("t", "c", 1), ("t", "d", 5001)])
    with_context = clicks.with_columns(part=pl.col("item_id"))
    assert cut_sessions(with_context, 5)["part"].to_list() == ["a", "c", "d", "b"]
    assert rows(cut_sessions(clicks, 5)) == [
        ("s-1", "a", 0),
        ("t", "c", 1),
        ("t", "d", 5001),
        ("s-2", "b", 5001),
    ]
    assert cut_sessions(clicks, 6) is clicks


def test_a_cut_session_never_takes_the_name_of_another() -> None:
    clicks = log([("s", "a", 0), ("s", "b", 5001), ("s-2", "c", 0)])
    with pytest.raises(TrainError, match="other sessions"):
        cut_sessions(clicks, 5)


@given(logs, st.integers(1, 10**9))
def test_no_gap_is_left_and_none_is_made(clicks: pl.DataFrame, idle_timeout_s: int) -> None:
    cut = cut_sessions(clicks, idle_timeout_s, number_all=True)
    gap_ms = cut.select(pl.col("timestamp_ms").diff().over("session_id").max()).to_series().max()
    assert gap_ms is None or gap_ms <= idle_timeout_s * 1000  # type: ignore[operator]  # an int
    key = pl.col("session_id").cast(pl.String).str.replace(r"-\d+$", "")
    assert sorted(rows(cut.with_columns(key))) == sorted(rows(clicks))
    ends = cut.group_by(key.alias("key"), "session_id").agg(
        first=pl.col("timestamp_ms").min(), last=pl.col("timestamp_ms").max()
    )
    between = ends.sort("key", "first").select(
        (pl.col("first") - pl.col("last").shift()).over("key").min()
    )
    smallest = between.item() if len(between) else None
    assert smallest is None or smallest > idle_timeout_s * 1000


# Filters


def test_a_dropped_item_shortens_sessions_until_nothing_changes() -> None:
    # c has one click, so t falls to one click; without t, b has one click; and so on.
    clicks = log(
        [
            ("s", "a", 0),
            ("s", "b", 1),
            ("t", "b", 2),
            ("t", "c", 3),
            ("u", "a", 4),
            ("u", "d", 5),
            ("u", "d", 6),
        ]
    )
    found = filter_clicks(clicks, Filters(min_item_support=2, min_session_length=2))
    assert rows(found.clicks) == [("u", "d", 5), ("u", "d", 6)]
    assert (found.rare_item_clicks, found.short_session_clicks, found.repeat_clicks) == (3, 2, 0)


def test_dropping_an_item_brings_repeats_together() -> None:
    clicks = log([("s", "a", 0), ("s", "x", 1), ("s", "a", 2), ("s", "b", 3), ("t", "a", 4)])
    clicks = pl.concat([clicks, log([("t", "b", 5)])])
    found = filter_clicks(clicks, Filters(min_item_support=2, drop_repeats=True))
    assert rows(found.clicks) == [("s", "a", 0), ("s", "b", 3), ("t", "a", 4), ("t", "b", 5)]
    assert (found.rare_item_clicks, found.repeat_clicks) == (1, 1)


def test_a_robots_session_is_dropped_before_items_are_counted() -> None:
    robot = [("r", "b", at) for at in range(4)]
    clicks = log([*robot, ("s", "a", 5), ("s", "b", 6), ("s", "a", 7)])
    found = filter_clicks(clicks, Filters(max_session_length=3, min_item_support=2))
    assert rows(found.clicks) == [("s", "a", 5), ("s", "a", 7)]
    assert (found.long_session_clicks, found.rare_item_clicks) == (4, 1)
    assert len(filter_clicks(clicks, Filters(max_session_length=4)).clicks) == 7
    assert len(filter_clicks(clicks, Filters(max_session_length=0)).clicks) == 7


def test_repeats_that_are_dropped_do_not_make_a_session_long() -> None:
    clicks = log([("s", "a", 0), ("s", "a", 1), ("s", "b", 2)])
    found = filter_clicks(clicks, Filters(max_session_length=2, drop_repeats=True))
    assert rows(found.clicks) == [("s", "a", 0), ("s", "b", 2)]


def test_a_longest_session_below_the_shortest_is_refused() -> None:
    with pytest.raises(ValidationError, match="max_session_length=2 is below min_session_length=3"):
        Filters(min_session_length=3, max_session_length=2)


@given(logs, st.integers(1, 4), st.integers(1, 4), st.integers(0, 4), st.booleans())
def test_filtering_reaches_a_fixed_point(
    clicks: pl.DataFrame, support: int, length: int, further: int, drop_repeats: bool
) -> None:
    filters = Filters(
        min_item_support=support,
        min_session_length=length,
        max_session_length=length + further,
        drop_repeats=drop_repeats,
    )
    found = filter_clicks(clicks, filters)
    assert filter_clicks(found.clicks, filters).clicks.equals(found.clicks)
    assert len(clicks) == len(found.clicks) + sum(found[1:])
    assert (found.clicks["item_id"].value_counts()["count"] >= support).all()
    lengths = found.clicks["session_id"].value_counts()["count"]
    assert lengths.is_between(length, length + further).all()


@given(logs, st.integers(1, 3))
def test_filters_that_nothing_fails_change_nothing(clicks: pl.DataFrame, times: int) -> None:
    once = Filters(min_item_support=1, min_session_length=1)
    assert filter_clicks(clicks, once).clicks.equals(clicks)


def test_the_last_days_are_counted_between_beginnings_and_before_the_other_filters() -> None:
    day_ms = 86_400_000
    clicks = log(
        [
            ("s", "a", 0),
            ("s", "b", 3 * day_ms),
            ("t", "b", day_ms + 1),
            ("t", "c", day_ms + 2),
            *[("u", "c", 2 * day_ms)] * 2,
        ]
    )
    found = filter_clicks(clicks, Filters(last_days=1, min_item_support=2))
    assert rows(found.clicks) == [("u", "c", 2 * day_ms)] * 2
    assert (found.old_clicks, found.rare_item_clicks, found.short_session_clicks) == (2, 1, 1)
    assert filter_clicks(clicks, Filters(last_days=0.5)).old_clicks == 4
    assert filter_clicks(clicks, Filters(last_days=2.1)).clicks.equals(clicks)


@given(logs, st.floats(1e-9, 1e5))
def test_keeping_the_last_days_again_changes_nothing(clicks: pl.DataFrame, days: float) -> None:
    filters = Filters(last_days=days, min_session_length=1)
    once = filter_clicks(clicks, filters)
    assert filter_clicks(once.clicks, filters).clicks.equals(once.clicks)
    assert clicks.is_empty() or not once.clicks.is_empty()


# Splits


def test_the_last_fraction_of_the_sessions_is_held_out() -> None:
    clicks = log([(name, "a", at) for at, name in enumerate("jihgfedcba") for _ in range(2)])
    split = split_by_time(clicks, fraction=0.2)
    assert split.test["session_id"].unique(maintain_order=True).to_list() == ["b", "a"]
    assert len(split.train) == 16


def test_the_last_day_is_counted_from_the_last_click() -> None:
    day_ms = 86_400_000
    clicks = log([("s", "a", 0), ("s", "b", day_ms), ("t", "a", 1), ("u", "a", day_ms)])
    split = split_by_time(clicks, days=1)
    assert split.train["session_id"].unique().to_list() == ["s"]
    assert rows(split.test) == [("t", "a", 1), ("u", "a", day_ms)]


def test_a_split_without_a_test_side_is_one_sentence() -> None:
    clicks = log([("s", "a", 0), ("s", "b", 1)])
    with pytest.raises(TrainError, match="a log of 1 session cannot be split"):
        split_by_time(clicks)
    clicks = log([("s", "a", 0), ("s", "b", 1), ("t", "a", 2), ("t", "b", 3)])
    with pytest.raises(TrainError, match="none of the log's 2 sessions"):
        split_by_time(clicks, fraction=0.1)
    with pytest.raises(TrainError, match="all of the log's 2 sessions"):
        split_by_time(clicks, days=1)


def test_test_items_unseen_in_training_are_dropped_and_counted() -> None:
    clicks = log([("s", "a", 0), ("s", "b", 1), ("t", "a", 2), ("t", "new", 3), ("t", "b", 4)])
    split = split_by_time(clicks, fraction=0.5)
    train = build_sessions(split.train)
    test = build_sessions(split.test, train.catalogue)
    assert test.dropped_clicks == 1
    assert [train.catalogue.item_ids[i] for i in test.sessions.item_index] == ["a", "b"]


@given(logs, st.floats(0.1, 0.9), st.one_of(st.none(), st.integers(1, 10_000)))
def test_a_split_is_a_partition_by_time(
    clicks: pl.DataFrame, fraction: float, days: int | None
) -> None:
    try:
        split = split_by_time(clicks, fraction, days)
    except TrainError:
        return
    assert pl.concat([split.train, split.test]).equals(clicks)
    assert not set(split.train["session_id"]) & set(split.test["session_id"])
    newest = split.train.select(pl.col("timestamp_ms").min().over("session_id").max()).item(0, 0)
    assert newest <= split.test.item(0, "timestamp_ms")
