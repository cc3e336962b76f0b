"""A reader of our topics that is no part of the worker: what it saw is what was delivered."""

import threading
import time
from types import TracebackType
from typing import Any, Self

import msgspec
from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, Message, TopicPartition

from deploy.demo.summary import Answer, Replay, Source, parse_source
from stream.contract.messages import Recommendation
from stream.settings import KafkaSettings
from stream.transport.clients import confluent_options

TIMEOUT_S = 20.0
_decode = msgspec.json.Decoder(Recommendation).decode


class AnswerReader:
    """Reads committed recommendations from the first on while the block lasts.

    ``answers`` grows as they come, each with this machine's clock at its receipt. The reading
    thread must not wait for others: leave the interpreter to it while latencies are measured.
    """

    def __init__(self, settings: KafkaSettings) -> None:
        self.answers: list[Answer] = []
        self._consumer = _consumer(settings, settings.recommendations_topic)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._read, daemon=True)

    def wait_for(self, n_answers: int, quiet_s: float) -> None:
        """Return when so many answers came, or none came for ``quiet_s``."""
        n_before, since = len(self.answers), time.monotonic()
        while len(self.answers) < n_answers and time.monotonic() - since < quiet_s:
            time.sleep(0.05)
            if len(self.answers) > n_before:
                n_before, since = len(self.answers), time.monotonic()

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._ended.set()
        self._thread.join()
        self._consumer.close()

    def _read(self) -> None:
        while not self._ended.is_set():
            record = self._consumer.poll(0.2)
            if record is None or record.error() is not None:
                continue
            received_ms = time.time() * 1000
            value = record.value()
            assert value is not None, "the recommendations topic holds no tombstones"
            self.answers.append(
                Answer(parse_source(_headers(record)["source"]), _decode(value), received_ms)
            )


def read_replay(settings: KafkaSettings, answers: list[Answer]) -> Replay:
    """What the topics hold now, with the answers that a reader saw."""
    clicks = read_topic(settings, settings.clicks_topic)
    dead_letters = read_topic(settings, settings.dead_letter_topic)
    return Replay(
        appended_ms={_place(record): record.timestamp()[1] for record in clicks},
        answers=answers,
        rejected={
            (int(headers["partition"]), int(headers["offset"]))
            for headers in map(_headers, dead_letters)
        },
    )


def read_topic(settings: KafkaSettings, topic: str) -> list[Message]:
    """Every committed record of a topic that exists, from the first to the last there is now.

    Raises TimeoutError if the broker falls silent in between.
    """
    consumer = _consumer(settings, topic, {"enable.partition.eof": True})
    try:
        unread = {partition.partition for partition in consumer.assignment()}
        records = []
        while unread:
            record = consumer.poll(TIMEOUT_S)
            if record is None:
                raise TimeoutError(f"no more records of {topic} within {TIMEOUT_S:.0f} s")
            error = record.error()
            if error is None:
                records.append(record)
            elif error.code() == KafkaError._PARTITION_EOF:
                unread.discard(_place(record)[0])
        return records
    finally:
        consumer.close()


def _consumer(
    settings: KafkaSettings, topic: str, options: dict[str, Any] | None = None
) -> Consumer:
    """A consumer of the whole topic that belongs to no group and commits nothing."""
    consumer = Consumer(
        confluent_options(settings)
        | {
            "group.id": f"{settings.app_id}-reader",  # asked for, never joined
            "enable.auto.commit": False,
            "isolation.level": "read_committed",
        }
        | (options or {})
    )
    partitions = consumer.list_topics(topic, timeout=TIMEOUT_S).topics[topic].partitions
    consumer.assign([TopicPartition(topic, number, OFFSET_BEGINNING) for number in partitions])
    return consumer


def _place(record: Message) -> Source:
    partition, offset = record.partition(), record.offset()
    assert partition is not None
    assert offset is not None
    return partition, offset


def _headers(record: Message) -> dict[str, str]:
    pairs = record.headers() or []
    assert isinstance(pairs, list)
    return {name: value.decode() for name, value in pairs if isinstance(value, bytes)}
