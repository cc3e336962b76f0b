"""Records as Kafka holds them: bytes, before anybody knows what they mean."""

from enum import StrEnum

import msgspec

Headers = tuple[tuple[str, bytes | None], ...]


class Record(msgspec.Struct, frozen=True):
    """One record that was read.

    ``timestamp_ms`` is the record's own (the append time, as ``topics create`` sets it).
    ``trouble`` says why nothing but the place could be read.
    """

    partition: int
    offset: int
    timestamp_ms: int
    key: bytes | None
    value: bytes | None
    headers: Headers = ()
    trouble: str = ""

    @property
    def n_bytes(self) -> int:
        """Plain size, whatever it was compressed to; each header has 2 bytes more, for lengths.

        Empty headers compress to nothing, and millions of them are more than a topic takes.
        """
        size = len(self.key or b"") + len(self.value or b"")
        if self.headers:
            size += sum(len(name.encode()) + len(value or b"") + 2 for name, value in self.headers)
        return size


class Message(msgspec.Struct, frozen=True):
    """One record to produce; ``value`` None is a tombstone.

    ``partition``: where to, in an output that is scattered (``Wiring``); None: where its click is.
    """

    key: bytes | None
    value: bytes | None
    headers: Headers = ()
    partition: int | None = None


class Target(StrEnum):
    """What the processors write besides their changelogs."""

    RECOMMENDATIONS = "recommendations"
    DEAD_LETTERS = "dead_letters"
    ITEM_EVENTS = "item_events"
    ITEM_VIEW = "item_view"
