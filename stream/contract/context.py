"""A click's context beyond its item: kept in the trail as bytes, given to the model as numbers.

Training learns the fields, which stand in the checkpoint and in the bundle's manifest, and numbers
whole logs by them (`train/data/context.py`); a test compares both over thousands of clicks. The
trail keeps what a click holds and not its numbers, since the next bundle numbers it otherwise.
"""

import zlib
from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Final, Literal

MISSING: Final = 0
"""The click has no value: no such field, null or an empty text; for gap, the first click."""
UNKNOWN: Final = 1
"""The click's value was never in the training log, or too rarely."""
FIRST_VALUE: Final = 2

HOURS, WEEKDAYS = 24, 7
RESERVED: Final = ("session_id", "item_id", "timestamp_ms", "event_id")
"""Fields of every click that cannot be context columns."""
MAX_FIELDS: Final = 64
"""Of a bundle: 64 columns of the longest texts take 4.4 kB of the 64 that a trail entry has."""
MAX_VALUE_BYTES: Final = 64
"""Longer texts are UNKNOWN."""

_KEY_BYTES = 4
_NAMELESS = b"\xff"
"""Stands for a value without a text, or with one that is too long. It never occurs in UTF-8."""


@dataclass(frozen=True, slots=True)
class ContextField:
    """One context field: how a click's number is found, from MISSING up to but without ``size``.

    A dataclass, since pydantic reads it in a checkpoint and msgspec in a manifest.
    """

    __pydantic_config__: ClassVar = {"extra": "forbid"}

    name: str
    """The column's name, or hour, weekday or gap."""
    kind: Literal["column", "hour", "weekday", "gap"]
    """What it is computed from: a column of the click, its time, or the time since the last one."""
    values: tuple[str, ...] = ()
    """column: the texts that have numbers of their own; the first one has FIRST_VALUE."""
    edges_s: tuple[float, ...] = ()
    """gap: upper edges of the bins in seconds, each part of the bin below it."""
    utc_offset_s: int = 0
    """hour, weekday: what to add to UTC."""

    @property
    def size(self) -> int:
        """Numbers a click can have here."""
        n_values, n_bins = len(self.values), len(self.edges_s) + 1
        own = {"column": n_values, "hour": HOURS, "weekday": WEEKDAYS, "gap": n_bins}
        return FIRST_VALUE + own[self.kind]


class Context:
    """The context fields of one bundle."""

    def __init__(self, fields: Sequence[ContextField]) -> None:
        self.columns = tuple(field.name for field in fields if field.kind == "column")
        """Fields to keep of a click."""
        self._numbers = [_number_of(field) for field in fields]

    def indices(self, kept: bytes, timestamp_ms: int, gap_ms: int | None) -> list[int]:
        """A click's number in every field.

        kept: the click's bytes from ``keep``, under this bundle or another. gap_ms: since the
        session's last click on a known item, negative if this one is late, None if it is the first.
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

    Columns of two bundles that share a key would be confused (odds of 1 in 4 x 10^9 a pair); a
    manifest with two such columns is refused.
    """
    return zlib.crc32(name.encode()).to_bytes(_KEY_BYTES, "little")


def keep(values: Iterable[tuple[bytes, str | None]]) -> bytes:
    """The bytes that the trail keeps of a click, from the key and text of every declared column.

    Texts are those of ``WireClick.texts``. Of an empty one nothing is kept.
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
