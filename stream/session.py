"""A session's state and its bytes.

``model_state`` is a cache of the trail under one bundle; the trail alone can rebuild it.
"""

import struct
from enum import IntEnum
from typing import Final

import msgspec
import numpy as np
from jaxtyping import Float32, Int32

from stream.contract.click import TRAIL_CLICKS as TRAIL_CLICKS
from stream.errors import NEWEST_FORMAT, NewerFormatError, StreamError
from stream.live.lists import LiveList, decode_list, encode_list
from stream.table import PartitionStates

FORMAT: Final = 2
FORMAT_LIVE: Final = 3
"""Of a state whose list is a ``LiveList``. A bundle without live lists writes the other."""

# format, last outcome, bundle id, seen_ms, last_click_ms, clicks, trail entries, floats of state,
# and of the list its top-k or, where it is a live one, its bytes.
_HEADER = struct.Struct("<BB8sqqIHIH")
_HEADER_LIVE = struct.Struct("<BB8sqqIHII")
_SEEN = struct.Struct("<q")
_SEEN_AT: Final = 10
_LAST_CLICK_AT: Final = 18
_ENTRY = struct.Struct("<qQHH")  # timestamp_ms, event hash, bytes of the item id, of the context


class LastOutcome(IntEnum):
    """How the session's last advancing click was answered: whether its list can be judged."""

    FALLBACK = 0
    MODEL = 1
    UNKNOWN_ITEM = 2
    LIVE = 3


class TrailClick(msgspec.Struct, frozen=True):
    """One past click; ``context``: its values in its bundle's columns (see context.py)."""

    item_id: str
    timestamp_ms: int
    event_hash: int
    context: bytes = b""


class SessionState(msgspec.Struct, frozen=True):
    """One session under one bundle.

    seen_ms: the partition's watermark behind the session's last click, whatever its own time: how
    long ago it was by the log. last_click_ms: the latest time of the clicks themselves.
    model_state: all that the model remembers after the last known item; only the model knows what
    the numbers mean.
    top_index, top_score: the last list the model made, best first; empty before the first.
    live: the last list in their place, where it is a live one.
    """

    bundle_id: str
    seen_ms: int
    last_click_ms: int
    n_clicks: int
    last_outcome: LastOutcome
    trail: tuple[TrailClick, ...]
    model_state: Float32[np.ndarray, "S"]
    top_index: Int32[np.ndarray, "K"]
    top_score: Float32[np.ndarray, "K"]
    live: LiveList | None = None


class Stored(msgspec.Struct):
    """A session whose parts are still bytes: what the path of a click reads and writes.

    Most parts go from one state to the next as they are, and decoding them all took 9 us a click.
    listed: int32 item indices and float32 scores, or a ``LiveList``; empty before the first list.
    """

    bundle: bytes
    seen_ms: int
    last_click_ms: int
    n_clicks: int
    last_outcome: int
    trail: "Trail"
    model_state: bytes
    listed: bytes
    is_live: bool = False

    def encode(self) -> bytes:
        """Return the state's bytes (little-endian, versioned)."""
        n_listed = len(self.listed)
        header = (_HEADER_LIVE if self.is_live else _HEADER).pack(
            FORMAT_LIVE if self.is_live else FORMAT,
            self.last_outcome,
            self.bundle,
            self.seen_ms,
            self.last_click_ms,
            self.n_clicks,
            self.trail.n,
            len(self.model_state) // 4,
            n_listed if self.is_live else n_listed // 8,
        )
        return b"".join((header, self.trail.raw, self.model_state, self.listed))

    @classmethod
    def decode(cls, raw: bytes) -> "Stored":
        """Return the parts of a state. Raises StreamError on an unknown format version."""
        raw = in_todays_format(raw)
        is_live = raw[0] == FORMAT_LIVE
        header = _HEADER_LIVE if is_live else _HEADER
        _, outcome, bundle, seen_ms, last_ms, n_clicks, n_trail, n_state, n_listed = (
            header.unpack_from(raw)
        )
        list_at = len(raw) - n_listed * (1 if is_live else 8)
        state_at = list_at - 4 * n_state
        return cls(
            bundle,
            seen_ms,
            last_ms,
            n_clicks,
            outcome,
            Trail(n_trail, raw[header.size : state_at]),
            raw[state_at:list_at],
            raw[list_at:],
            is_live,
        )


class Trail(msgspec.Struct):
    """The last clicks of a session, as the bytes of ``n`` entries."""

    n: int = 0
    raw: bytes = b""

    def add(self, item_id: str, timestamp_ms: int, event_hash: int, context: bytes) -> None:
        """Append a click; the oldest one goes where there are too many."""
        item = item_id.encode()
        entry = _ENTRY.pack(timestamp_ms, event_hash, len(item), len(context))
        first = 0
        if self.n == TRAIL_CLICKS:
            _, _, n_item, n_context = _ENTRY.unpack_from(self.raw)
            first = _ENTRY.size + n_item + n_context
        else:
            self.n += 1
        self.raw = b"".join((self.raw[first:], entry, item, context))

    def has(self, event_hash: int) -> bool:
        """Whether a click with this event is among them; 0 is no event."""
        # Nearly always the first answer: the bytes are not there at all.
        return (
            event_hash != 0
            and event_hash.to_bytes(8, "little") in self.raw
            and any(click.event_hash == event_hash for click in self.clicks())
        )

    def items(self) -> list[str]:
        """The items alone, the latest last."""
        items, raw, at = [], self.raw, 0
        for _ in range(self.n):
            _, _, n_item, n_context = _ENTRY.unpack_from(raw, at)
            at += _ENTRY.size
            items.append(raw[at : at + n_item].decode())
            at += n_item + n_context
        return items

    def clicks(self) -> list[TrailClick]:
        clicks, raw, at = [], self.raw, 0
        for _ in range(self.n):
            timestamp_ms, event_hash, n_item, n_context = _ENTRY.unpack_from(raw, at)
            at += _ENTRY.size
            item_id = raw[at : at + n_item].decode()
            at += n_item
            clicks.append(TrailClick(item_id, timestamp_ms, event_hash, raw[at : at + n_context]))
            at += n_context
        return clicks


def encode_state(state: SessionState) -> bytes:
    """Return the state's bytes; the trail has no more clicks than a session keeps."""
    trail = Trail()
    for click in state.trail:
        trail.add(click.item_id, click.timestamp_ms, click.event_hash, click.context)
    return Stored(
        bytes.fromhex(state.bundle_id),
        state.seen_ms,
        state.last_click_ms,
        state.n_clicks,
        state.last_outcome,
        trail,
        state.model_state.tobytes(),
        encode_list(state.live)
        if state.live
        else state.top_index.tobytes() + state.top_score.tobytes(),
        state.live is not None,
    ).encode()


def decode_state(raw: bytes) -> SessionState:
    """Return the state of bytes, complete; its arrays are views on them.

    Raises StreamError on an unknown format version.
    """
    stored = Stored.decode(raw)
    live = decode_list(stored.listed) if stored.is_live and stored.listed else None
    half = 0 if live else len(stored.listed) // 2
    return SessionState(
        stored.bundle.hex(),
        stored.seen_ms,
        stored.last_click_ms,
        stored.n_clicks,
        LastOutcome(stored.last_outcome),
        tuple(stored.trail.clicks()),
        np.frombuffer(stored.model_state, np.float32),
        np.frombuffer(stored.listed[:half], np.int32),
        np.frombuffer(stored.listed[half:] if not live else b"", np.float32),
        live,
    )


def seen_ms(raw: bytes) -> int:
    """Return ``seen_ms`` without decoding the rest: expiry asks for many."""
    return int(_SEEN.unpack_from(raw, _SEEN_AT)[0])


def in_todays_format(raw: bytes) -> bytes:
    """Return a state's bytes as this version writes them.

    Format 1, of 0.1.0 and 0.2.0, has no seen_ms: there a session ended by the time of its last
    click. Raises, in one sentence, NewerFormatError on a newer format, StreamError on any other.
    """
    if raw[:1] == b"\x01" and len(raw) >= _HEADER.size - _SEEN.size:
        last_click = raw[_SEEN_AT:_LAST_CLICK_AT]
        return b"".join((bytes([FORMAT]), raw[1:_LAST_CLICK_AT], last_click, raw[_LAST_CLICK_AT:]))
    if len(raw) < _HEADER.size or raw[0] not in (FORMAT, FORMAT_LIVE):
        found = raw[0] if raw else "nothing"
        is_newer = len(raw) >= _HEADER.size and FORMAT_LIVE < raw[0] <= NEWEST_FORMAT
        kind = NewerFormatError if is_newer else StreamError
        cut = f" in {len(raw)} bytes" if found in (1, FORMAT, FORMAT_LIVE) else ""
        raise kind(
            f"session state has format {found}{cut}, but this version reads 1 to {FORMAT_LIVE}"
        )
    return raw


class PartitionSessions(PartitionStates):
    """The sessions of one partition; one expires by its ``seen_ms``."""

    as_of_today = staticmethod(in_todays_format)
    last_ms = staticmethod(seen_ms)
