"""What the worker publishes: recommendations and dead letters, as Kafka messages."""

from enum import StrEnum

import msgspec

from stream.contract.click import BadClick, Click
from stream.contract.records import Message as Message
from stream.contract.records import Record
from stream.contract.records import Target as Target

_DETAIL_BYTES = 1024
"""Longest detail header: with the other four it stays far below the 64 KiB that the dead-letter
topic grants beyond the largest click."""


class Outcome(StrEnum):
    """How a good click was answered."""

    MODEL = "model"
    DUPLICATE = "duplicate"
    UNKNOWN_ITEM = "unknown_item"
    FALLBACK = "fallback"
    OTHER_EVENT = "other_event"


class Item(msgspec.Struct):
    """One place of a list; ``score`` is the model's, not a probability."""

    item_id: str
    score: float


class ClickRef(msgspec.Struct):
    """The click that a list answers."""

    item_id: str
    timestamp_ms: int


class Recommendation(msgspec.Struct):
    """The published value: exactly one a good click, for readers of committed records."""

    session_id: str
    items: list[Item]
    model: str
    outcome: str
    click: ClickRef
    published_ms: int


class _Published(msgspec.Struct):
    """A ``Recommendation`` whose items are encoded already."""

    session_id: str
    items: msgspec.Raw
    model: str
    outcome: str
    click: ClickRef
    published_ms: int


encode_json = msgspec.json.Encoder().encode


def recommendation(
    topic: str,
    record: Record,
    click: Click,
    items: bytes,
    bundle_id: str,
    outcome: Outcome,
    published_ms: int,
) -> Message:
    """Return the message that answers a click; its header ``source`` names the click's record.

    items: the JSON array of a list's items.
    """
    session_id, answered = click.session.decode(), ClickRef(click.item_id, click.timestamp_ms)
    listed = msgspec.Raw(items)
    value = _Published(session_id, listed, bundle_id, outcome, answered, published_ms)
    source = f"{topic}-{record.partition}-{record.offset}".encode()
    return Message(click.session, encode_json(value), (("source", source),))


def dead_letter(topic: str, record: Record, bad: BadClick) -> Message:
    """Return the message that keeps a bad click: its own key and value, and why it is bad."""
    headers = (
        ("reason", bad.reason.encode()),
        ("topic", topic.encode()),
        ("partition", str(record.partition).encode()),
        ("offset", str(record.offset).encode()),
        ("detail", bad.detail.encode(errors="replace")[:_DETAIL_BYTES]),
    )
    return Message(record.key, record.value, headers)
