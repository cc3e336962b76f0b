"""A record of the clicks topic becomes a row of a log, or has a reason why it is none.

The rules are the stream's (docs/contract.md), so that a collected log is what the stream saw; a
test compares the two. A click's further fields become text, by the same rule as
`train/data/context.py` reads columns of other types.
"""

import unicodedata
from collections import deque
from collections.abc import Iterable, Sequence
from enum import StrEnum
from hashlib import blake2b
from typing import NamedTuple

import msgspec
import polars as pl

from train.data.rows import MAX_FUTURE_MS, MAX_ID_BYTES

Scalar = str | int | float

TRAIL_CLICKS = 50
"""The stream knows a repeated event among so many last clicks of its session."""
TRAIL_MS = 86_400_000
NAMELESS = "an array, an object, or a number or text that cannot be read: unknown to every model"
"""Stands for what no text names. Longer than any value that a context field learns, so that it is
UNKNOWN in training, as what it stands for is in the stream."""
MAX_JSON_BYTES = 386
"""The stream reads no longer value of a context column; longer texts are none of its values."""


class Record(NamedTuple):
    """One record of the clicks topic, with Kafka's own timestamp."""

    partition: int
    offset: int
    timestamp_ms: int
    key: bytes | None
    value: bytes | None


class Refusal(StrEnum):
    """Why a record is no click: the reasons of the stream's dead letters."""

    NULL_KEY = "null_key"
    NULL_VALUE = "null_value"
    NOT_JSON = "not_json"
    BAD_FIELD = "bad_field"
    BAD_SESSION_ID = "bad_session_id"
    KEY_MISMATCH = "key_mismatch"
    BAD_ITEM_ID = "bad_item_id"
    BAD_TIMESTAMP = "bad_timestamp"


class WireClick(msgspec.Struct):
    """What every click says of itself."""

    session_id: str
    item_id: str
    timestamp_ms: int
    event_id: str | None = None
    event_type: str | None = None


_decode_click = msgspec.json.Decoder(WireClick).decode
_decode_fields = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode


def parse_record(record: Record) -> WireClick | Refusal:
    """The click of a record, or why there is none; raises nothing."""
    if record.value is None:
        return Refusal.NULL_VALUE
    if record.key is None:
        return Refusal.NULL_KEY
    try:
        click = _decode_click(record.value)
    except msgspec.ValidationError:
        return Refusal.BAD_FIELD
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return Refusal.NOT_JSON
    session = click.session_id.encode()
    if not 1 <= len(session) <= MAX_ID_BYTES or session[0] == 0:
        return Refusal.BAD_SESSION_ID
    if record.key != session:
        return Refusal.KEY_MISMATCH
    if not 1 <= len(click.item_id.encode()) <= MAX_ID_BYTES or _has_control(click.item_id):
        return Refusal.BAD_ITEM_ID
    if not 0 <= click.timestamp_ms <= record.timestamp_ms + MAX_FUTURE_MS:
        return Refusal.BAD_TIMESTAMP
    return click


def further_fields(value: bytes) -> dict[str, Scalar]:
    """The fields of a good click that are not the wire's, of those that say something.

    NAMELESS stands for a value that is no scalar, or that cannot be read: the click is good all
    the same, and so are its other fields.
    """
    try:
        fields = _decode_fields(value)
    except UnicodeDecodeError:  # a name; the stream passes over what is not called as a column is
        fields = _decode_fields(value.decode(errors="replace").encode())
    return {
        name: said
        for name, raw in fields.items()
        if name not in WireClick.__struct_fields__
        and not name.startswith("\0")
        and (said := _scalar(raw)) is not None
    }


def _scalar(raw: msgspec.Raw) -> Scalar | None:
    json = memoryview(raw)
    try:
        said = msgspec.json.decode(json)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return NAMELESS
    if said is None or isinstance(said, str):
        return said
    if not isinstance(said, int | float) or len(json) > MAX_JSON_BYTES:
        return NAMELESS
    return said


def texts(values: Sequence[Scalar | None]) -> pl.Series:
    """Scalars as the texts that name them: 3 and 3.0 are "3", true is "true", null stays null."""
    result: list[str | None] = []
    fractions: list[int] = []
    for row, value in enumerate(values):
        if value is None or isinstance(value, str):
            result.append(value)
        elif isinstance(value, bool):
            result.append("true" if value else "false")
        elif isinstance(value, int):
            result.append(str(value))
        elif value.is_integer() and -(2**63) <= value < 2**63:
            result.append(str(int(value)))
        else:
            result.append(None)
            fractions.append(row)
    found = pl.Series(result, dtype=pl.String)
    if fractions:  # Polars writes 1e-7 where Python writes 1e-07
        written = pl.Series([values[row] for row in fractions], dtype=pl.Float64).cast(pl.String)
        found = found.scatter(fractions, written)
    return found


class Repeats:
    """Which events of a partition are repeats: their event_id is in the session's trail.

    The trail is the last 50 clicks of a session that are not repeats themselves, as far as they
    lie within a day of the partition's newest click. The stream forgets a session at its idle
    timeout, which a collector does not know. A function of the clicks that were kept, so
    that it can be made anew from them.
    """

    def __init__(self) -> None:
        self._trails: dict[str, deque[tuple[int, int]]] = {}
        self._watermark_ms = 0

    def keep(self, session_id: str, event_id: str | None, timestamp_ms: int) -> bool:
        """Whether this click is none, and with that the newest of its session's trail."""
        trail = self._trails.get(session_id)
        if trail is None:
            trail = self._trails[session_id] = deque(maxlen=TRAIL_CLICKS)
        event = _event_hash(event_id) if event_id else 0
        oldest_ms = self._watermark_ms - TRAIL_MS
        if event and any(known == event and at >= oldest_ms for known, at in trail):
            return False
        trail.append((event, timestamp_ms))
        self._watermark_ms = max(self._watermark_ms, timestamp_ms)
        return True

    def forget(self) -> None:
        """Give back the memory of sessions that no repeat can be found in any more."""
        oldest_ms = self._watermark_ms - TRAIL_MS
        self._trails = {
            session: trail
            for session, trail in self._trails.items()
            if any(at >= oldest_ms for _, at in trail)
        }

    def replay(self, kept: Iterable[tuple[str, str | None, int]]) -> None:
        """Take over clicks that were kept before: session, event_id, timestamp_ms, in order."""
        for session_id, event_id, timestamp_ms in kept:
            self.keep(session_id, event_id, timestamp_ms)


def _has_control(text: str) -> bool:
    # The fast path: no control character is printable.
    return not text.isprintable() and any(unicodedata.category(c) == "Cc" for c in text)


def _event_hash(event_id: str) -> int:
    return int.from_bytes(blake2b(event_id.encode(), digest_size=8).digest(), "little") or 1
