"""Batches that librdkafka can neither deliver nor get past: who sees them, and where they end.

One that it cannot decompress is an error that it repeats for ever (its issue 5260: zstd beyond some
100 MB); of a record that it cannot parse, such as one with a key of length -2, which a broker
takes, it tells nobody: its statistics alone show a partition that is fetched again and again. Where
such a batch ends only its header says, so that it is fetched once more, by another client.
"""

import struct
import time
import zlib
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from contextlib import suppress
from typing import NamedTuple

import msgspec
from confluent_kafka import KafkaError

from stream.contract.records import Record

STATISTICS_MS = 1_000
STILL_S = 5.0
STILL_FETCHES = 5
"""A round of nothing. Fetches count, too: over a slow line, one of 50 MB may take longer."""
BATCH_ERRORS = {KafkaError._BAD_COMPRESSION, KafkaError._BAD_MSG}
"""Errors of librdkafka at a batch, which it repeats: the second is that of lz4 with more behind its
frame."""
UNPARSABLE = "lies in a batch that the Kafka client cannot parse"

DEADLY = "is in a batch at which the Kafka client would abort the process"

_BEGIN = struct.Struct(">qiib")
"""First offset, length of what follows it, leader epoch, magic."""
_HEADER = struct.Struct(">qiibIhiqqqhii")
"""The same, checksum, attributes, last offset delta, first and last timestamp, producer's id, epoch
and sequence, number of records."""
_CODEC, _GZIP, _TRANSACTIONAL, _CONTROL = 7, 1, 0x10, 0x20
_ANY_GZIP = 31
"""zlib's name for gzip with any window."""


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


class Header(NamedTuple):
    """What a batch says of itself; of a message set of old brokers, its last offset alone."""

    offsets: range
    is_old: bool = False
    is_control: bool = False
    is_whole: bool = False
    """Whether it has a record for each of its offsets: compaction takes some away."""
    transaction_of: int | None = None
    """The producer's id if it is part of a transaction."""
    place: slice = slice(0)
    """Where the batch is in the bytes."""
    gzip: slice = slice(0)
    """Where what gzip has compressed is in them."""


class Committed:
    """Tells batches that readers of committed records are given; ask for each, in the log's order.

    aborted: of transactions that were, the producer's id and the first offset.
    """

    def __init__(self, aborted: Iterable[tuple[int, int]]) -> None:
        self._aborted = [*aborted]
        self._ended: dict[int | None, int] = {}  # by producer, where its last transaction did

    def shows(self, header: Header) -> bool:
        producer_id, at = header.transaction_of, header.offsets.start
        if header.is_control:
            self._ended[producer_id] = at
            return False
        ended = self._ended.get(producer_id, -1)
        return (
            producer_id is None
            or not any(of == producer_id and ended < first <= at for of, first in self._aborted)
        )  # fmt: skip


def headers(raw: bytes) -> Iterator[Header]:
    """Those of the batches in these bytes, up to the first that is cut off within its header."""
    at = 0
    while at + _BEGIN.size <= len(raw):
        first, length, _, magic = _BEGIN.unpack_from(raw, at)
        end = at + 12 + length  # the first offset and the length itself
        if magic < 2:
            yield Header(range(first, first + 1), is_old=True, place=slice(at, end))
        elif at + _HEADER.size <= len(raw):
            *_, attributes, delta, _, _, producer_id, _, _, n = _HEADER.unpack_from(raw, at)
            yield Header(
                range(first, first + delta + 1),
                is_control=bool(attributes & _CONTROL),
                is_whole=n == delta + 1,
                transaction_of=producer_id if attributes & _TRANSACTIONAL else None,
                place=slice(at, end),
                gzip=slice(at + _HEADER.size, end) if attributes & _CODEC == _GZIP else slice(0),
            )
        else:
            return
        at = end


def batch_range(raw: bytes, offset: int) -> range | None:
    """The offsets from ``offset`` on of the batch that begins these bytes; None if it is none."""
    header = next(headers(raw), None)
    if header is None or header.is_control:
        return None
    begin = min if header.is_old else max
    return range(begin(offset, header.offsets.start), header.offsets.stop)


def promised(
    raw: bytes, aborted: Collection[tuple[int, int]], hole: range
) -> tuple[range | None, int]:
    """The first records that batches have in a hole by their headers, and where they end.

    raw: what was fetched at the hole's begin. aborted: of the transactions in it that were, the
    producer's id and the first offset. Where nothing was fetched, they end with the hole.
    """
    end = hole.start
    committed = Committed(aborted)
    for header in headers(raw):
        if header.offsets.start >= hole.stop:
            break
        if committed.shows(header) and header.is_whole:
            return range(max(hole.start, header.offsets.start), header.offsets.stop), hole.stop
        end = max(end, header.offsets.stop)
    else:
        return None, end if end > hole.start else hole.stop
    return None, hole.stop


def deadly(raw: bytes) -> list[Header]:
    """The batches here of which librdkafka makes nothing at all, and then aborts the process
    (2.16.1, ``rd_slice_init_full``): gzip with an empty member first. Brokers read the next, too.
    """
    found = []
    for header in headers(raw):
        if header.gzip.stop:
            packed = zlib.decompressobj(_ANY_GZIP)
            with suppress(zlib.error):
                if raw[header.gzip] and not packed.decompress(raw[header.gzip], 1) and packed.eof:
                    found.append(header)
    return found


def records_of(partition: int, batch: range, why: str) -> Iterator[Record]:
    """Each offset of a batch as a record that cannot be read; ``why``: a verb."""
    now_ms = time.time_ns() // 1_000_000
    return (Record(partition, offset, now_ms, None, None, trouble=why) for offset in batch)


class Behind(NamedTuple):
    """Where to fetch what comes behind the whole batches of an answer; None if it holds no batch.

    n_bytes: of the whole ones.
    """

    offset: int | None
    n_bytes: int


def behind(raw: bytes) -> Behind:
    last = Behind(None, 0)
    for header in headers(raw):
        if header.place.stop > len(raw):  # cut off: it comes once more, whole if it is the first
            return Behind(header.offsets.start, last.n_bytes)
        last = Behind(header.offsets.stop, header.place.stop)
    return last
