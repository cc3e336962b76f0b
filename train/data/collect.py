"""Collects the clicks topic into a folder of Parquet files: a log to train on that is what the
stream saw.

One partition after the other, in files of a bounded size. `collect.json` in the folder says up to
which offset each partition is in them; it is written after each file, so a run that is killed loses
at most the file it was filling, and writes no click twice.
"""

import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

import structlog
from confluent_kafka import (
    Consumer,
    KafkaError,
    KafkaException,
    Message,
    TopicCollection,
    TopicPartition,
)
from confluent_kafka.admin import AdminClient
from pydantic import AwareDatetime, Field, NonNegativeInt, model_validator
from rich.console import Console
from rich.progress import Progress

from stream.contract.click import Record
from train.command import Settings, TrainError
from train.data.parts import Begin, CollectState, Parts, load_state

PART_CLICKS = 500_000
"""Clicks of a file, all in memory until it is written: some 500 MB."""
BATCH_RECORDS = 10_000
STALLED_S = 60.0
ANSWER_S = 10.0

log = structlog.get_logger()


class CollectSettings(Settings):
    """Write the clicks topic to a folder of Parquet files; run again, it adds what is new."""

    out: Path
    """Folder of the Parquet files and of collect.json, which says how far they reach."""
    topic: str = "clicks"
    """Topic to read; only committed clicks are read."""
    bootstrap_servers: str | None = None
    """Kafka brokers as host:port, separated by commas; unset: those of client_properties, else
    127.0.0.1:9092."""
    client_properties: Path | None = None
    """File of librdkafka options, one name=value a line: security.protocol, sasl.password and so
    on. They are read from a file because anybody on a machine can see its command lines."""
    since: AwareDatetime | None = None
    """Only clicks appended from this time on, ISO 8601 with a time zone."""
    until: AwareDatetime | None = None
    """Only clicks appended before this time; unset: all that are there when the run starts."""
    from_offsets: dict[NonNegativeInt, NonNegativeInt] = Field(default={})
    """First offset by partition, such as 0=1200; other partitions are read from their start."""
    to_offsets: dict[NonNegativeInt, NonNegativeInt] = Field(default={})
    """Offset to stop before by partition; other partitions are read as far as until says."""

    @model_validator(mode="after")
    def _begins_before_it_ends(self) -> "CollectSettings":
        if self.since and self.until and self.since >= self.until:
            raise ValueError(f"since={self.since} is not before until={self.until}")
        for partition, end in self.to_offsets.items():
            first = self.from_offsets.get(partition, 0)
            if first > end:
                raise ValueError(
                    f"from_offsets={partition}={first} is after to_offsets={partition}={end}"
                )
        return self


class Span(NamedTuple):
    """What to read of a partition: offsets from ``first`` up to but without ``end``."""

    partition: int
    first: int
    end: int


def run_collect(settings: CollectSettings) -> None:
    """Collect, and print what the folder holds as JSON. Raises TrainError."""
    state = collect(settings)
    print(state.model_dump_json(indent=1, exclude={"format", "begin"}))


def collect(settings: CollectSettings, part_clicks: int = PART_CLICKS) -> CollectState:
    """Write what the folder lacks of the wanted offsets, in files of about ``part_clicks``. Returns
    what it holds then. Raises TrainError."""
    options = _options(settings)
    reading = {
        "group.id": "nextclick-collect",  # required, never joined: nothing is committed to Kafka
        "enable.auto.commit": "false",
        "isolation.level": "read_committed",
        "enable.partition.eof": "true",
        "auto.offset.reset": "error",
    }
    try:
        consumer = Consumer(options | reading)
    except KafkaException as error:
        raise TrainError(
            f"{settings.client_properties}: librdkafka rejected an option: {error.args[0].str()}"
        ) from error
    try:
        cluster, partitions = _partitions(consumer, settings)
        begin = Begin(
            cluster=cluster,
            topic=settings.topic,
            topic_id=_topic_id(AdminClient(options), settings.topic),
            since=settings.since,
            from_offsets=settings.from_offsets,
        )
        settings.out.mkdir(parents=True, exist_ok=True)
        parts = Parts(settings.out, load_state(settings.out, begin))
        spans = [_span(consumer, settings, parts.state, partition) for partition in partitions]
        console = Console(stderr=True)
        with Progress(console=console, disable=not console.is_terminal) as bar:
            total = sum(span.end - span.first for span in spans)
            task = bar.add_task(settings.topic, total=total)
            for span in spans:
                if span.first < span.end:
                    parts.begin_partition(span.partition)
                    for read in _read(consumer, settings.topic, span, parts, part_clicks):
                        bar.advance(task, read)
            parts.commit()
        return parts.state
    except KafkaException as error:
        raise TrainError(f"topic {settings.topic}: {error.args[0].str()}") from error
    except OSError as error:
        raise TrainError(f"{settings.out} cannot be written: {error}") from error
    finally:
        consumer.close()


def _options(settings: CollectSettings) -> dict[str, str | int | float | bool]:
    """librdkafka's options of every client, typed as its clients want them. Of a file, empty lines
    and those that begin with # are skipped."""
    options: dict[str, str | int | float | bool] = {"bootstrap.servers": "127.0.0.1:9092"}
    if (path := settings.client_properties) is not None:
        try:
            lines = [line.strip() for line in path.read_text().splitlines()]
        except OSError as error:
            raise TrainError(f"{path} cannot be read: {error.strerror}") from error
        pairs = [line.partition("=") for line in lines if line and not line.startswith("#")]
        for number, (name, equals, value) in enumerate(pairs, 1):
            if not name or not equals:
                # The line itself may be a password.
                raise TrainError(f"{path}: option {number} is not of the form name=value")
            options[name.strip()] = value.strip()
    if settings.bootstrap_servers is not None:
        options["bootstrap.servers"] = settings.bootstrap_servers
    # Without a broker librdkafka would print hundreds of lines before our one.
    return options | {"log_level": "2"}


def _partitions(consumer: Consumer, settings: CollectSettings) -> tuple[str | None, list[int]]:
    """The cluster's id and the topic's partitions."""
    metadata = consumer.list_topics(settings.topic, timeout=ANSWER_S)
    topic = metadata.topics[settings.topic]
    if topic.error is not None:
        raise TrainError(f"topic {settings.topic}: {topic.error.str()}")
    for name in ("from_offsets", "to_offsets"):
        unknown = sorted(getattr(settings, name).keys() - topic.partitions.keys())
        if unknown:
            raise TrainError(
                f"{name} names partition {unknown[0]}; topic {settings.topic} has "
                f"{len(topic.partitions)}, numbered from 0"
            )
    return metadata.cluster_id, sorted(topic.partitions)


def _topic_id(admin: AdminClient, topic: str) -> str | None:
    """The id that Kafka gave the topic when it was created; None from brokers older than 2.8."""
    answer = admin.describe_topics(TopicCollection([topic]), request_timeout=ANSWER_S)
    found = answer[topic].result().topic_id
    return str(found) if found.get_most_significant_bits() else None


def _span(
    consumer: Consumer, settings: CollectSettings, state: CollectState, partition: int
) -> Span:
    low, high = consumer.get_watermark_offsets(
        TopicPartition(settings.topic, partition), timeout=ANSWER_S
    )

    def offset_at(time: datetime) -> int:
        asked = TopicPartition(settings.topic, partition, round(time.timestamp() * 1000))
        offset = consumer.offsets_for_times([asked], timeout=ANSWER_S)[0].offset
        return offset if offset >= 0 else high  # nothing has been appended since

    first = state.next_offset.get(partition)
    if first is None:
        first = settings.from_offsets.get(partition, low)
        if first > high:
            raise TrainError(
                f"from_offsets: partition {partition} of topic {settings.topic} ends at {high}, "
                f"before {first}"
            )
        if settings.since is not None:
            first = max(first, offset_at(settings.since))
    elif first > high:
        raise TrainError(
            f"{settings.out} holds partition {partition} of topic {settings.topic} up to offset "
            f"{first}, but the topic ends at {high}: it was created again; choose another folder"
        )
    elif first < low:
        log.warning("clicks_expired", partition=partition, first=first, now_first=low)
    end = min(high, settings.to_offsets.get(partition, high))
    if settings.until is not None:
        end = min(end, offset_at(settings.until))
    first = max(first, low)
    return Span(partition, first, max(first, end))


def _read(
    consumer: Consumer, topic: str, span: Span, parts: Parts, part_clicks: int
) -> Iterator[int]:
    """Take the span's records into the parts; yields after each batch how many offsets it covered.
    Missing offsets (compaction, aborted transactions, markers of transactions) are skipped."""
    position, heard = span.first, time.monotonic()
    place = TopicPartition(topic, span.partition, position)
    consumer.assign([place])
    while position < span.end:
        messages = consumer.consume(min(BATCH_RECORDS, part_clicks), timeout=1.0)
        if messages:
            heard = time.monotonic()
        elif time.monotonic() - heard > STALLED_S:
            raise _stopped(topic, span.partition, position, f"nothing in {STALLED_S:.0f} s")
        before, at_end = position, False
        _, high = consumer.get_watermark_offsets(place, cached=True) or (0, 0)
        for message in messages:
            error, offset = message.error(), message.offset()
            if message.partition() != span.partition or offset is None:
                continue  # of the previous partition
            if error is None and position < span.end and not position <= offset < high:
                # A batch may number its records as it likes: this one is elsewhere, or the last.
                found = f"a record that says it is at {offset}"
                raise _stopped(topic, span.partition, min(offset, position), found)
            if error is None and position <= offset < span.end:
                parts.take(_record(message, offset))
                position = offset + 1
            elif error is None or error.code() == KafkaError._PARTITION_EOF:
                position = max(position, min(offset, span.end))
                at_end = True
            elif error.code() == KafkaError._BAD_COMPRESSION:
                if position < span.end:  # else fetched ahead
                    raise _stopped(topic, span.partition, max(offset, position), error.str())
            else:
                raise KafkaException(error)
        parts.reach(span.partition, position)
        if len(parts) >= part_clicks:
            parts.commit()
        yield position - before
        if at_end and position < span.end:
            # Readers of committed records get no further than the first open transaction.
            log.warning("transaction_open", partition=span.partition, offset=position, end=span.end)
            return


def _stopped(topic: str, partition: int, offset: int, found: str) -> TrainError:
    return TrainError(
        f"topic {topic}: partition {partition} returned {found!r} at offset {offset}; run again to "
        "continue. If it stops there again the Kafka client cannot read that batch: collect what "
        f"is before it with --to-offsets {partition}={offset}, and what is behind it into another "
        f"folder with --from-offsets {partition}=N (where it ends, the log event unreadable_batch "
        "of the workers says)"
    )


def _record(message: Message, offset: int) -> Record:
    key, value = message.key(), message.value()
    return Record(
        partition=message.partition() or 0,
        offset=offset,
        timestamp_ms=message.timestamp()[1],
        key=key.encode() if isinstance(key, str) else key,
        value=value.encode() if isinstance(value, str) else value,
    )
