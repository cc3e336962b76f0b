"""Reads ranges of a topic outside the consumer group: for restores, holes and resets."""

import asyncio
import threading
from collections.abc import AsyncIterator, Collection, Iterable, Iterator, Mapping
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

import structlog
from aiokafka.client import AIOKafkaClient
from aiokafka.errors import KafkaError as ClientError
from aiokafka.errors import OffsetOutOfRangeError, for_code
from aiokafka.protocol.fetch import FetchRequest
from aiokafka.record.memory_records import MemoryRecords
from aiokafka.structs import TopicPartition as Place
from confluent_kafka import (
    OFFSET_BEGINNING,
    Consumer,
    IsolationLevel,
    KafkaError,
    KafkaException,
    TopicPartition,
)
from confluent_kafka.admin import (  # type: ignore[attr-defined]  # its __init__ has no __all__
    AdminClient,
    OffsetSpec,
)

from stream.contract.records import Record
from stream.settings import KafkaSettings
from stream.transport.clients import QUEUED_KIB, aiokafka_options, confluent_options
from stream.transport.unreadable import (
    BATCH_ERRORS,
    DEADLY,
    STATISTICS_MS,
    UNPARSABLE,
    Behind,
    Committed,
    Watch,
    batch_range,
    behind,
    deadly,
    decode_statistics,
    headers,
    promised,
    records_of,
)
from stream.transport.wire import partitions_by_topic

log = structlog.get_logger(__name__)

TIMEOUT_S = 20
AT_ONCE = 10_000
HEADERS_BYTES = 1 << 20
Answer = tuple[bytes, list[tuple[int, int]]]
"""What was fetched, and of the transactions in it that were aborted the producer's id and the first
offset."""
NO_ANSWER = (ClientError, TimeoutError, OSError)


class Unreadable(NamedTuple):
    """Offsets of a partition that librdkafka can neither deliver nor get past; ``why``: a verb."""

    partition: int
    offsets: range
    why: str


def read_committed(
    settings: KafkaSettings,
    topic: str,
    start: Mapping[int, int],
    end: Mapping[int, int],
    stop: threading.Event | None = None,
    *,
    passed_over: list[Unreadable],
) -> Iterator[list[Any]]:
    """Yield the committed records from ``start`` to ``end`` as librdkafka's messages, many at once.

    Where a transaction is open below ``end``, waits until it ends. A start below the log's begins
    at the log's. Blocks, so call it in a thread; ``stop`` ends it early. A batch that librdkafka
    cannot read is added to ``passed_over``. Raises KafkaException.
    """
    pending = {p for p in start if start[p] < end[p]}
    if not pending:
        return
    watch = Watch(topic)
    stuck: dict[int, int] = {}
    consumer = Consumer(
        confluent_options(settings)
        | {
            "group.id": settings.app_id,  # of no consequence: nothing is subscribed or committed
            "enable.auto.commit": False,
            "enable.partition.eof": True,
            "auto.offset.reset": "earliest",
            "fetch.wait.max.ms": 20,
            "queued.max.messages.kbytes": QUEUED_KIB,
            "statistics.interval.ms": STATISTICS_MS,
            "stats_cb": lambda text: stuck.update(watch.stuck(decode_statistics(text), pending)),
        }
    )
    try:
        begin = {p: start[p] or OFFSET_BEGINNING for p in pending}
        consumer.assign([TopicPartition(topic, p, offset) for p, offset in begin.items()])
        reached = dict.fromkeys(pending, 0)
        looked: dict[int, range | None] = {}

        def pass_over_batch(partition: int, batch: range, why: str) -> None:
            passed_over.append(Unreadable(partition, batch, why))
            consumer.seek(TopicPartition(topic, partition, batch.stop))
            reached[partition] = batch.stop

        while pending and not (stop and stop.is_set()):
            records = []
            sought = set()
            message: Any  # its stub says that a record may have no partition
            messages: list[Any] = consumer.consume(AT_ONCE, 0.1)
            for message in messages:
                partition, offset, error = message.partition(), message.offset(), message.error()
                if partition in sought:
                    continue  # comes again behind the seek
                if error is None:
                    if offset < end[partition]:
                        records.append(message)
                    reached[partition] = max(reached[partition], offset + 1)
                elif error.code() in BATCH_ERRORS:
                    at = max(offset, reached[partition])
                    if batch := batch_at(settings, topic, partition, at):
                        pass_over_batch(partition, batch, f"is in a batch with {error.str()}")
                        sought.add(partition)
                elif error.code() == KafkaError._PARTITION_EOF:
                    # Behind a record that says it is further on, the end comes back.
                    reached[partition] = max(reached[partition], offset)
                else:
                    raise KafkaException(error)
            # Where nothing comes, everything before them has been taken.
            while stuck and not messages:
                partition, offset = stuck.popitem()
                batch = looked.get(partition)
                if partition not in pending or offset < reached[partition]:
                    continue
                if offset >= end[partition]:
                    reached[partition] = offset
                elif batch and offset in batch:
                    pass_over_batch(partition, batch, UNPARSABLE)
                else:
                    looked[partition] = batch_at(settings, topic, partition, offset)
            pending -= {p for p in pending if reached[p] >= end[p]}
            yield records
    finally:
        consumer.close()


def bounds(
    settings: KafkaSettings, topic: str, partitions: Collection[int]
) -> dict[int, tuple[int, int, int]]:
    """Return by partition the log's first offset, its last stable one, and its end."""
    admin = AdminClient(confluent_options(settings))
    first, last = OffsetSpec.earliest(), OffsetSpec.latest()  # type: ignore[no-untyped-call]
    stable, written = IsolationLevel.READ_COMMITTED, IsolationLevel.READ_UNCOMMITTED
    asked = [
        admin.list_offsets(
            {TopicPartition(topic, p): spec for p in partitions},
            isolation_level=level,
            request_timeout=TIMEOUT_S,
        )
        for spec, level in ((first, written), (last, stable), (last, written))
    ]
    found = [{tp.partition: f.result(TIMEOUT_S).offset for tp, f in by.items()} for by in asked]
    return {p: (found[0][p], found[1][p], found[2][p]) for p in partitions}


def ends_of(
    settings: KafkaSettings, places: Iterable[tuple[str, int]]
) -> dict[tuple[str, int], tuple[int, int]]:
    """Return the last stable offset and the end of each (topic, partition)."""
    return {
        (topic, p): (stable, end)
        for topic, partitions in partitions_by_topic(places).items()
        for p, (_, stable, end) in bounds(settings, topic, partitions).items()
    }


def batch_at(settings: KafkaSettings, topic: str, partition: int, offset: int) -> range | None:
    """Return the offsets, from ``offset`` on, of the batch of records that is fetched there.

    None where it is a transaction's marker, where there is none, and where no broker answers.
    Blocks, so call it in a thread.
    """
    try:
        raw, _ = asyncio.run(_fetch_once(settings, topic, partition, offset))
    except NO_ANSWER as error:
        log.warning("batch_not_fetched", topic=topic, partition=partition, detail=str(error))
        return None
    return batch_range(raw, offset)


async def promised_in(
    settings: KafkaSettings, topic: str, holes: Mapping[int, Iterable[tuple[int, int]]]
) -> dict[int, range]:
    """Return, by partition, the first records that the log has in these ranges of offsets.

    By the headers of its batches: not what compaction has taken away, aborted records, transaction
    markers, and what lies before the log's begin or behind its end. Raises one of aiokafka's
    errors, TimeoutError or OSError where no broker answers.
    """
    found: dict[int, range] = {}
    async with _client(settings, topic) as client:
        for partition, of_partition in holes.items():
            for begin, end in of_partition:
                while begin < end and partition not in found:
                    try:
                        raw, aborted = await _fetch(client, topic, partition, begin)
                    except OffsetOutOfRangeError:
                        break
                    there, begin = promised(raw, aborted, range(begin, end))
                    if there is not None:
                        found[partition] = there
    return found


class Vetted(NamedTuple):
    """What a partition has up to behind the last batch that would abort the process.

    deadly: the offsets of such batches. records: all up to there, those of them as records that
    cannot be read; made as they are taken, for there may be millions. stop: where to go on.
    """

    deadly: list[range]
    records: Iterator[Record]
    stop: int


async def vetted(
    settings: KafkaSettings, topic: str, offsets: Mapping[int, int], ahead_bytes: int
) -> dict[int, Vetted]:
    """Look for batches that would abort the process in all that is fetched ahead of these offsets.

    ahead_bytes: what the consumer queues, of all partitions together. By partition where there is
    such a batch. Raises one of aiokafka's errors, TimeoutError or OSError where no broker answers.
    """
    fetched: dict[int, list[Answer]] = {p: [] for p in offsets}
    found: dict[int, dict[int, range]] = {p: {} for p in offsets}
    pending, n_bytes = dict(offsets), 0
    async with _client(settings, topic) as client:
        # As the consumer does, in turn; it fetches until its queue is full.
        while pending and n_bytes <= ahead_bytes:
            for partition, offset in [*pending.items()]:
                try:
                    answer = await _fetch(client, topic, partition, offset)
                except OffsetOutOfRangeError:
                    answer = b"", []
                raw, _ = answer
                fetched[partition].append(answer)
                batches, further = await asyncio.to_thread(_looked_through, raw)
                n_bytes += further.n_bytes or len(raw)
                for batch in batches:
                    if batch.stop > offset:
                        found[partition][batch.start] = batch
                if further.offset is None:
                    del pending[partition]
                else:
                    pending[partition] = further.offset
    return {
        p: Vetted([*of_p.values()], _records(fetched[p], p, offsets[p], of_p), _stop(of_p))
        for p, of_p in found.items()
        if of_p
    }


def _stop(batches: Mapping[int, range]) -> int:
    return max(batch.stop for batch in batches.values())


def _looked_through(raw: bytes) -> tuple[list[range], Behind]:
    return [header.offsets for header in deadly(raw)], behind(raw)


def _records(
    answers: Iterable[Answer], partition: int, begin: int, deadly: Mapping[int, range]
) -> Iterator[Record]:
    """The committed records from there on, of answers in a row, without librdkafka."""
    stop = _stop(deadly)
    committed = Committed({pair for _, aborted in answers for pair in aborted})
    for raw, _ in answers:
        for header in headers(raw):
            if header.offsets.start >= stop:
                return
            if header.offsets.stop <= begin:
                continue
            is_deadly = header.offsets.start in deadly
            if header.place.stop > len(raw) and not is_deadly:
                continue  # cut off, it begins the next answer
            shown, places = committed.shows(header), range(begin, header.offsets.stop)
            begin = header.offsets.stop
            if not shown:
                continue
            if is_deadly:
                batch = range(max(places.start, header.offsets.start), places.stop)
                yield from records_of(partition, batch, DEADLY)
                continue
            try:
                found = [
                    Record(partition, r.offset, r.timestamp, r.key, r.value, tuple(r.headers))
                    for r in MemoryRecords(raw[header.place]).next_batch() or ()
                ]
            except Exception as error:  # whatever its parser meets
                why = f"is in a batch that cannot be read: {error}"
                found = [*records_of(partition, header.offsets, why)]
            yield from (record for record in found if record.offset in places)


@asynccontextmanager
async def _client(settings: KafkaSettings, topic: str) -> AsyncIterator[AIOKafkaClient]:
    client = AIOKafkaClient(**aiokafka_options(settings), request_timeout_ms=TIMEOUT_S * 1000)
    try:
        await client.bootstrap()
        await client.set_topics([topic])
        yield client
    finally:
        await client.close()


async def _fetch_once(settings: KafkaSettings, topic: str, partition: int, offset: int) -> Answer:
    async with _client(settings, topic) as client:
        return await _fetch(client, topic, partition, offset, 1)


async def _fetch(
    client: AIOKafkaClient, topic: str, partition: int, offset: int, n_bytes: int = HEADERS_BYTES
) -> Answer:
    """What the log has from there on for readers of committed records."""
    leader = client.cluster.leader_for_partition(Place(topic, partition))
    if leader is None or leader < 0:
        raise ClientError(f"{topic}-{partition} has no leader")
    # A broker answers with the whole of the first batch, however little is asked for.
    request = FetchRequest(0, 1, n_bytes, 1, [(topic, [(partition, offset, n_bytes)])])
    answer = await client.send(leader, request)
    for _, partitions in answer.topics:
        for _, code, _, _, _, aborted, *_, raw in partitions:  # versions 5 to 11
            if code:
                raise for_code(code)()
            return bytes(raw or b""), list(aborted or ())
    raise ClientError(f"the answer has nothing of {topic}-{partition}")
