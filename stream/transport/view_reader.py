"""Reads a compacted topic from its beginning on, outside of any group: a global table's records."""

import threading
import time
from collections import deque
from typing import Any

import structlog
from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, TopicPartition

from stream.settings import KafkaSettings
from stream.transport.clients import confluent_options
from stream.transport.reader import AT_ONCE, batch_at
from stream.transport.unreadable import BATCH_ERRORS

log = structlog.get_logger(__name__)

Change = tuple[bytes | None, bytes | None]
_TELL_EVERY_S = 60.0
_PAUSE_S = 0.2


class ViewReader:
    """A thread that reads; what it has read waits for ``changes``.

    While the topic cannot be read, what was read stays good, and it is told once a minute. A topic
    that was deleted and made anew is read from its beginning. A batch that librdkafka cannot read,
    which only somebody else can have written, is passed over.
    """

    def __init__(self, settings: KafkaSettings, topic: str, n_partitions: int) -> None:
        self._settings, self._topic, self._n_partitions = settings, topic, n_partitions
        self._changes: deque[Change] = deque()
        self._read = threading.Event()
        self._told_at = -_TELL_EVERY_S
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="view-reader", daemon=True)

    def start(self) -> None:
        """Begin to read."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread, and wait for it."""
        self._stop.set()
        self._thread.join()

    def wait_until_read(self, timeout_s: float) -> bool:
        """Wait until what the topic held at the start is read; whether that was in time."""
        return self._read.wait(timeout_s)

    def changes(self) -> list[Change]:
        """Return what was read since the last call, the oldest first."""
        waiting = self._changes
        return [waiting.popleft() for _ in range(len(waiting))]

    def _run(self) -> None:
        consumer = Consumer(
            confluent_options(self._settings)
            | {
                "group.id": self._settings.app_id,  # of no consequence: nothing is committed
                "enable.auto.commit": False,
                "enable.partition.eof": True,
                "auto.offset.reset": "earliest",
                "isolation.level": "read_committed",
                "queued.max.messages.kbytes": 65_536,
            }
        )
        partitions = range(self._n_partitions)
        consumer.assign([TopicPartition(self._topic, p, OFFSET_BEGINNING) for p in partitions])
        unread = set(partitions)
        while not self._stop.is_set():
            message: Any  # its stub says that a record may have no partition
            for message in consumer.consume(AT_ONCE, 0.1):
                if (error := message.error()) is None:
                    self._changes.append((message.key(), message.value()))
                elif error.code() == KafkaError._PARTITION_EOF:
                    unread.discard(message.partition())
                else:
                    self._meet(consumer, message, error)
            if not unread:
                self._read.set()
        consumer.close()

    def _meet(self, consumer: Consumer, message: Any, error: KafkaError) -> None:
        partition, offset = message.partition(), message.offset()
        batch = None
        if error.code() in BATCH_ERRORS:
            batch = batch_at(self._settings, self._topic, partition, offset)
        if batch:
            consumer.seek(TopicPartition(self._topic, partition, batch.stop))
        if batch or time.monotonic() - self._told_at > _TELL_EVERY_S:
            self._told_at = time.monotonic()
            log.warning(
                "view_not_read",
                topic=self._topic,
                partition=partition,
                offset=offset,
                detail=error.str(),
                passed_over=[batch.start, batch.stop - 1] if batch else None,
            )
        if not batch:
            self._stop.wait(_PAUSE_S)
