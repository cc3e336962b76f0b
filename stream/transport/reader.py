"""Reads ranges of a topic outside the consumer group: for restores, holes and resets."""

from collections.abc import AsyncIterator, Collection, Mapping

from aiokafka import AIOKafkaConsumer, ConsumerRecord, TopicPartition

from stream.settings import KafkaSettings
from stream.transport.clients import aiokafka_options


class CommittedReader:
    """Reads ranges of a topic by offset, committed records only. Starts at its first use."""

    def __init__(self, settings: KafkaSettings) -> None:
        self._settings = settings
        self._consumer: AIOKafkaConsumer | None = None

    async def read(
        self, topic: str, start: Mapping[int, int], end: Mapping[int, int] | None = None
    ) -> AsyncIterator[ConsumerRecord]:
        """Yield the records of partitions from ``start`` to ``end`` (None: to what is there now).

        A start below the log's begins at the log's. One range at a time.
        """
        consumer = await self._started()
        bounds = await self.bounds(topic, start)
        tps = {p: TopicPartition(topic, p) for p in start}
        consumer.assign(list(tps.values()))
        stop = {}
        for p, tp in tps.items():
            first, last = bounds[p]
            consumer.seek(tp, max(start[p], first))
            stop[tp] = last if end is None else min(last, end[p])
        while pending := [tp for tp in stop if await consumer.position(tp) < stop[tp]]:
            for tp, records in (await consumer.getmany(*pending, timeout_ms=100)).items():
                for record in records:
                    if record.offset < stop[tp]:
                        yield record

    async def bounds(self, topic: str, partitions: Collection[int]) -> dict[int, tuple[int, int]]:
        """Return by partition the log's first offset and its last stable one."""
        consumer = await self._started()
        tps = [TopicPartition(topic, p) for p in partitions]
        first = await consumer.beginning_offsets(tps)
        last = await consumer.end_offsets(tps)
        return {tp.partition: (first[tp], last[tp]) for tp in tps}

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
        """Stop the consumer, if one was started."""
        if self._consumer is not None:
            await self._consumer.stop()
            self._consumer = None
