"""What the processors tell each other of items: what clicks teach, and the counts that come of it.

Records of the item-events topic are ``ItemEvents``. Those of the item-view topic, whose key is an
item_id, are ``ItemRecord``; the item processor keeps the same bytes as an item's state.
"""

import struct
from typing import NamedTuple
from zlib import crc32

import msgspec

LATEST_MS = 2**43
"""In 2248: no click is from then, and one record of it would make all others nothing."""
EVENTS_FORMAT = 1
MOST_EVENTS = 1_500
"""Of a record, so that it stays below 800 kB with the longest ids."""
ITEM_FORMAT = 1

# format, forget_at_ms, publish_from_ms, as_of_ms, landmark_ms, n_counted, clicks
_HEADER = struct.Struct("<BqqqqQd")
_FORGET_AT = struct.Struct("<xq")


class ItemEvents(msgspec.Struct, array_like=True):
    """What the clicks of one batch teach of the items of one partition, column by column.

    item: whose counts change. other: what came after it, or before it. step: how many clicks after
    it (1, 2, ...) or before it (-1, -2, ...); 0: the item itself was clicked. timestamp_ms: of the
    click that taught it.
    """

    format: int
    item: list[str]
    other: list[str]
    step: list[int]
    timestamp_ms: list[int]


encode_events = msgspec.msgpack.Encoder().encode
decode_events = msgspec.msgpack.Decoder(ItemEvents).decode
"""Raises msgspec's errors, or UnicodeDecodeError."""


def partition_of(item_id: str, n_partitions: int) -> int:
    """Return the partition of the item-events topic that an item's events go to."""
    return crc32(item_id.encode()) % n_partitions


class ItemHead(NamedTuple):
    """The numbers of an item's record, which are read without the rest.

    forget_at_ms: when next to nothing is left of its counts. publish_from_ms: the next change is
    published from this time on, or a little earlier. as_of_ms: time of the latest event.
    landmark_ms: what the weights of its successors are as of. n_counted: all events that were ever
    counted. clicks: decayed, as of as_of_ms.
    """

    format: int
    forget_at_ms: int
    publish_from_ms: int
    as_of_ms: int
    landmark_ms: int
    n_counted: int
    clicks: float


class _Body(msgspec.Struct, array_like=True):
    totals: list[float]
    successor: list[str]
    weights: bytes


class ItemRecord(NamedTuple):
    """An item's counts: n successors at R half-lives.

    totals: R numbers, of all successors that were ever counted. weights: R rows of n float32,
    little-endian.
    """

    head: ItemHead
    totals: list[float]
    successor: list[str]
    weights: bytes

    def encode(self) -> bytes:
        body = _Body(self.totals, self.successor, self.weights)
        return _HEADER.pack(*self.head) + _encode_body(body)

    @classmethod
    def decode(cls, raw: bytes) -> "ItemRecord":
        """Return the record of bytes. Raises ValueError where they are none."""
        head = head_of(raw)
        try:
            body = _decode_body(memoryview(raw)[_HEADER.size :])
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise ValueError(f"not the counts of an item: {error}") from error
        if len(body.weights) != 4 * len(body.totals) * len(body.successor):
            raise ValueError(
                f"not the counts of an item: {len(body.weights)} bytes of weights for "
                f"{len(body.successor)} successors at {len(body.totals)} half-lives"
            )
        return cls(head, body.totals, body.successor, body.weights)


_encode_body = msgspec.msgpack.Encoder().encode
_decode_body = msgspec.msgpack.Decoder(_Body).decode


def head_of(raw: bytes) -> ItemHead:
    """Return the numbers of an item's record. Raises ValueError where the bytes are none."""
    if len(raw) < _HEADER.size or raw[0] != ITEM_FORMAT:
        found = f"format {raw[0]} in {len(raw)} bytes" if raw else "nothing"
        raise ValueError(f"not the counts of an item: {found}, expected format {ITEM_FORMAT}")
    head = ItemHead._make(_HEADER.unpack_from(raw))
    in_order = 0 < head.landmark_ms <= head.as_of_ms <= min(head.forget_at_ms, LATEST_MS)
    if not (in_order and 0.0 <= head.clicks <= head.n_counted):
        raise ValueError(f"not the counts of an item: {head}")
    return head


def forget_at_ms(raw: bytes) -> int:
    """Return when next to nothing is left of an item's counts: expiry asks for many."""
    return int(_FORGET_AT.unpack_from(raw)[0])
