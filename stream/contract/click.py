"""A record's bytes become a click, or a bad click with its reason. Never an exception.

Values of the path are msgspec structs: a frozen dataclass takes three times as long to make.

Law: every accepted click encodes into a session state (see session.py).
"""

import unicodedata
from collections.abc import Sequence
from enum import StrEnum
from hashlib import blake2b
from typing import cast

import msgspec

from stream.contract.context import column_key, keep, text_of
from stream.contract.records import Record as Record

MAX_ID_BYTES = 256
MAX_FUTURE_MS = 5 * 60 * 1000
"""How far a click's own clock may run ahead of the broker's before the click is refused."""


class Reason(StrEnum):
    """Why a click is bad: the metric label and the dead letter's header."""

    NULL_KEY = "null_key"
    NULL_VALUE = "null_value"
    NOT_JSON = "not_json"
    BAD_FIELD = "bad_field"
    BAD_SESSION_ID = "bad_session_id"
    KEY_MISMATCH = "key_mismatch"
    BAD_ITEM_ID = "bad_item_id"
    BAD_TIMESTAMP = "bad_timestamp"


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


class BadClick(msgspec.Struct, frozen=True):
    """A record that is no click: the reason, and a sentence for whoever reads the dead letter."""

    reason: Reason
    detail: str


class _Wire(msgspec.Struct):
    session_id: str
    item_id: str
    timestamp_ms: int
    event_id: str | None = None
    event_type: str | None = None


class ClickParser:
    """Reads clicks, and of each the context columns that a bundle declares.

    Whether a click is good does not depend on those: a column may hold any JSON, or be absent.
    """

    def __init__(self, columns: Sequence[str] = ()) -> None:
        # By numbers: a column's name may be none of Python's. event_type is every click's already.
        wire_names = {f"column_{n}": name for n, name in enumerate(columns) if name != "event_type"}
        raw = [(field, msgspec.Raw, msgspec.Raw()) for field in wire_names]
        wire = msgspec.defstruct("_WireWithColumns", raw, bases=(_Wire,), rename=wire_names)
        self._decode = msgspec.json.Decoder(cast(type[_Wire], wire)).decode
        self._columns = [
            (column_key(name), "event_type" if name == "event_type" else f"column_{n}")
            for n, name in enumerate(columns)
        ]

    def __call__(self, record: Record) -> Click | BadClick:
        """The click of a record, or why there is none. Raises nothing on any bytes."""
        key, value = record.key, record.value
        if value is None:
            return BadClick(Reason.NULL_VALUE, "the record has no value")
        if key is None:
            return BadClick(Reason.NULL_KEY, "the record has no key; it must be the session_id")
        try:
            wire = self._decode(value)
        except msgspec.ValidationError as error:
            return BadClick(Reason.BAD_FIELD, str(error))
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            # Broken UTF-8 inside a string and a few thousand nested brackets come out of msgspec
            # as the last two, which are no MsgspecError.
            return BadClick(Reason.NOT_JSON, str(error))
        # These encode: msgspec refuses the lone surrogates that JSON can escape.
        session = wire.session_id.encode()
        item = wire.item_id.encode()
        event = wire.event_id.encode() if wire.event_id is not None else b""
        if not 1 <= len(session) <= MAX_ID_BYTES or session[0] == 0:
            return BadClick(
                Reason.BAD_SESSION_ID,
                f"session_id has {len(session)} bytes, or begins with NUL; "
                f"1 to {MAX_ID_BYTES} bytes of UTF-8 are allowed",
            )
        if key != session:
            return BadClick(Reason.KEY_MISMATCH, "the record's key is not the session_id")
        if not 1 <= len(item) <= MAX_ID_BYTES or _has_control_character(wire.item_id):
            return BadClick(
                Reason.BAD_ITEM_ID,
                f"item_id has {len(item)} bytes, or a control character; "
                f"1 to {MAX_ID_BYTES} bytes of UTF-8 are allowed",
            )
        if not 0 <= wire.timestamp_ms <= record.timestamp_ms + MAX_FUTURE_MS:
            return BadClick(
                Reason.BAD_TIMESTAMP,
                f"timestamp_ms is {wire.timestamp_ms}; allowed is 0 to 5 minutes past the "
                f"record's Kafka timestamp, {record.timestamp_ms}",
            )
        return Click(
            session,
            wire.item_id,
            wire.timestamp_ms,
            _event_hash(event) if event else 0,
            self._context(wire) if self._columns else b"",
            wire.event_type,
        )

    def _context(self, wire: _Wire) -> bytes:
        values = []
        for key, field in self._columns:
            value = getattr(wire, field)
            # event_type is a text or None already
            values.append((key, text_of(value) if isinstance(value, msgspec.Raw) else value or ""))
        return keep(values)


def _has_control_character(text: str) -> bool:
    if text.isprintable():  # the fast path: no control character is printable
        return False
    return any(unicodedata.category(character) == "Cc" for character in text)


def _event_hash(event: bytes) -> int:
    """64 bits of the event id: two of a trail's 50 collide with odds of about 1 in 10^16."""
    return int.from_bytes(blake2b(event, digest_size=8).digest(), "little") or 1
