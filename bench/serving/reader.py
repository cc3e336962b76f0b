"""Note when each recommendation arrives, and join that to its click: ``bench.serving.reader``.

The reader is a process of its own and does nothing else: its clock at receipt is the moment at
which a consumer of committed records could have acted. Clicks' append times are read afterwards.
"""

import sys
import time
from pathlib import Path

import numpy as np
from confluent_kafka import (
    OFFSET_BEGINNING,
    Consumer,
    KafkaError,
    KafkaException,
    Message,
    TopicPartition,
)
from jaxtyping import Float64, Int64
from pydantic import PositiveInt

from stream.settings import KafkaSettings
from stream.transport.clients import confluent_options
from train.command import run_command

READER_OPTIONS = {
    "group.id": "bench-reader",
    "isolation.level": "read_committed",
    "enable.auto.commit": False,
    "auto.offset.reset": "error",
    "enable.partition.eof": True,
}
QUIET_S = 15.0
"""After so long without a record, missing ones are given up."""


class ReaderSettings(KafkaSettings):
    """Note when each recommendation arrives."""

    records: PositiveInt
    """End after this many."""
    out: Path
    """File (.npy) of int64 rows: the click's partition, its offset, receipt in ns since 1970."""


def committed_reader(settings: KafkaSettings, topic: str, *, from_end: bool) -> Consumer:
    """Return a consumer of all partitions, committed records only."""
    consumer = Consumer(confluent_options(settings) | READER_OPTIONS)
    partitions = consumer.list_topics(topic, timeout=20).topics[topic].partitions
    tps = [TopicPartition(topic, partition, OFFSET_BEGINNING) for partition in partitions]
    if from_end:  # asked for now: a logical offset would be looked up after the first clicks
        for tp in tps:
            tp.offset = consumer.get_watermark_offsets(tp, timeout=20)[1]
    consumer.assign(tps)
    return consumer


def source_of(message: Message) -> tuple[int, int]:
    """Return partition and offset of the click that a recommendation answers."""
    source = dict(message.headers() or [])["source"]
    assert isinstance(source, bytes)
    _, partition, offset = source.decode().rsplit("-", 2)
    return int(partition), int(offset)


def note_arrivals(settings: ReaderSettings) -> Int64[np.ndarray, "_ 3"]:
    """Read until all records are there, or the rest is given up."""
    consumer = committed_reader(settings, settings.recommendations_topic, from_end=True)
    consumer.poll(0.5)  # connected and fetching before anything is sent
    print("reading", flush=True)
    arrivals: list[tuple[int, int, int]] = []
    while len(arrivals) < settings.records:
        message = consumer.poll(QUIET_S)
        received_ns = time.time_ns()
        if message is None:
            break
        if not message.error():
            arrivals.append((*source_of(message), received_ns))
    consumer.close()
    return np.array(arrivals, np.int64).reshape(-1, 3)


def append_times_ms(settings: KafkaSettings, topic: str) -> dict[int, Int64[np.ndarray, "_ 2"]]:
    """Return offset and append time of every committed record, by partition."""
    consumer = committed_reader(settings, topic, from_end=False)
    rows: dict[int, list[tuple[int, int]]] = {tp.partition: [] for tp in consumer.assignment()}
    at_end: set[int] = set()
    while len(at_end) < len(rows):
        for message in consumer.consume(10_000, 0.5):
            partition, offset, error = message.partition(), message.offset(), message.error()
            assert partition is not None and offset is not None
            if error is None:
                rows[partition].append((offset, message.timestamp()[1]))
            elif error.code() == KafkaError._PARTITION_EOF:
                at_end.add(partition)
            else:
                raise KafkaException(error)
    consumer.close()
    return {p: np.array(r, np.int64).reshape(-1, 2) for p, r in rows.items()}


def latencies_ms(
    arrivals: Int64[np.ndarray, "_ 3"],
    appended: dict[int, Int64[np.ndarray, "_ 2"]],
    skip_first_ms: int,
    n_probes: int = 0,
) -> tuple[Float64[np.ndarray, "_"], int, int]:
    """Return the latency of each answered click after the warm-up, and how many answers are missing
    and how many repeated.

    ``appended`` are the clicks' offsets and append times by partition; the warm-up begins behind
    the earliest ``n_probes`` of them. The broker truncates append times to milliseconds, so a
    latency is up to 1 ms too large, half of that on average.
    """
    found: list[np.ndarray] = []
    missing = repeated = 0
    times_ms = np.sort(np.concatenate([rows[:, 1] for rows in appended.values()]))
    begin_ms = int(times_ms[n_probes]) + skip_first_ms
    for partition, rows in appended.items():
        of_partition = arrivals[arrivals[:, 0] == partition]
        offsets, first = np.unique(of_partition[:, 1], return_index=True)
        repeated += len(of_partition) - len(offsets)
        measured = rows[rows[:, 1] >= begin_ms]
        at = np.searchsorted(offsets, measured[:, 0])
        answered = np.isin(measured[:, 0], offsets)
        missing += int((~answered).sum())
        received_ns = of_partition[first[at[answered]], 2]
        found.append(received_ns / 1e6 - measured[answered, 1])
    return np.concatenate(found), missing, repeated


def run(settings: ReaderSettings) -> None:
    np.save(settings.out, note_arrivals(settings))


if __name__ == "__main__":
    sys.exit(run_command(ReaderSettings, run))
