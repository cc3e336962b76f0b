"""The session table's store for Faust, and the restore that fills it from the changelog.

Faust's own recovery hangs for ever behind a transaction's commit marker, so the restore is ours:
a read_committed reader that goes by positions, which pass over markers.
"""

import logging
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Mapping
from typing import Any

from aiokafka import AIOKafkaConsumer, ConsumerRecord, TopicPartition
from faust.stores import STORES, memory

from stream.kafka import aiokafka_options
from stream.sessions import Sessions
from stream.settings import KafkaSettings

STORE_URL = "nextclick-sessions://"
STORES.aliases["nextclick-sessions"] = "stream.store:SessionStore"


class SessionStore(memory.Store[bytes, bytes]):
    """Faust's plug-in: the table's data is a ``Sessions``; Faust itself writes nothing to it."""

    logger = logging.getLogger("faust.store")

    def __post_init__(self) -> None:
        super().__post_init__()
        self.sessions = Sessions()

    def apply_changelog_batch(
        self,
        batch: Iterable[Any],
        to_key: Callable[[Any], Any],
        to_value: Callable[[Any], Any],
    ) -> None:
        """Never called: every changelog partition is restored by ``restore_sessions``."""
        raise AssertionError("Faust read the changelog of its own; see faust_patches.py")


class CommittedReader:
    """Reads ranges of a topic by offset, committed records only. Starts at its first use."""

    def __init__(self, settings: KafkaSettings) -> None:
        self._settings = settings
        self._consumer: AIOKafkaConsumer | None = None

    async def read(
        self, topic: str, start: Mapping[int, int], end: Mapping[int, int] | None = None
    ) -> AsyncIterator[ConsumerRecord]:
        """Yield the records of partitions from ``start`` to ``end`` (None: to what is there now).

        A start below the log's own begins at the log's. One range at a time.
        """
        consumer = await self._started()
        tps = {p: TopicPartition(topic, p) for p in start}
        consumer.assign(list(tps.values()))
        first = await consumer.beginning_offsets(list(tps.values()))
        last = await consumer.end_offsets(list(tps.values()))  # the last stable offset
        stop = {tp: last[tp] if end is None else min(last[tp], end[p]) for p, tp in tps.items()}
        for p, tp in tps.items():
            consumer.seek(tp, max(start[p], first[tp]))
        while pending := [tp for tp in stop if await consumer.position(tp) < stop[tp]]:
            for tp, records in (await consumer.getmany(*pending, timeout_ms=100)).items():
                for record in records:
                    if record.offset < stop[tp]:
                        yield record

    async def _started(self) -> AIOKafkaConsumer:
        if self._consumer is None:
            consumer = AIOKafkaConsumer(
                **aiokafka_options(self._settings),
                isolation_level="read_committed",
                auto_offset_reset="earliest",
                enable_auto_commit=False,
                fetch_max_wait_ms=20,
                max_partition_fetch_bytes=8 * 1024 * 1024,
            )
            await consumer.start()
            self._consumer = consumer
        return self._consumer

    async def close(self) -> None:
        """Stop the consumer, where one was started."""
        if self._consumer is not None:
            await self._consumer.stop()
            self._consumer = None


async def restore_sessions(
    sessions: Sessions, partitions: Collection[int], reader: CommittedReader, topic: str
) -> int:
    """Bring the partitions up to the end of the changelog; returns the records read.

    Reads on where a partition that was kept stands. The producers of the partitions must have
    been fenced before, or an open transaction of their last owner hides what lies behind it.
    """
    start = {p: sessions.partitions[p].changelog_offset for p in partitions}
    n_records = 0
    async for record in reader.read(topic, start):
        of_partition = sessions.partitions[record.partition]
        of_partition.restore(record.key, record.value)
        of_partition.changelog_offset = record.offset + 1
        n_records += 1
    for partition in partitions:
        sessions.partitions[partition].finish_restore()
    return n_records
