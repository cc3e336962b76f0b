"""Reads a compacted topic from its beginning on, outside of any group: a global table's records."""

import threading
import time
from collections import deque
from math import inf
from typing import Any

import structlog
from confluent_kafka import (
    OFFSET_BEGINNING,
    Consumer,
    KafkaError,
    KafkaException,
    TopicCollection,
    TopicPartition,
)
from confluent_kafka.admin import (  # type: ignore[attr-defined]  # its __init__ has no __all__
    AdminClient,
    TopicDescription,
)

from stream.settings import KafkaSettings
from stream.transport.clients import QUEUED_KIB, confluent_options
from stream.transport.reader import AT_ONCE, batch_at
from stream.transport.unreadable import BATCH_ERRORS

log = structlog.get_logger(__name__)

Change = tuple[bytes | None, bytes | None]
SPREAD_S = 0.25
LEAST_TAKEN = 64
"""What the item processor publishes at once is taken bit by bit: no click is answered meanwhile,
and 1,500 records take 9 ms. At 1,000 clicks/s the p99 was 43 to 89 ms, and is 48 to 51."""
_TELL_EVERY_S = 60.0
_PAUSE_S = 0.2
_LOOK_EVERY_S = 2.0
_LOOK_S = 1.5


class ViewReader:
    """A thread that reads; what it has read waits for ``changes``.

    While the topic cannot be read, what was read stays good, and it is told once a minute. A topic
    that was deleted and made anew is read from its beginning: librdkafka (2.16) goes on at the old
    offset where the new one has come that far, so its id is looked at. A batch that librdkafka
    cannot read, which only somebody else can have written, is passed over.
    """

    def __init__(self, settings: KafkaSettings, topic: str) -> None:
        self._settings, self._topic = settings, topic
        self._admin = AdminClient(confluent_options(settings))
        self._changes: deque[Change] = deque()
        self._taken_at = -inf
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
        """Return what was read and not returned yet, the oldest first.

        Of much that waits the part that is due, so that all of it is taken in some
        ``SPREAD_S``; after a pause, and the first time, that is everything.
        """
        waiting, now = self._changes, time.monotonic()
        n_due = max(LEAST_TAKEN, len(waiting) * min(1.0, (now - self._taken_at) / SPREAD_S))
        self._taken_at = now
        return [waiting.popleft() for _ in range(min(len(waiting), int(n_due)))]

    def _run(self) -> None:
        found = None
        while not self._stop.is_set():
            found = found or self._look()
            if found is None:
                self._stop.wait(_PAUSE_S)
            else:
                found = self._read_one(found)

    def _read_one(self, topic: TopicDescription) -> TopicDescription | None:
        """Read until another topic has the name; returns that one."""
        consumer = Consumer(
            confluent_options(self._settings)
            | {
                "group.id": self._settings.app_id,  # of no consequence: nothing is committed
                "enable.auto.commit": False,
                "enable.partition.eof": True,
                "auto.offset.reset": "earliest",
                "isolation.level": "read_committed",
                "queued.max.messages.kbytes": QUEUED_KIB,
            }
        )
        unread = {partition.id for partition in topic.partitions}
        consumer.assign([TopicPartition(self._topic, p, OFFSET_BEGINNING) for p in unread])
        looked_at = time.monotonic()
        try:
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
                if time.monotonic() - looked_at > _LOOK_EVERY_S:
                    found = self._look()
                    if found is not None and str(found.topic_id) != str(topic.topic_id):
                        log.warning("view_made_anew", topic=self._topic)
                        return found
                    looked_at = time.monotonic()
        finally:
            consumer.close()
        return None

    def _look(self) -> TopicDescription | None:
        """Describe the topic; None where there is none, or no broker says so in time."""
        request = TopicCollection([self._topic])
        try:
            asked = self._admin.describe_topics(request, request_timeout=_LOOK_S)
            found: TopicDescription = asked[self._topic].result()
            return found
        except KafkaException as error:
            # A client that has lost its broker may time out for ever.
            self._admin = AdminClient(confluent_options(self._settings))
            if error.args[0].code() == KafkaError.UNKNOWN_TOPIC_OR_PART:
                self._tell(detail=error.args[0].str())
            return None

    def _meet(self, consumer: Consumer, message: Any, error: KafkaError) -> None:
        partition, offset = message.partition(), message.offset()
        batch = None
        if error.code() in BATCH_ERRORS:
            batch = batch_at(self._settings, self._topic, partition, offset)
        if batch:
            consumer.seek(TopicPartition(self._topic, partition, batch.stop))
            self._tell(
                partition=partition,
                detail=error.str(),
                passed_over=[batch.start, batch.stop - 1],
                always=True,
            )
        else:
            self._tell(partition=partition, offset=offset, detail=error.str())
            self._stop.wait(_PAUSE_S)

    def _tell(self, *, always: bool = False, **what: Any) -> None:
        if always or time.monotonic() - self._told_at > _TELL_EVERY_S:
            self._told_at = time.monotonic()
            log.warning("view_not_read", topic=self._topic, **what)
