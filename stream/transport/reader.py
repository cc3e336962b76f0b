"""Reads ranges of a topic outside the consumer group: for restores, holes and resets."""

import threading
from collections.abc import Collection, Iterator, Mapping
from typing import Any

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

from stream.settings import KafkaSettings
from stream.transport.clients import confluent_options

TIMEOUT_S = 20
AT_ONCE = 10_000


def read_committed(
    settings: KafkaSettings,
    topic: str,
    start: Mapping[int, int],
    end: Mapping[int, int],
    stop: threading.Event | None = None,
    *,
    pass_over: bool = False,
) -> Iterator[list[Any]]:
    """Yield the committed records from ``start`` to ``end`` as librdkafka's messages, many at once.

    Where a transaction is open below ``end``, waits until it ends. A start below the log's begins
    at the log's. Blocks, so call it in a thread; ``stop`` ends it early. Raises KafkaException, but
    with ``pass_over`` goes on behind records whose batch cannot be decompressed.
    """
    pending = {p for p in start if start[p] < end[p]}
    if not pending:
        return
    consumer = Consumer(
        confluent_options(settings)
        | {
            "group.id": settings.app_id,  # of no consequence: nothing is subscribed or committed
            "enable.auto.commit": False,
            "enable.partition.eof": True,
            "auto.offset.reset": "earliest",
            "fetch.wait.max.ms": 20,
            "queued.max.messages.kbytes": 65_536,
        }
    )
    try:
        begin = {p: start[p] or OFFSET_BEGINNING for p in pending}
        consumer.assign([TopicPartition(topic, p, offset) for p, offset in begin.items()])
        reached = dict.fromkeys(pending, 0)
        while pending and not (stop and stop.is_set()):
            records = []
            passed_over = set()
            message: Any  # its stub says that a record may have no partition
            for message in consumer.consume(AT_ONCE, 0.1):
                partition, offset, error = message.partition(), message.offset(), message.error()
                if partition in passed_over:
                    continue  # comes again behind the seek
                if error is None:
                    if offset < end[partition]:
                        records.append(message)
                    offset += 1
                elif error.code() == KafkaError._BAD_COMPRESSION and pass_over:
                    offset = seek_behind(consumer, topic, message, reached[partition]) + 1
                    passed_over.add(partition)
                elif error.code() != KafkaError._PARTITION_EOF:
                    raise KafkaException(error)
                reached[partition] = offset
                if offset >= end[partition]:
                    pending.discard(partition)
            yield records
    finally:
        consumer.close()


def seek_behind(consumer: Consumer, topic: str, error: Any, reached: int) -> int:
    """Go on behind a record whose batch cannot be decompressed; returns the record's offset.

    librdkafka tells where the batch begins, stays there, and would repeat itself for ever (its
    issue 5260: zstd beyond some 100 MB). Where the batch ends it does not tell, so that each of its
    offsets is met, and passed over, by itself. What was fetched with the error comes again.
    """
    offset: int = max(error.offset(), reached)
    consumer.seek(TopicPartition(topic, error.partition(), offset + 1))
    return offset


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
