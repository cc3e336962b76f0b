"""Batches that librdkafka can neither deliver nor get past: who sees them, and where they end.

One that it cannot decompress is an error that it repeats for ever (its issue 5260: zstd beyond some
100 MB); of a record that it cannot parse, such as one with a key of length -2, which a broker
takes, it tells nobody: its statistics alone show a partition that is fetched again and again. Where
such a batch ends only its header says, so that it is fetched once more, by another client.
"""

import struct
from collections import Counter
from collections.abc import Collection
from typing import NamedTuple

import msgspec

STATISTICS_MS = 1_000
STILL_S = 5.0
STILL_FETCHES = 5
"""A round of nothing. Fetches count, too: over a slow line, one of 50 MB may take longer."""
UNPARSABLE = "lies in a batch that the Kafka client cannot parse"

_HEADER = struct.Struct(">qiibIhi")
"""First offset, length, leader epoch, magic, checksum, attributes, last offset delta."""
_CONTROL = 0x20


class _Broker(msgspec.Struct):
    nodeid: int
    req: dict[str, int]


class _Partition(msgspec.Struct):
    broker: int
    fetch_state: str
    next_offset: int
    ls_offset: int


class _Topic(msgspec.Struct):
    partitions: dict[int, _Partition]


class _Group(msgspec.Struct):
    state: str


class Statistics(msgspec.Struct):
    """librdkafka's statistics, as far as we read them; ``ts`` in microseconds of its own clock."""

    ts: int
    brokers: dict[str, _Broker]
    topics: dict[str, _Topic]
    cgrp: _Group | None = None


class _Round(NamedTuple):
    offset: int
    broker: int
    ts: int
    n_fetches: int


decode_statistics = msgspec.json.Decoder(Statistics, strict=False).decode


class Watch:
    """Looks for partitions of a topic whose fetches bring nothing though there is something."""

    def __init__(self, topic: str) -> None:
        self._topic = topic
        self._rounds: dict[int, _Round] = {}

    def stuck(self, statistics: Statistics, reading: Collection[int]) -> dict[int, int]:
        """Return the offset before which partitions have stood still for a round.

        reading: the partitions to look at, those that are not paused. Behind the offset is what
        readers of committed records may see: with an open transaction alone nobody is stuck.
        """
        found: dict[int, int] = {}
        topic = statistics.topics.get(self._topic)
        partitions = topic.partitions if topic else {}
        fetches: Counter[int] = Counter()  # the coordinator is listed a second time
        for broker in statistics.brokers.values():
            fetches[broker.nodeid] += broker.req.get("Fetch", 0)
        rounds, self._rounds = self._rounds, {}
        for p in reading & partitions.keys():
            now = partitions[p]
            if now.fetch_state != "active" or now.next_offset >= now.ls_offset:
                continue
            n_fetches = fetches[now.broker]
            begun = rounds.get(p)
            if begun is None or begun[:2] != (now.next_offset, now.broker):
                begun = _Round(now.next_offset, now.broker, statistics.ts, n_fetches)
            elif (
                statistics.ts - begun.ts >= STILL_S * 1e6
                and n_fetches - begun.n_fetches >= STILL_FETCHES
            ):
                found[p] = now.next_offset
                begun = begun._replace(ts=statistics.ts, n_fetches=n_fetches)
            self._rounds[p] = begun
        return found


def batch_range(raw: bytes, offset: int) -> range | None:
    """The offsets from ``offset`` on of the batch that begins these bytes; None if it is none."""
    if len(raw) < _HEADER.size:
        return None
    first, _, _, magic, _, attributes, delta = _HEADER.unpack_from(raw)
    if magic < 2:  # a message set of old brokers is known by its last offset
        return range(min(offset, first), first + 1)
    return None if attributes & _CONTROL else range(max(offset, first), first + delta + 1)
