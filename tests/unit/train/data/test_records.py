"""Records of the clicks topic as rows: the stream's verdicts, and text for every scalar."""

import json

import polars as pl
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from stream.contract.click import BadClick, Click, ClickParser
from stream.contract.click import Record as StreamRecord
from stream.contract.context import Context, ContextField
from train.data.context import FIRST_VALUE, MIN_SUPPORT, context_indices, learn_fields
from train.data.records import (
    NAMELESS,
    TRAIL_CLICKS,
    TRAIL_MS,
    Record,
    Refusal,
    Repeats,
    further_fields,
    parse_record,
    texts,
)

NOW_MS = 1_700_000_000_000
GOOD = {"session_id": "s", "item_id": "i", "timestamp_ms": 5, "event_id": "e", "event_type": "t"}

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
    ours, theirs = parse_record(record), ClickParser()(StreamRecord(*record))
    if isinstance(theirs, BadClick):
        assert ours == theirs.reason.value
    else:
        assert not isinstance(ours, Refusal)
        assert (ours.session_id.encode(), ours.item_id) == (theirs.session, theirs.item_id)
        assert ours.timestamp_ms == theirs.timestamp_ms
        assert record.value is not None
        further_fields(record.value)  # raises nothing


def test_further_fields_are_those_that_say_something_and_are_not_the_wires() -> None:
    value = {**GOOD, "page": "home", "n": 3, "old": False, "tags": ["a"], "at": {}, "no": None}
    assert further_fields(json.dumps(value).encode()) == {
        **{"page": "home", "n": 3, "old": False},
        **{"tags": NAMELESS, "at": NAMELESS},
    }


@pytest.mark.parametrize("bad", [b'"x":1e999', b'"x":"\xff"', b'"\xff":1', b'"x":[1e999]'])
def test_a_field_that_cannot_be_read_takes_no_other_with_it(bad: bytes) -> None:
    value = b'{"session_id":"s","item_id":"i","timestamp_ms":5,%s,"page":"home"}' % bad
    assert not isinstance(parse_record(Record(0, 7, NOW_MS, b"s", value)), Refusal)
    assert further_fields(value)["page"] == "home"


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=2), inner),
    max_leaves=4,
) | st.text(max_size=70)
readable = json_values.map(lambda value: json.dumps(value).encode())
odd_json = st.sampled_from(
    [
        *(b"1e999", b"-1e999", b'"\xff"', b"[1e999]", b'""', b"null", b" 3 ", b"3.0", b"3e0"),
        *(b"-9223372036854775808.0", b"1" * 400, b"1." + b"0" * 400, b'"%s"' % (b"a" * 65)),
        b'"%s"' % (b"\\u0061" * 64),
        b"[" * 300 + b"]" * 300,
        b'"%s"' % NAMELESS.encode(),
    ]
)


@given(st.lists(readable | odd_json, min_size=1, max_size=6))
@settings(deadline=None)
def test_a_collected_field_has_the_number_that_the_stream_gives_it(said: list[bytes]) -> None:
    values = [
        b'{"session_id":"s","item_id":"i","timestamp_ms":5,"page":%s}' % json for json in said
    ]
    column = texts([further_fields(value).get("page") for value in values]).alias("page")
    fields = learn_fields(_clicks(pl.concat([column] * MIN_SUPPORT)), ["page"])
    stream = Context([ContextField(f.name, f.kind, f.values) for f in fields])
    numbers = []
    for value in values:
        click = ClickParser(stream.columns)(StreamRecord(0, 7, NOW_MS, b"s", value))
        assert isinstance(click, Click)
        numbers.append(stream.indices(click.context, 5, None))
    assert context_indices(_clicks(column), fields).tolist() == numbers


@given(st.lists(st.one_of(st.none(), st.floats(allow_nan=False, allow_infinity=False))))
@example([3.0, 1.5, 1e-7, 1e300, -0.0, 2.0**63])
@settings(deadline=None, max_examples=30)
def test_a_number_is_named_as_the_context_of_a_numeric_column_names_it(
    values: list[float | None],
) -> None:
    numeric = pl.Series("x", values, dtype=pl.Float64)
    fields = learn_fields(_clicks(pl.concat([numeric] * 20)), ["x"])
    by_number = context_indices(_clicks(numeric), fields)
    assert context_indices(_clicks(texts(values).alias("x")), fields).tolist() == by_number.tolist()
    assert by_number[numeric.is_not_null().to_numpy()].min(initial=9) >= FIRST_VALUE


def test_every_scalar_has_one_text() -> None:
    assert texts(["007", 7, 7.0, True, False, None, "", 10**30]).to_list() == [
        *("007", "7", "7", "true", "false", None, "", "1" + "0" * 30)
    ]


def _clicks(column: pl.Series) -> pl.DataFrame:
    at = pl.Series("timestamp_ms", range(len(column)), dtype=pl.Int64)
    return pl.DataFrame([at, at.cast(pl.String).alias("session_id"), column])


# Repeated events


def test_an_event_is_repeated_within_its_session_alone() -> None:
    repeats = Repeats()
    assert repeats.keep("s", "e", 1)
    assert repeats.keep("t", "e", 1)
    assert not repeats.keep("s", "e", 99)
    assert repeats.keep("s", "f", 99)


@pytest.mark.parametrize("nothing", [None, ""])
def test_a_click_without_an_event_id_is_never_repeated(nothing: str | None) -> None:
    repeats = Repeats()
    assert repeats.keep("s", nothing, 1)
    assert repeats.keep("s", nothing, 1)


def test_the_trail_is_fifty_clicks_and_a_day_long() -> None:
    repeats = Repeats()
    assert repeats.keep("s", "first", 1)
    for click in range(TRAIL_CLICKS - 1):
        assert repeats.keep("s", str(click), 1)
    assert not repeats.keep("s", "first", 1)
    assert repeats.keep("s", "one more", 1)
    assert repeats.keep("s", "first", 1)  # 50 clicks ago
    assert repeats.keep("t", None, 1 + TRAIL_MS)
    assert not repeats.keep("s", "one more", 2)
    assert repeats.keep("t", None, 2 + TRAIL_MS)
    assert repeats.keep("s", "one more", 2)


clicks_of_events = st.lists(
    st.tuples(
        st.sampled_from("st"), st.sampled_from([None, "", *"abc"]), st.integers(0, 3 * TRAIL_MS)
    ),
    max_size=40,
)


@given(clicks_of_events, st.integers(0, 40))
def test_forgetting_changes_nothing_that_is_kept(
    clicks: list[tuple[str, str | None, int]], when: int
) -> None:
    whole, forgetful = Repeats(), Repeats()
    for number, click in enumerate(clicks):
        if number == when:
            forgetful.forget()
        assert whole.keep(*click) == forgetful.keep(*click)
