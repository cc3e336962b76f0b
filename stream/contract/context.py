"""What a click says besides its item: kept in the trail as bytes, given to the model as numbers.

The numbers are the trainer's: its fields stand in the bundle's manifest, and a test compares both
sides over thousands of clicks. What a click says is kept as it said it and not as a number, since
the next bundle numbers it otherwise.
"""

import zlib
from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final, Literal

import msgspec

MISSING: Final = 0
"""The click does not say: no such field, null or an empty text, the first click's gap."""
UNKNOWN: Final = 1
"""The click says what the training log never said, or said too rarely."""
FIRST_VALUE: Final = 2

HOURS, WEEKDAYS = 24, 7
RESERVED: Final = ("session_id", "item_id", "timestamp_ms", "event_id")
"""The fields that every click has: no context column can have one of these names."""
MAX_FIELDS: Final = 64
"""Of a bundle: 64 columns of the longest texts take 4.4 kB of the 64 that a trail entry has."""
MAX_VALUE_BYTES: Final = 64
"""Longer texts are UNKNOWN, here and in training."""
MAX_JSON_BYTES: Final = 6 * MAX_VALUE_BYTES + 2
"""No longer JSON names a text of 64 bytes: each escaped, and two quotes."""

_KEY_BYTES = 4
_NAMELESS = b"\xff"
"""Stands for what no text names: an array, an object, a text that is too long. No UTF-8 has it."""


class ContextField(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One field of the manifest: how a click's number is found, from MISSING up to ``size``.

    ``values`` (column): the texts with numbers of their own; the first one has FIRST_VALUE.
    ``edges_s`` (gap): upper edges of the bins in seconds, each part of the bin below it.
    ``utc_offset_s`` (hour, weekday): what to add to UTC.
    """

    name: str
    kind: Literal["column", "hour", "weekday", "gap"]
    values: tuple[str, ...] = ()
    edges_s: tuple[float, ...] = ()
    utc_offset_s: int = 0

    @property
    def size(self) -> int:
        """Numbers a click can have here."""
        own = {
            "column": len(self.values),
            "hour": HOURS,
            "weekday": WEEKDAYS,
            "gap": len(self.edges_s) + 1,
        }
        return FIRST_VALUE + own[self.kind]


class Context:
    """The fields of one bundle."""

    def __init__(self, fields: Sequence[ContextField]) -> None:
        self.columns = tuple(field.name for field in fields if field.kind == "column")
        """What to keep of a click's JSON."""
        self._numbers = [_number_of(field) for field in fields]

    def indices(self, kept: bytes, timestamp_ms: int, gap_ms: int | None) -> list[int]:
        """A click's number in every field.

        kept: what ``keep`` made of it, under this bundle or another. gap_ms: since the session's
        last click on a known item, negative where this one is late; None where it is the first.
        """
        if not self._numbers:
            return []
        texts = _texts_of(kept)
        return [number(texts, timestamp_ms, gap_ms) for number in self._numbers]


_Number = Callable[[Mapping[bytes, bytes], int, int | None], int]


def _number_of(field: ContextField) -> _Number:
    if field.kind == "column":
        key = column_key(field.name)
        numbers = {text.encode(): n for n, text in enumerate(field.values, FIRST_VALUE)}

        def of_column(texts: Mapping[bytes, bytes], timestamp_ms: int, gap_ms: int | None) -> int:
            text = texts.get(key)
            return MISSING if text is None else numbers.get(text, UNKNOWN)

        return of_column

    def of_gap(texts: Mapping[bytes, bytes], timestamp_ms: int, gap_ms: int | None) -> int:
        if gap_ms is None:
            return MISSING
        return FIRST_VALUE + bisect_left(field.edges_s, max(0, gap_ms) / 1000)

    def of_hour(texts: Mapping[bytes, bytes], timestamp_ms: int, gap_ms: int | None) -> int:
        return FIRST_VALUE + (timestamp_ms // 1000 + field.utc_offset_s) // 3600 % HOURS

    def of_weekday(texts: Mapping[bytes, bytes], timestamp_ms: int, gap_ms: int | None) -> int:
        days = (timestamp_ms // 1000 + field.utc_offset_s) // 86_400
        return FIRST_VALUE + (days + 3) % WEEKDAYS  # 1 January 1970 was a Thursday; Monday is 0

    return {"gap": of_gap, "hour": of_hour, "weekday": of_weekday}[field.kind]


def column_key(name: str) -> bytes:
    """Four bytes that stand for a column's name in every entry of a trail.

    Two columns with one key in two bundles would mix (odds of 1 in 4 x 10^9 a pair); in one bundle
    the manifest is refused.
    """
    return zlib.crc32(name.encode()).to_bytes(_KEY_BYTES, "little")


def keep(values: Iterable[tuple[bytes, str | None]]) -> bytes:
    """The bytes that the trail keeps of a click: (column's key, text) of every declared column.

    A text is as ``text_of`` gives it. Nothing is kept of an empty one.
    """
    parts: list[bytes] = []
    for key, text in values:
        if text == "":
            continue
        named = _NAMELESS if text is None else text.encode()
        if len(named) > MAX_VALUE_BYTES:
            named = _NAMELESS
        parts += (key, len(named).to_bytes(1), named)
    return b"".join(parts)


def _texts_of(kept: bytes) -> dict[bytes, bytes]:
    texts, at = {}, 0
    while at < len(kept):
        size_at = at + _KEY_BYTES
        end = size_at + 1 + kept[size_at]
        texts[kept[at:size_at]] = kept[size_at + 1 : end]
        at = end
    return texts


def text_of(value: bytes | msgspec.Raw) -> str | None:
    """The text that names a JSON value as training does; "" for none, None where no text can.

    3 and 3.0 alike are "3", true is "true"; null and "" are none. An array, an object, a number out
    of range, broken UTF-8 have no name. Raises nothing on what msgspec took for JSON.
    """
    raw = memoryview(value)
    if not len(raw):
        return ""
    if len(raw) > MAX_JSON_BYTES:
        return None
    try:
        decoded = msgspec.json.decode(raw)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None
    match decoded:
        case None:
            return ""
        case bool():
            return "true" if decoded else "false"
        case str():
            return decoded
        case int():
            return str(decoded)
        case float():
            return _float_text(decoded)
    return None


def _float_text(number: float) -> str:
    """As Polars writes it: whole ones as int64, shortest digits, 0.00001 and 1e-7."""
    if number.is_integer() and -(2.0**63) <= number < 2.0**63:
        return str(int(number))
    text = repr(number)
    digits, is_small, exponent = text.partition("e-")
    if not is_small:
        return text
    if exponent != "05":
        return f"{digits}e-{int(exponent)}"
    sign = "-" if number < 0 else ""
    return f"{sign}0.0000{digits.lstrip('-').replace('.', '')}"
