"""What the workers publish, as Kafka messages: recommendations, dead letters and item events."""

from collections.abc import Iterable
from enum import StrEnum
from hashlib import sha256

import msgspec

from stream.contract.click import BadClick, Click, Reason
from stream.contract.items import (
    EVENTS_FORMAT,
    MOST_EVENTS,
    ItemEvents,
    encode_events,
    partition_of,
)
from stream.contract.records import Message as Message
from stream.contract.records import Record
from stream.contract.records import Target as Target

_DETAIL_BYTES = 1024
"""Longest detail header: with the others it stays far below the 64 KiB that the dead-letter topic
grants beyond the largest click."""
_KEPT_BYTES = 16_384
"""What stays of the key, and of the value, of a record that is too large: both fit in 64 KiB."""


class Outcome(StrEnum):
    """How a good click was answered."""

    MODEL = "model"
    DUPLICATE = "duplicate"
    UNKNOWN_ITEM = "unknown_item"
    FALLBACK = "fallback"
    OTHER_EVENT = "other_event"
    LIVE = "live"


class Item(msgspec.Struct, omit_defaults=True):
    """One place of a list; ``score`` is the model's, not a probability.

    source: in a blended list, whose scores add up to 1 at most, where most of the score came from.
    """

    item_id: str
    score: float
    source: str | None = None


class ClickRef(msgspec.Struct):
    """The click that a list answers."""

    item_id: str
    timestamp_ms: int


class Recommendation(msgspec.Struct, omit_defaults=True):
    """The published value: exactly one a good click, for readers of committed records.

    view_ms: of a blended list, the time of the newest click that the view knew of.
    """

    session_id: str
    items: list[Item]
    model: str
    outcome: str
    click: ClickRef
    published_ms: int
    view_ms: int | None = None


class _Published(msgspec.Struct, omit_defaults=True):
    """A ``Recommendation`` whose items are encoded already."""

    session_id: str
    items: msgspec.Raw
    model: str
    outcome: str
    click: ClickRef
    published_ms: int
    view_ms: int | None = None


encode_json = msgspec.json.Encoder().encode


def item_json(item_id: str) -> bytes:
    """All of an item's JSON up to its score."""
    return encode_json({"item_id": item_id, "score": 0})[:-2]


def recommendation(
    topic: str,
    record: Record,
    click: Click,
    items: bytes,
    bundle_id: str,
    outcome: Outcome,
    published_ms: int,
    view_ms: int | None = None,
) -> Message:
    """Return the message that answers a click; its header ``source`` names the click's record.

    items: the JSON array of a list's items.
    """
    session_id, answered = click.session.decode(), ClickRef(click.item_id, click.timestamp_ms)
    listed = msgspec.Raw(items)
    value = _Published(session_id, listed, bundle_id, outcome, answered, published_ms, view_ms)
    source = f"{topic}-{record.partition}-{record.offset}".encode()
    return Message(click.session, encode_json(value), (("source", source),))


def dead_letter(topic: str, record: Record, bad: BadClick) -> Message:
    """Return the message that keeps a bad click: its own key, value and headers, and why it is bad.

    Of one that is too large it keeps the beginnings, the sizes and the value's SHA-256.
    """
    key, value, own = record.key, record.value, record.headers
    if bad.reason == Reason.TOO_LARGE:
        digest = sha256(value or b"").hexdigest()
        own = (("bytes", str(record.n_bytes).encode()), ("sha256", digest.encode()))
        key, value = key and key[:_KEPT_BYTES], value and value[:_KEPT_BYTES]
    headers = (
        *own,  # first, so that of two with a name ours is the last
        ("reason", bad.reason.encode()),
        ("topic", topic.encode()),
        ("partition", str(record.partition).encode()),
        ("offset", str(record.offset).encode()),
        ("timestamp_ms", str(record.timestamp_ms).encode()),
        ("detail", bad.detail.encode(errors="replace")[:_DETAIL_BYTES]),
    )
    return Message(key, value, headers)


def item_events(events: Iterable[tuple[str, str, int, int]], n_partitions: int) -> list[Message]:
    """Return the messages that tell of events (columns as of ``ItemEvents``), by partition.

    One for each partition, unless there are more events than a record may hold.
    """
    of_partition: dict[int, list[tuple[str, str, int, int]]] = {}
    for event in events:
        of_partition.setdefault(partition_of(event[0], n_partitions), []).append(event)
    return [
        Message(
            None,
            encode_events(ItemEvents(EVENTS_FORMAT, *map(list, zip(*some, strict=True)))),
            partition=partition,
        )
        for partition, told in of_partition.items()
        for some in (told[n : n + MOST_EVENTS] for n in range(0, len(told), MOST_EVENTS))
    ]
