"""What is published: JSON that any reader can take, and dead letters that any topic can."""

import json
from hashlib import sha256

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from stream.contract.click import MAX_ID_BYTES, BadClick, Click, Reason, Record
from stream.contract.items import decode_events
from stream.contract.messages import (
    Item,
    Outcome,
    dead_letter,
    encode_json,
    item_events,
    recommendation,
)
from stream.transport.clients import BATCH_BYTES
from stream.transport.topics import DEAD_LETTER_EXTRA_BYTES

texts = st.text(min_size=1)  # without surrogates, as parse_click gives them


@given(texts, texts, st.lists(st.builds(Item, texts, st.floats(allow_nan=False, width=32))))
def test_a_recommendation_is_json_that_holds_the_click_and_the_list(
    session_id: str, item_id: str, items: list[Item]
) -> None:
    record = Record(3, 41, 7, session_id.encode(), b"")
    click = Click(session_id.encode(), item_id, 5, 0)
    listed = encode_json(items)
    message = recommendation("clicks", record, click, listed, "b" * 16, Outcome.DUPLICATE, 9)
    assert message.key == session_id.encode()
    assert message.headers == (("source", b"clicks-3-41"),)
    value = json.loads(message.value or b"")
    assert {k: v for k, v in value.items() if k != "items"} == {
        "session_id": session_id,
        "model": "b" * 16,
        "outcome": "duplicate",
        "click": {"item_id": item_id, "timestamp_ms": 5},
        "published_ms": 9,
    }
    assert [item["item_id"] for item in value["items"]] == [item.item_id for item in items]
    assert len(value["items"]) == len(items)


def test_the_outcomes_are_a_closed_list() -> None:
    assert sorted(Outcome) == [
        *("duplicate", "fallback", "live", "model", "other_event", "unknown_item")
    ]


@given(st.none() | st.binary(), st.none() | st.binary(), st.sampled_from(Reason), st.text())
def test_a_dead_letter_keeps_key_and_value_and_its_headers_stay_small(
    key: bytes | None, value: bytes | None, reason: Reason, detail: str
) -> None:
    topic = "t" * 249  # the longest that Kafka takes
    own = (("traceparent", b"00-1-2-01"), ("reason", None))
    record = Record(2**31 - 1, 2**63 - 1, 1234, key, value, own)
    message = dead_letter(topic, record, BadClick(reason, detail))
    assert (message.key, message.value) == (key, value)
    if reason != Reason.TOO_LARGE:
        assert message.headers[:2] == own
        message = msgspec.structs.replace(message, headers=message.headers[2:])
    headers = {name: text or b"" for name, text in message.headers}
    sizes = ["bytes", "sha256"] if reason == Reason.TOO_LARGE else []
    names = ["reason", "topic", "partition", "offset", "timestamp_ms", "detail"]
    assert list(headers) == sizes + names
    assert headers["timestamp_ms"] == b"1234"
    assert headers["reason"] == reason.value.encode()
    assert headers["topic"] == topic.encode()
    assert headers["partition"] == b"2147483647"
    assert headers["offset"] == b"9223372036854775807"
    # With room for the record's framing, what the topic grants beyond the click.
    assert (
        sum(len(name) + len(text) for name, text in headers.items()) < DEAD_LETTER_EXTRA_BYTES / 2
    )


def test_of_a_record_that_is_too_large_the_beginning_its_size_and_its_hash_are_kept() -> None:
    record = Record(0, 0, 0, b"k" * 100_000, b"v" * 100_000, (("h", b"x" * 100_000),))
    message = dead_letter("t", record, BadClick(Reason.TOO_LARGE, "x" * 9999))
    headers = {name: text or b"" for name, text in message.headers}
    size = sum(len(name) + len(text) for name, text in headers.items())
    assert len(message.key or b"") + len(message.value or b"") + size < DEAD_LETTER_EXTRA_BYTES
    assert set(message.key or b"") == set(b"k") and set(message.value or b"") == set(b"v")
    assert headers["bytes"] == b"300003"
    assert headers["sha256"].decode() == sha256(b"v" * 100_000).hexdigest()


def test_a_detail_that_cannot_be_encoded_is_kept_with_a_mark_and_cut() -> None:
    record = Record(0, 0, 0, None, None)
    detail = dict(dead_letter("t", record, BadClick(Reason.NOT_JSON, "\ud800")).headers)["detail"]
    assert detail == b"?"
    detail = dict(dead_letter("t", record, BadClick(Reason.NOT_JSON, "x" * 9999)).headers)["detail"]
    assert detail == b"x" * 1024


def test_more_events_than_a_record_may_hold_are_told_in_several_in_order() -> None:
    """Of a batch of 4,096 clicks, the most that a worker takes, with the longest ids."""
    ids = [f"{n:0{MAX_ID_BYTES}}" for n in range(200)]
    events = [(ids[0], ids[n % 200], n % 7 - 3, 2**42 + n) for n in range(4_096 * 7)]
    messages = item_events(events, 1)
    assert {message.partition for message in messages} == {0}
    assert max(len(message.value or b"") for message in messages) < 0.8 * BATCH_BYTES
    told = [decode_events(message.value or b"") for message in messages]
    columns = [(e.item, e.other, e.step, e.timestamp_ms) for e in told]
    assert [event for of_one in columns for event in zip(*of_one, strict=True)] == events
    assert len(item_events(events[:1_500], 1)) == 1
