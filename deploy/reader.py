"""A reader of whole topics that belongs to no consumer group and commits nothing."""

import time
from collections.abc import Mapping
from typing import Any, Self

from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, Message, TopicPartition

from deploy.command import DeployError

TIMEOUT_S = 20.0


class TopicReader:
    """Reads the committed records of every partition, from the first one on."""

    def __init__(self, client: Mapping[str, Any], topic: str) -> None:
        """`client`: confluent-kafka's options, `bootstrap.servers` at least."""
        self._consumer = Consumer(
            {
                **client,
                "group.id": "nextclick-reader",  # required, never joined
                "enable.auto.commit": False,
                "enable.partition.eof": True,
                "isolation.level": "read_committed",
            }
        )
        partitions = self._consumer.list_topics(topic, timeout=TIMEOUT_S).topics[topic].partitions
        self._consumer.assign([TopicPartition(topic, p, OFFSET_BEGINNING) for p in partitions])
        self.unread = set(partitions)
        """Partitions whose end has not been reached yet."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._consumer.close()

    def next(self, most: int = 1000, timeout_s: float = 0.1) -> list[Message]:
        """The next records; fewer than `most`, or none, after `timeout_s`."""
        records = []
        for record in self._consumer.consume(most, timeout_s):
            error = record.error()
            if error is None:
                records.append(record)
            elif error.code() == KafkaError._PARTITION_EOF:
                self.unread.discard(place(record)[0])
            elif not error.retriable():
                raise DeployError(f"topic {record.topic()}: {error.str()}")
        return records


def read_topic(client: Mapping[str, Any], topic: str, timeout_s: float = 60.0) -> list[Message]:
    """Every committed record of a topic, up to the end there is now. Raises DeployError if the end
    is not reached in time."""
    records = []
    deadline = time.monotonic() + timeout_s
    with TopicReader(client, topic) as reader:
        while reader.unread:
            if time.monotonic() > deadline:
                raise DeployError(f"topic {topic} was not read to its end within {timeout_s:g} s")
            records += reader.next()
    return records


def place(record: Message) -> tuple[int, int]:
    """Partition and offset."""
    partition, offset = record.partition(), record.offset()
    assert partition is not None and offset is not None
    return partition, offset


def headers(record: Message) -> dict[str, bytes]:
    """The headers by name, those without a value left out."""
    return {name: v for name, v in dict(record.headers() or []).items() if isinstance(v, bytes)}
