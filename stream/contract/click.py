"""The rules that make a decoded record a good click. Never an exception.

Values on the path of a click are msgspec structs: a frozen dataclass takes three times as long to
make. Every accepted click can be encoded into a session state (see session.py).
"""

import sys
import unicodedata
from collections.abc import Sequence
from hashlib import blake2b

import msgspec

from stream.contract.context import column_key, keep
from stream.contract.decoders import BadClick as BadClick
from stream.contract.decoders import Decoder, JsonDecoder, WireClick
from stream.contract.decoders import Reason as Reason
from stream.contract.records import Record as Record

MAX_ID_BYTES = 256
_EXPECTED_ID = f"bytes; expected 1 to {MAX_ID_BYTES} bytes of UTF-8"
EARLIEST_MS = 946_684_800_000
"""The year 2000. What is below is no time of a click: seconds, or the beginning of a clock."""
MAX_FUTURE_MS = 5 * 60 * 1000
"""How far a click's own clock may run ahead of the broker's."""
TRAIL_CLICKS = 50
"""Clicks of a session that its trail keeps, and that a repeated event is looked for among."""


class Click(msgspec.Struct, frozen=True):
    """A click that can be answered. ``event_hash`` is 0 where the producer sent no event_id.

    ``context``: what the trail keeps of the bundle's context columns (see context.py).
    """

    session: bytes
    item_id: str
    timestamp_ms: int
    event_hash: int
    context: bytes = b""
    event_type: str | None = None


class ClickParser:
    """Reads clicks with the context columns that a bundle declares.

    Whether a click is good does not depend on those: a column may hold anything, or be absent.
    ``decode`` replaces the decoder of JSON; its texts should be those of ``columns``. A record of
    more than ``max_bytes``, uncompressed, is no click.
    """

    def __init__(
        self,
        columns: Sequence[str] = (),
        decode: Decoder | None = None,
        max_bytes: int | None = None,
    ) -> None:
        self._decode = decode or JsonDecoder(columns)
        self._max_bytes = sys.maxsize if max_bytes is None else max_bytes
        self._keys = [column_key(name) for name in columns]

    def __call__(self, record: Record) -> Click | BadClick:
        wire = self.wire_click(record)
        if isinstance(wire, BadClick):
            return wire
        assert record.key is not None
        return Click(
            record.key,  # is the session_id
            wire.item_id,
            wire.timestamp_ms,
            event_hash(wire.event_id),
            keep(zip(self._keys, wire.texts(), strict=True)) if self._keys else b"",
            wire.event_type,
        )

    def wire_click(self, record: Record) -> WireClick | BadClick:
        """The good click of a record as it was decoded, or why there is none."""
        if record.trouble:
            return BadClick(Reason.UNREADABLE, record.trouble)
        if record.n_bytes > self._max_bytes:
            return BadClick(
                Reason.TOO_LARGE,
                f"key, value and headers have {record.n_bytes} bytes uncompressed; expected at "
                f"most {self._max_bytes}, the topic's max.message.bytes",
            )
        if record.value is None:
            return BadClick(Reason.NULL_VALUE, "the record has no value")
        if record.key is None:
            return BadClick(Reason.NULL_KEY, "the record has no key; it must be the session_id")
        wire = self._decode(record.value)
        if isinstance(wire, BadClick):
            return wire
        # These encode: a decoder's text has no lone surrogates, which msgspec refuses in JSON.
        session = wire.session_id.encode()
        item = wire.item_id.encode()
        if not 1 <= len(session) <= MAX_ID_BYTES:
            found = f"session_id has {len(session)} {_EXPECTED_ID}"
            return BadClick(Reason.BAD_SESSION_ID, found)
        if session[0] == 0:
            return BadClick(Reason.BAD_SESSION_ID, "session_id begins with NUL; it must not")
        if record.key != session:
            return BadClick(Reason.KEY_MISMATCH, "the record's key is not the session_id")
        if not 1 <= len(item) <= MAX_ID_BYTES:
            return BadClick(Reason.BAD_ITEM_ID, f"item_id has {len(item)} {_EXPECTED_ID}")
        if _has_control_character(wire.item_id):
            return BadClick(
                Reason.BAD_ITEM_ID, "item_id contains a control character; it must have none"
            )
        if wire.timestamp_ms < EARLIEST_MS:
            return BadClick(
                Reason.TIMESTAMP_TOO_SMALL,
                f"timestamp_ms is {wire.timestamp_ms}; expected milliseconds since 1970, at least "
                f"{EARLIEST_MS} (the year 2000): are these seconds?",
            )
        if wire.timestamp_ms > record.timestamp_ms + MAX_FUTURE_MS:
            return BadClick(
                Reason.BAD_TIMESTAMP,
                f"timestamp_ms is {wire.timestamp_ms}; expected at most 5 minutes after the "
                f"record's Kafka timestamp, {record.timestamp_ms}",
            )
        return wire


def _has_control_character(text: str) -> bool:
    # The first test is the fast path: no control character is printable.
    return not text.isprintable() and any(unicodedata.category(c) == "Cc" for c in text)


def event_hash(event_id: str | None) -> int:
    """64 bits of the event id, 0 without one.

    Two of the 50 clicks of a trail have the same hash with odds of about 1 in 10^16.
    """
    if not event_id:
        return 0
    return int.from_bytes(blake2b(event_id.encode(), digest_size=8).digest(), "little") or 1
