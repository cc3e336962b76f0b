"""A collected log on disk: what a killed run leaves, and what the next one makes of it."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import polars as pl
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace
from structlog.testing import capture_logs

from stream.contract.click import BadClick, Click, ClickParser, Reason, Record
from stream.contract.context import FIRST_VALUE, Context
from train.command import TrainError
from train.data.clicks import read_clicks
from train.data.context import MIN_SUPPORT, context_indices, learn_fields
from train.data.parts import (
    MAX_FIELDS,
    NAMELESS,
    STATE,
    Begin,
    CollectState,
    Parts,
    load_state,
)

BEGIN = Begin(cluster="c", topic="clicks", since=None, from_offsets={})
NOW_MS = 1_700_000_000_000


def record(offset: int, **fields: object) -> Record:
    """Click number ``offset``, one of three sessions'."""
    session_id = f"s{offset % 3}"
    wire = {"session_id": session_id, "item_id": f"i{offset}", "timestamp_ms": NOW_MS + offset}
    click = wire | fields
    return Record(0, offset, NOW_MS, session_id.encode(), json.dumps(click).encode())


def take(out: Path, records: Sequence[Record], *, per_part: int = 3, lost: int = 0) -> CollectState:
    """A run that is killed with the last ``lost`` records taken and not committed."""
    parts = Parts(out, load_state(out, BEGIN))
    parts.begin_partition(0)
    for number, taken in enumerate(records, 1):
        parts.take(taken)
        parts.reach(taken.partition, taken.offset + 1)
        if len(parts) >= per_part and number <= len(records) - lost:
            parts.commit()
    if not lost:
        parts.commit()
    return parts.state


def rows(out: Path) -> pl.DataFrame:
    return pl.concat(
        [pl.read_parquet(file) for file in sorted(out.glob("*.parquet"))], how="diagonal"
    )


@pytest.mark.parametrize("killed_after", range(1, 20, 3))
def test_a_killed_run_goes_on_to_the_rows_of_an_unbroken_one(
    tmp_path: Path, killed_after: int
) -> None:
    # Events 0 to 5 come round and round: three quarters of the clicks are repeats.
    records = [record(n, event_id=str(n % 6), page=n % 4) for n in range(20)]
    unbroken, broken = tmp_path / "unbroken", tmp_path / "broken"
    unbroken.mkdir()
    broken.mkdir()
    whole = take(unbroken, records)
    take(broken, records[:killed_after], lost=min(2, killed_after))
    (broken / "clicks-000099.parquet").write_bytes(b"renamed, and killed before it counted")
    (broken / "clicks-000001.parquet.partial").write_bytes(b"half of a")
    reached = load_state(broken, BEGIN).next_offset.get(0, 0)
    assert reached < killed_after
    state = take(broken, records[reached:])
    assert state.model_dump(exclude={"parts"}) == whole.model_dump(exclude={"parts"})
    assert rows(broken).equals(rows(unbroken))
    assert (state.clicks, state.repeated) == (6, 14)


def test_a_folder_that_8ec5a42_collected_is_read_and_continued(tmp_path: Path) -> None:
    folder = shutil.copytree(Path(__file__).parent / "collected_by_8ec5a42", tmp_path / "log")
    event = {"event_id": "e3", "session_id": "s0"}
    state = take(folder, [record(6, **event), record(7, item_id=""), record(9, page=True)])
    assert state.refused == {Reason.BAD_ITEM_ID: 2, Reason.NOT_JSON: 1}
    assert (state.clicks, state.repeated, state.next_offset) == (4, 2, {0: 10})
    clicks = rows(folder)
    assert clicks["kafka_offset"].to_list() == [0, 3, 5, 9]
    assert clicks["page"].to_list() == ["0", "1.5", "2.5", "true"]
    assert clicks["tags"].to_list() == [*[NAMELESS] * 3, None]
    assert read_clicks(folder).clicks["item_id"].to_list() == ["i0", "i3", "i9", "i5"]


def test_bad_clicks_are_counted_and_skipped(tmp_path: Path) -> None:
    bad = replace(record(1), key=b"other"), replace(record(2), value=b"{"), record(4, item_id="")
    state = take(tmp_path, [record(0), *bad, record(3)])
    assert state.refused == {
        Reason.KEY_MISMATCH: 1,
        Reason.NOT_JSON: 1,
        Reason.BAD_ITEM_ID: 1,
    }
    assert rows(tmp_path)["kafka_offset"].to_list() == [0, 3]
    assert state.next_offset == {0: 4}


def test_fields_of_later_clicks_are_columns_too(tmp_path: Path) -> None:
    records = [record(n) for n in range(3)]
    records += [record(3, page="home", event_type="view"), record(4, page=7), record(5, page=True)]
    take(tmp_path, records)
    clicks = read_clicks(tmp_path).clicks.sort("kafka_offset")
    assert clicks["page"].to_list() == [None, None, None, "home", "7", "true"]
    assert clicks["event_type"].to_list() == [None, None, None, "view", None, None]
    assert clicks["kafka_topic"].unique().to_list() == ["clicks"]
    assert clicks["session_id"].to_list() == ["s0", "s1", "s2"] * 2
    assert not (tmp_path.parent / f"{tmp_path.name}.rejected.csv").exists()


def test_names_without_end_are_cut_off_with_a_warning(tmp_path: Path) -> None:
    records = [record(0, **{f"f{n}": n for n in range(MAX_FIELDS + 2)}), record(1, late=1)]
    with capture_logs() as warnings:
        state = take(tmp_path, records)
    assert [warning["event"] for warning in warnings] == ["fields_left_out"]
    assert len(state.fields) == MAX_FIELDS
    assert "late" not in rows(tmp_path).columns


def test_a_click_cannot_say_where_it_stands_in_kafka(tmp_path: Path) -> None:
    take(tmp_path, [record(5, kafka_offset=77, kafka_topic="other")])
    assert rows(tmp_path).row(0, named=True)["kafka_offset"] == 5


def test_a_folder_of_another_beginning_or_of_other_files_is_refused(tmp_path: Path) -> None:
    take(tmp_path, [record(0)])
    with pytest.raises(TrainError, match="with topic=clicks, not other"):
        load_state(tmp_path, BEGIN.model_copy(update={"topic": "other"}))
    (tmp_path / STATE).write_text("{}")
    with pytest.raises(TrainError, match=f"{STATE} does not describe a collected log"):
        load_state(tmp_path, BEGIN)
    (tmp_path / STATE).unlink()
    with pytest.raises(TrainError, match="holds Parquet files but no"):
        load_state(tmp_path, BEGIN)


# -- what becomes of a record ------------------------------------------------------------------

GOOD = {
    **{"session_id": "s", "item_id": "i", "timestamp_ms": NOW_MS},
    **{"event_id": "e", "event_type": "t"},
}


def taken(*values: bytes) -> pl.DataFrame:
    """The rows of one click a value."""
    with TemporaryDirectory() as folder:
        take(Path(folder), [Record(0, n, NOW_MS, b"s", value) for n, value in enumerate(values)])
        return rows(Path(folder))


odd = st.one_of(
    st.none(),
    st.text(max_size=3),
    st.sampled_from(["", "\0s", "a\tb", "s" * 257, "ä" * 129, "\ufffd"]),
    st.integers(-1, 10**30),
    st.sampled_from([NOW_MS + 300_000, NOW_MS + 300_001, 1.5, True]),
    st.lists(st.integers(), max_size=1),
)


@st.composite
def records(draw: st.DrawFn) -> Record:
    """A good click with some of its fields changed, its bytes and its key perhaps too."""
    fields: dict[str, object] = {**GOOD, "page": "home"}
    for name in draw(st.sets(st.sampled_from(sorted(fields)), max_size=2)):
        if draw(st.booleans()):
            fields[name] = draw(odd)
        else:
            del fields[name]
    value = bytearray(json.dumps(fields, ensure_ascii=draw(st.booleans())).encode())
    if draw(st.integers(0, 4)) == 0:
        value[draw(st.integers(0, len(value) - 1))] = draw(st.integers(0, 255))
    same = str(fields.get("session_id", "s")).encode()
    key = draw(st.one_of(st.just(same), st.sampled_from([None, b"", b"other"])))
    return Record(0, 7, NOW_MS, key, draw(st.sampled_from([bytes(value), bytes(value), None])))


@settings(deadline=None)
@given(records())
@example(Record(0, 7, NOW_MS, b"s", b"[" * 100_000))
@example(Record(0, 7, NOW_MS, b"s", b'{"session_id":"s","item_id":"\xff","timestamp_ms":1}'))
@example(Record(0, 7, NOW_MS, b"s", b'{"session_id":5,"item_id":'))
def test_the_verdict_and_its_reason_are_the_streams(record: Record) -> None:
    theirs = ClickParser()(record)
    parts = Parts(Path(), CollectState(begin=BEGIN))
    parts.take(record)
    if isinstance(theirs, BadClick):
        assert (len(parts), parts.state.refused) == (0, {theirs.reason: 1})
    else:
        assert (len(parts), parts.state.refused) == (1, {})


def test_further_fields_are_those_with_a_value_that_are_not_the_wires() -> None:
    value = {**GOOD, "page": "home", "n": 3, "old": False, "tags": ["a"], "at": {}, "no": None}
    columns = taken(json.dumps(value).encode()).drop(*GOOD, pl.selectors.starts_with("kafka_"))
    assert columns.row(0, named=True) == {
        **{"page": "home", "n": "3", "old": "false"},
        **{"tags": NAMELESS, "at": NAMELESS},
    }


@pytest.mark.parametrize("bad", [b'"x":1e999', b'"x":[1e999]'])
def test_a_field_that_cannot_be_read_takes_no_other_with_it(bad: bytes) -> None:
    value = b'{"session_id":"s","item_id":"i","timestamp_ms":%d,%s,"page":"home"}' % (NOW_MS, bad)
    assert taken(value)["page"].to_list() == ["home"]


def test_every_scalar_has_one_text() -> None:
    values = ["007", 7, 7.0, True, False, None, "", 10**30, "long" * 1000]
    found = taken(*(json.dumps({**GOOD, "event_id": None, "x": x}).encode() for x in values))
    assert found["x"].to_list() == [
        *("007", "7", "7", "true", "false", None, "", "1" + "0" * 30, "long" * 1000)
    ]


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=2), inner),
    max_leaves=4,
) | st.text(max_size=70)
readable = json_values.map(lambda value: json.dumps(value).encode())
odd_json = st.sampled_from(
    [
        *(b"1e999", b"-1e999", b"[1e999]", b'""', b"null", b" 3 ", b"3.0", b"3e0"),
        *(b"-9223372036854775808.0", b"1" * 400, b"1." + b"0" * 400, b'"%s"' % (b"a" * 65)),
        b'"%s"' % (b"\\u0061" * 64),
        b' "%s" ' % (b"\\u0061" * 65),
        b"[" * 300 + b"]" * 300,
        b'"%s"' % NAMELESS.encode(),
    ]
)


@given(st.lists(readable | odd_json, min_size=1, max_size=6))
@settings(deadline=None)
def test_a_collected_field_has_the_number_that_the_stream_gives_it(pages: list[bytes]) -> None:
    values = [
        b'{"session_id":"s","item_id":"i","timestamp_ms":%d,"page":%s}' % (NOW_MS, page)
        for page in pages
    ]
    found = taken(*values)
    column = found["page"] if "page" in found else pl.Series("page", [None] * len(pages), pl.String)
    fields = learn_fields(_clicks(pl.concat([column] * MIN_SUPPORT)), ["page"])
    stream = Context(fields)
    numbers = []
    for value in values:
        click = ClickParser(stream.columns)(Record(0, 7, NOW_MS, b"s", value))
        assert isinstance(click, Click)
        numbers.append(stream.indices(click.context, 5, None))
    assert context_indices(_clicks(column), fields).tolist() == numbers


@given(st.lists(st.one_of(st.none(), st.floats(allow_nan=False, allow_infinity=False)), min_size=1))
@example([3.0, 1.5, 1e-7, 1e300, -0.0, 2.0**63])
@settings(deadline=None, max_examples=30)
def test_a_number_is_named_as_the_context_of_a_numeric_column_names_it(
    values: list[float | None],
) -> None:
    numeric = pl.Series("x", values, dtype=pl.Float64)
    fields = learn_fields(_clicks(pl.concat([numeric] * 20)), ["x"])
    by_number = context_indices(_clicks(numeric), fields)
    found = taken(*(json.dumps({**GOOD, "event_id": None, "x": x}).encode() for x in values))
    if "x" in found:
        assert context_indices(_clicks(found["x"]), fields).tolist() == by_number.tolist()
    assert by_number[numeric.is_not_null().to_numpy()].min(initial=9) >= FIRST_VALUE


def _clicks(column: pl.Series) -> pl.DataFrame:
    at = pl.Series("timestamp_ms", range(len(column)), dtype=pl.Int64)
    return pl.DataFrame([at, at.cast(pl.String).alias("session_id"), column])
