"""Records as Kafka holds them: bytes, before anybody knows what they mean."""

from enum import StrEnum

import msgspec

Headers = tuple[tuple[str, bytes], ...]


class Record(msgspec.Struct, frozen=True):
    """One record that was read.

    ``timestamp_ms`` is the record's own (the append time, as ``topics create`` sets it).
    """

    partition: int
    offset: int
    timestamp_ms: int
    key: bytes | None
    value: bytes | None


class Message(msgspec.Struct, frozen=True):
    """One record to produce; ``value`` None is a tombstone."""

    key: bytes | None
    value: bytes | None
    headers: Headers = ()


class Target(StrEnum):
    """What the worker writes besides its changelog."""

    RECOMMENDATIONS = "recommendations"
    DEAD_LETTERS = "dead_letters"
