"""Bytes in, a click or a reason out: never an exception, and every click fits into a state."""

import json
import random
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from msgspec.structs import replace

from stream.contract.click import (
    EARLIEST_MS,
    MAX_FUTURE_MS,
    BadClick,
    Click,
    ClickParser,
    Reason,
    Record,
)
from stream.contract.context import MISSING, UNKNOWN, Context, ContextField
from stream.contract.decoders import WireClick
from stream.session import LastOutcome, SessionState, TrailClick, decode_state, encode_state

NOW_MS = 1_764_000_000_000
COLUMNS = ("more", "event_type", "class", "dwell ms", "column_0")
parse_click, parse_with_columns = ClickParser(), ClickParser(COLUMNS)
YEAR_9999_MS = 253_402_300_799_000


def record(value: bytes | None, key: bytes | None = b"s", timestamp_ms: int = NOW_MS) -> Record:
    return Record(0, 0, timestamp_ms, key, value)


def click_json(**fields: Any) -> bytes:
    return json.dumps(
        {"session_id": "s", "item_id": "i", "timestamp_ms": NOW_MS} | fields, ensure_ascii=False
    ).encode()


def reason_of(value: bytes | None, key: bytes | None = b"s") -> Reason | None:
    parsed = checked(record(value, key))
    return parsed.reason if isinstance(parsed, BadClick) else None


def checked(record: Record) -> Click | BadClick:
    """The click as a bundle with context columns reads it, once the laws are checked.

    A click is good or bad whatever columns a bundle declares. Every accepted one encodes into a
    state and comes back; every refusal says why.
    """
    plain, parsed = parse_click(record), parse_with_columns(record)
    if isinstance(parsed, BadClick):
        assert parsed.detail
        assert parsed == plain
        return parsed
    assert plain == replace(parsed, context=b"")
    click = TrailClick(parsed.item_id, parsed.timestamp_ms, parsed.event_hash, parsed.context)
    nothing = np.empty(0, np.float32)
    state = SessionState(
        "0" * 16,
        parsed.timestamp_ms,
        parsed.timestamp_ms,
        1,
        LastOutcome.MODEL,
        (click,),
        nothing,
        np.empty(0, np.int32),
        nothing,
    )
    back = decode_state(encode_state(state))
    assert back.trail == (click,)
    assert back.last_click_ms == parsed.timestamp_ms
    assert 1 <= len(parsed.session) <= 256
    assert parsed.session[0] != 0
    assert len(parsed.context) <= len(COLUMNS) * (4 + 1 + 64)
    return parsed


def test_a_click_with_every_known_field_and_more_is_good() -> None:
    value = click_json(event_id="e", event_type="view", dwell_ms=3, tags=["a", {"b": None}])
    parsed = parse_click(record(value))
    assert isinstance(parsed, Click)
    assert (parsed.session, parsed.item_id, parsed.timestamp_ms) == (b"s", "i", NOW_MS)
    assert parsed.event_hash != 0


def test_event_hash_is_the_events_own_and_0_without_one() -> None:
    def event_hash(**fields: Any) -> int:
        parsed = parse_click(record(click_json(**fields)))
        assert isinstance(parsed, Click)
        return parsed.event_hash

    assert event_hash() == event_hash(event_id=None) == event_hash(event_id="") == 0
    assert event_hash(event_id="a") == event_hash(event_id="a", item_id="other")
    assert event_hash(event_id="a") != event_hash(event_id="b")


@pytest.mark.parametrize("name", COLUMNS)
def test_a_context_column_is_read_under_any_name(name: str) -> None:
    context = Context([ContextField(name, "column", ("x", "view"))])

    def number(**fields: Any) -> int:
        parsed = ClickParser(context.columns)(record(click_json(**fields)))
        assert isinstance(parsed, Click)
        (index,) = context.indices(parsed.context, NOW_MS, None)
        return index

    assert number(**{name: "view"}) == 3
    assert number(**{name: "other"}) == number(**{name: "v" * 65}) == UNKNOWN
    assert number() == number(**{name: None}) == number(**{name: ""}) == MISSING
    assert number(**{f"{name}s": "view"}) == MISSING


@pytest.mark.parametrize(
    ("event_type", "expected"),
    [
        *((b"3", "3"), (b"3.0", "3"), (b"true", "true"), (b"1e999", None), (b"1" * 5000, None)),
        *((b'["view"]', None), (b"{}", None), (b"[" * 500 + b"]" * 500, None), (b'""', None)),
        (b'"%b"' % (b"v" * 5000), "v" * 5000),
    ],
)
@pytest.mark.parametrize("behind", [b"", b',"more":{"a":[1e999,"\\u00e9\xc3\xa9"]}'])
def test_an_event_type_of_any_shape_never_makes_a_click_bad(
    event_type: bytes, expected: str | None, behind: bytes
) -> None:
    value = click_json()[:-1] + b',"event_type":' + event_type + behind + b"}"
    click = checked(record(value))
    assert isinstance(click, Click) and (click.event_type or None) == expected


NO_JSON = [
    *(b'"\xff":1', b'"more":"\xff"', b'"more":["\xed\xa0\x80"]', b'"more":"\\ud800"', b'"more":[}'),
    *(b'"more":01', b'"more":NaN', b'"more":1,', b'"more":1} x', b'"more":"a\nb"', b'"more":1'),
    b'"more":' + b"[" * 100_000 + b"]" * 100_000,
]


@pytest.mark.parametrize("faulty", NO_JSON)
@pytest.mark.parametrize(
    "before", [b"", b'"event_type":3,', b'"event_type":[],', b'"item_id":7,', b'"event_id":7,']
)
def test_what_is_not_json_is_not_json_whatever_else_is_wrong(faulty: bytes, before: bytes) -> None:
    end = b"" if faulty in (b'"more":1} x', b'"more":1') else b"}"
    value = b"{" + before + click_json()[1:-1] + b"," + faulty + end
    assert reason_of(value) == Reason.NOT_JSON
    assert reason_of(value.replace(b'"more"', b'"event_type"')) == Reason.NOT_JSON


def test_the_detail_names_the_field_that_is_wrong_and_no_event_type() -> None:
    bad = checked(record(click_json(event_type=3, event_id=7)))
    assert isinstance(bad, BadClick) and bad.detail.endswith("`$.event_id`")


def test_a_record_that_is_larger_than_the_topic_takes_is_no_click() -> None:
    parse = ClickParser(max_bytes=1000)
    value = click_json(more="x" * 800)
    fits = Record(0, 0, NOW_MS, b"s", value)
    assert isinstance(parse(fits), Click)
    header = (("trace", b"x" * (1000 - fits.n_bytes)),)
    too_large = parse(Record(0, 0, NOW_MS, b"s", value, header))
    assert isinstance(too_large, BadClick) and too_large.reason == Reason.TOO_LARGE


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (None, Reason.NULL_VALUE),
        (b"", Reason.NOT_JSON),
        (b"\xff\xfe", Reason.NOT_JSON),
        (b"\xef\xbb\xbf" + click_json(), Reason.NOT_JSON),  # a byte order mark
        (click_json()[:-1], Reason.NOT_JSON),
        (b'{"session_id":"s","item_id":"\xed\xa0\x80","timestamp_ms":1}', Reason.NOT_JSON),
        (b'{"session_id":"s","item_id":"\\ud800","timestamp_ms":1}', Reason.NOT_JSON),
        (b'{"session_id":"\\udc00","item_id":"i","timestamp_ms":1}', Reason.NOT_JSON),
        (b'{"session_id":"s","item_id":"i","timestamp_ms":1,"event_id":"\xff"}', Reason.NOT_JSON),
        (b'{"x":' + b"[" * 100_000, Reason.NOT_JSON),  # RecursionError
        *((b"[", Reason.NOT_JSON), (b'"\xff"', Reason.NOT_JSON)),
        (b'{"session_id":7,"item_id":', Reason.NOT_JSON),
        (b"[]", Reason.BAD_FIELD),
        (b"null", Reason.BAD_FIELD),
        (b"{}", Reason.BAD_FIELD),
        (click_json(item_id=None), Reason.BAD_FIELD),
        (click_json(item_id=7), Reason.BAD_FIELD),
        (click_json(event_id=7), Reason.BAD_FIELD),
        (click_json(event_type=["view"], item_id=7), Reason.BAD_FIELD),
        (click_json(timestamp_ms=True), Reason.BAD_FIELD),
        (click_json(timestamp_ms=1.0), Reason.BAD_FIELD),
        (click_json(timestamp_ms=str(NOW_MS)), Reason.BAD_FIELD),
        # 5,000 digits: more than Python's int() takes.
        (b'{"session_id":"s","item_id":"i","timestamp_ms":' + b"1" * 5000 + b"}", Reason.BAD_FIELD),
        (click_json(timestamp_ms=10**29), Reason.BAD_TIMESTAMP),
        (click_json(timestamp_ms=YEAR_9999_MS), Reason.BAD_TIMESTAMP),
        (click_json(timestamp_ms=-1), Reason.TIMESTAMP_TOO_SMALL),
        (click_json(timestamp_ms=NOW_MS // 1000), Reason.TIMESTAMP_TOO_SMALL),
        (click_json(timestamp_ms=EARLIEST_MS - 1), Reason.TIMESTAMP_TOO_SMALL),
        (click_json(timestamp_ms=NOW_MS * 1000), Reason.BAD_TIMESTAMP),
        (click_json(timestamp_ms=NOW_MS + MAX_FUTURE_MS + 1), Reason.BAD_TIMESTAMP),
        (click_json(timestamp_ms=NOW_MS + MAX_FUTURE_MS), None),
        (click_json(timestamp_ms=EARLIEST_MS), None),
        (click_json(session_id="other"), Reason.KEY_MISMATCH),
        (click_json(item_id=""), Reason.BAD_ITEM_ID),
        (click_json(item_id="i" * 257), Reason.BAD_ITEM_ID),
        (click_json(item_id="é" * 128), None),  # 256 bytes
        (click_json(item_id="é" * 128 + "i"), Reason.BAD_ITEM_ID),
        (click_json(item_id="i" * 10_000), Reason.BAD_ITEM_ID),
        (click_json(item_id="a\nb"), Reason.BAD_ITEM_ID),
        (click_json(item_id="a\x00"), Reason.BAD_ITEM_ID),
        (click_json(item_id="a\x7fb"), Reason.BAD_ITEM_ID),  # DEL
        (click_json(item_id="a\x85b"), Reason.BAD_ITEM_ID),  # C1
        (click_json(item_id="red shoes ☂ \u2028"), None),  # no control characters
    ],
)
def test_reason_of_a_value_under_the_key_s(value: bytes | None, reason: Reason | None) -> None:
    assert reason_of(value) == reason


@pytest.mark.parametrize(
    ("session_id", "reason"),
    [
        ("", Reason.BAD_SESSION_ID),
        ("\x00position", Reason.BAD_SESSION_ID),
        ("s" * 257, Reason.BAD_SESSION_ID),
        ("s" * 256, None),
        ("ü" * 128, None),
        ("s\x00", None),
    ],
)
def test_session_id_has_1_to_256_bytes_and_does_not_begin_with_nul(
    session_id: str, reason: Reason | None
) -> None:
    assert reason_of(click_json(session_id=session_id), session_id.encode()) == reason


@pytest.mark.parametrize(
    ("session_id", "item_id", "detail"),
    [
        ("s" * 257, "i", "session_id has 257 bytes; expected 1 to 256 bytes of UTF-8"),
        ("\x00s", "i", "session_id begins with NUL; it must not"),
        ("s", "", "item_id has 0 bytes; expected 1 to 256 bytes of UTF-8"),
        ("s", "a\nb", "item_id contains a control character; it must have none"),
    ],
)
def test_a_bad_ids_detail_names_what_is_wrong_with_it(
    session_id: str, item_id: str, detail: str
) -> None:
    value = click_json(session_id=session_id, item_id=item_id)
    bad = parse_click(record(value, session_id.encode()))
    assert isinstance(bad, BadClick)
    assert bad.detail == detail


def test_a_null_key_is_bad_and_so_is_one_of_other_bytes() -> None:
    assert reason_of(click_json(), None) == Reason.NULL_KEY
    assert reason_of(click_json(), b"") == Reason.KEY_MISMATCH
    assert reason_of(click_json(), b"\xff") == Reason.KEY_MISMATCH


def test_a_timestamp_is_measured_against_the_records_own() -> None:
    before_ms = NOW_MS - MAX_FUTURE_MS
    assert isinstance(parse_click(record(click_json(), timestamp_ms=before_ms)), Click)
    assert isinstance(parse_click(record(click_json(), timestamp_ms=before_ms - 1)), BadClick)


def test_another_decoder_is_held_to_the_same_rules() -> None:
    class CommaClick(WireClick, kw_only=True):
        colour: str

        def texts(self) -> list[str | None]:
            return [self.colour]

    def decode(value: bytes) -> WireClick | BadClick:
        session_id, item_id, colour = value.decode().split(",")
        return CommaClick(session_id, item_id, NOW_MS, colour=colour)

    parse = ClickParser(("colour",), decode)
    context = Context([ContextField("colour", "column", ("red",))])
    click = parse(record(b"s,i,red"))
    assert isinstance(click, Click)
    assert (click.session, click.item_id, click.event_hash) == (b"s", "i", 0)
    assert context.indices(click.context, NOW_MS, None) == [2]
    bad = parse(record(b"s,,red"))
    assert isinstance(bad, BadClick)
    assert bad.reason == Reason.BAD_ITEM_ID


@given(st.none() | st.binary(), st.none() | st.binary())
def test_arbitrary_bytes_never_raise(key: bytes | None, value: bytes | None) -> None:
    checked(record(value, key))


def test_10_000_random_byte_strings_never_raise() -> None:
    rng = random.Random(2)
    for _ in range(10_000):
        checked(record(rng.randbytes(rng.randrange(200)), rng.choice((b"s", b""))))


# hypothesis' text leaves surrogates out unless asked; json.dumps escapes them.
any_text = st.text(st.characters(exclude_categories=())) | st.text(max_size=300)
any_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | any_text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(any_text, inner, max_size=3),
    max_leaves=5,
)


@given(
    st.fixed_dictionaries(
        {},
        optional={
            "session_id": any_text | any_json,
            "item_id": any_text | any_json,
            "timestamp_ms": st.integers(EARLIEST_MS - 1, NOW_MS + 2 * MAX_FUTURE_MS) | any_json,
            "event_id": any_text | any_json,
            "event_type": any_text | any_json,
            "more": any_json,
            "dwell ms": any_json,
            "column_0": any_json,
        },
    )
)
@example({"session_id": "s", "item_id": "i", "timestamp_ms": NOW_MS})
def test_any_json_object_never_raises(fields: dict[str, Any]) -> None:
    key = str(fields.get("session_id", "s")).encode(errors="replace")
    checked(record(json.dumps(fields).encode(), key))


HOSTILE = (
    *(b"1" * 30, b"-1", b"1.5", b"1e5", b"1e999", b"true", b"null", b"NaN", b"9" * 5000),
    *(b"9223372036854775807", b"9223372036854775808", b"18446744073709551616", b"253402300799000"),
    *(b'"\\ud800"', b'"\\udfff\\ud800"', b'"\xff"', b'"\xed\xa0\x80"', b'"\xc0\x80"', b'""'),
    *(b'"\\u0000s"', b'"\\u0085"', b'"\\u007f"', b'"\\u001f"', b'"\xc2\x9f"', b'"\\u2028"'),
    *(b'"' + b"i" * 256 + b'"', b'"' + b"i" * 257 + b'"', b"[" * 3000, b'{"a":' * 3000),
    *(b"[" * 3000 + b"]" * 3000, b"{}", b"[]", b'{"session_id":"s"}'),
)
FIELDS = (b'"s"', b'"i"', b"%d" % NOW_MS, b'"e"', b'"view"', b'"more"')


def mutated(rng: random.Random) -> bytes:
    """A valid click with one to three faults: fields replaced, bytes flipped, cut or repeated."""
    value = (
        b'{"session_id":"s","item_id":"i","timestamp_ms":%d,"event_id":"e","event_type":"view",'
        b'"more":"more"}'
    ) % NOW_MS
    for _ in range(rng.randint(1, 3)):
        at = rng.randrange(len(value) + 1)
        match rng.randrange(5):
            case 0 | 1:
                value = value.replace(rng.choice(FIELDS), rng.choice(HOSTILE))
            case 2:
                value = value[:at] + rng.randbytes(1) + value[at + 1 :]
            case 3:
                value = value[:at] + value[at + rng.randint(1, 20) :]
            case 4:
                value = value[:at] + value[rng.randrange(len(value) + 1) :]
    return value


def test_10_000_mutated_clicks_never_raise_and_reach_every_reason_of_the_value() -> None:
    rng = random.Random(1)
    parsed = [checked(record(mutated(rng), rng.choice((b"s", b"s", b"")))) for _ in range(10_000)]
    reasons = {click.reason if isinstance(click, BadClick) else None for click in parsed}
    others = {Reason.UNREADABLE, Reason.TOO_LARGE, Reason.NULL_KEY, Reason.NULL_VALUE}
    assert reasons == {None, *Reason} - others - {Reason.UNPROCESSABLE}
