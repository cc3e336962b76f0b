"""Clicks in and records out, with clients that are not ours."""

import itertools
import json
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from confluent_kafka import KafkaError, Message, Producer

from deploy import reader
from deploy.reader import TopicReader
from stream.contract.records import Record
from stream.transport.fetched import record_of

LOG_BEGIN_MS = 1_700_000_000_000
"""When the clicks of the tests begin: in the past, so that no clock refuses them."""

PATIENT = {
    "log_level": 2,
    "reconnect.backoff.max.ms": 200,
    "topic.metadata.refresh.interval.ms": 1_000,
}
"""Options of a client whose broker may be away: no log lines, and soon back with it.

A consumer may notice by the refresh alone that its partitions have a leader again.
"""


@dataclass(frozen=True)
class Stored:
    """One record that a reader finds in a topic."""

    partition: int
    offset: int
    timestamp_ms: int
    key: bytes | None
    value: bytes | None
    headers: dict[str, bytes]
    record: Record
    """As the worker reads it."""


def click(
    session: str, item: str, timestamp_ms: int, event: str | None = None, **more: object
) -> bytes:
    """A click's JSON, as a producer that is not ours would write it."""
    fields: dict[str, object] = {
        "session_id": session,
        "item_id": item,
        "timestamp_ms": timestamp_ms,
        **more,
    }
    if event is not None:
        fields["event_id"] = event
    return json.dumps(fields).encode()


def produce(
    bootstrap_servers: str,
    topic: str,
    messages: Iterable[tuple[bytes | None, bytes | None]],
    *,
    partition: int = -1,
    per_second: float | None = None,
    compression: str = "none",
) -> int:
    """Send records with a plain idempotent producer; returns how many, all of them delivered."""
    refused: list[KafkaError] = []

    def delivered(error: KafkaError | None, _: Message) -> None:
        if error is not None:
            refused.append(error)

    producer = Producer(
        {
            "bootstrap.servers": bootstrap_servers,
            "partitioner": "murmur2_random",
            "enable.idempotence": True,
            "message.max.bytes": 500_000_000,
            "compression.type": compression,
            "linger.ms": 2,
            **PATIENT,
        }
    )
    started = time.monotonic()
    n = 0
    for key, value in messages:
        if per_second is not None:
            ahead = n / per_second - (time.monotonic() - started)
            if ahead > 0.005:
                time.sleep(ahead)
        while True:
            try:
                producer.produce(
                    topic, key=key, value=value, partition=partition, on_delivery=delivered
                )
                break
            except BufferError:
                producer.poll(0.1)
        producer.poll(0)
        n += 1
    assert producer.flush(60) == 0
    assert not refused, refused[0]
    return n


class Reader(TopicReader):
    """A read_committed reader of a topic, from its first record on."""

    def __init__(self, bootstrap_servers: str, topic: str) -> None:
        super().__init__(_client(bootstrap_servers), topic)

    def stored(self) -> list[Stored]:
        """The records that came next; none where 0.1 s brought none."""
        return [_stored(record) for record in self.next()]


def read_topic(bootstrap_servers: str, topic: str) -> list[Stored]:
    """Everything a read_committed reader finds in a topic, in order of partition and offset."""
    found = [_stored(record) for record in reader.read_topic(_client(bootstrap_servers), topic)]
    found.sort(key=lambda record: (record.partition, record.offset))
    for one, next_one in itertools.pairwise(found):
        where = (one.partition, one.offset)
        assert where != (next_one.partition, next_one.offset), f"{topic} {where}: read twice"
    return found


def _client(bootstrap_servers: str) -> dict[str, Any]:
    return {"bootstrap.servers": bootstrap_servers, "fetch.message.max.bytes": 20_000_000}


def _stored(record: Message) -> Stored:
    read = record_of(record)
    headers = {name: value for name, value in read.headers if value is not None}
    place = read.partition, read.offset, read.timestamp_ms
    return Stored(*place, read.key, read.value, headers, read)


def session_load(
    n_clicks: int, n_sessions: int = 300, n_items: int = 50, seed: int = 1
) -> Iterator[tuple[bytes, bytes]]:
    """Clicks of many sessions in order of time, one in twenty sent twice.

    Every other session has no event ids: nothing but the delivery keeps a click of such a session
    from being applied again.
    """
    random = np.random.default_rng(seed)
    last: dict[str, bytes] = {}
    for n in range(n_clicks):
        number = random.integers(n_sessions)
        session = f"session-{number}"
        if session in last and random.random() < 0.05:
            yield session.encode(), last[session]
            continue
        item, event = f"item-{random.integers(n_items + 2)}", f"event-{n}" if number % 2 else None
        value = click(session, item, LOG_BEGIN_MS + n, event)
        last[session] = value
        yield session.encode(), value
