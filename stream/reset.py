"""Move the position of stopped workers (`python -m stream reset`)."""

from collections.abc import Collection

from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient

from stream.errors import StreamError
from stream.position import POSITION_KEY, Position, decode_position, encode_position
from stream.settings import KafkaSettings, ResetSettings
from stream.transport.clients import confluent_options
from stream.transport.reader import bounds, read_committed
from stream.transport.restore import former_ids
from stream.transport.topics import TIMEOUT_S, check_topics, chosen_partitions

TRANSACTION_S = 60
"""librdkafka's default. The tombstones of 400,000 sessions took 8 s on two busy cores."""


def reset_positions(settings: ResetSettings) -> dict[int, tuple[int, int]]:
    """Write the positions; returns the next offset and how many sessions were dropped.

    Where a partition goes back, its clicks have been applied to its sessions and its watermark
    already: both are dropped, and the answers become those of a log that begins there. Where it
    goes on, or in another topic, both stay. Raises StreamError while a worker runs, or for an
    offset outside the log.
    """
    topic_id = check_topics(settings)
    _check_stopped(settings)
    partitions = chosen_partitions(settings, settings.partition)
    offsets = _target_offsets(settings, partitions)
    old, _ = read_changelog(settings, partitions, stable_only=True)
    for p, position in old.items():
        for name in former_ids(settings.wiring, p, position):
            _producer(settings, name)  # fences whoever has it
    old, sessions = read_changelog(settings, partitions, stable_only=False)
    producer = _producer(settings, f"{settings.app_id}-reset")
    producer.begin_transaction()
    topic, done = settings.changelog_topic, {}
    for p, offset in offsets.items():
        # A clean record of bad clicks, since the operator has seen them.
        position, dropped = Position(offset, topic_id), set[bytes]()
        if before := old.get(p):
            goes_back = before.topic_id == topic_id and offset < before.next_offset
            if goes_back and settings.to != "latest":
                dropped = sessions[p]
            else:
                position.watermark_ms = before.watermark_ms
        for session in dropped:
            producer.produce(topic, None, session, partition=p)
        producer.produce(topic, encode_position(position), POSITION_KEY, partition=p)
        done[p] = offset, len(dropped)
    producer.commit_transaction(TRANSACTION_S)
    return done


def _check_stopped(settings: ResetSettings) -> None:
    admin = AdminClient(confluent_options(settings))
    future = admin.describe_consumer_groups([settings.app_id])[settings.app_id]
    if members := future.result(TIMEOUT_S).members:
        raise StreamError(
            f"group {settings.app_id} still has members ({len(members)}): stop the workers first "
            "(a killed worker counts as a member until its session times out)"
        )


def _producer(settings: ResetSettings, transactional_id: str) -> Producer:
    options = {
        "transactional.id": transactional_id,
        "queue.buffering.max.messages": 0,  # no limit: tombstones of all sessions
    }
    producer = Producer(confluent_options(settings) | options)
    producer.init_transactions(TIMEOUT_S)
    return producer


def _target_offsets(settings: ResetSettings, partitions: Collection[int]) -> dict[int, int]:
    found = bounds(settings, settings.clicks_topic, partitions)
    if settings.to == "earliest":
        return {p: begin for p, (begin, _, _) in found.items()}
    if settings.to == "latest":
        return {p: end for p, (_, _, end) in found.items()}
    offset = int(settings.to)
    for partition, (begin, _, end) in found.items():
        if not begin <= offset <= end:
            raise StreamError(
                f"offset {offset} is outside {settings.clicks_topic}-{partition}, "
                f"which holds {begin} to {end}"
            )
    return dict.fromkeys(partitions, offset)


def read_changelog(
    settings: KafkaSettings, partitions: Collection[int], *, stable_only: bool
) -> tuple[dict[int, Position], dict[int, set[bytes]]]:
    """By partition the last position and the sessions, of what is stable or all that is written."""
    topic, start = settings.changelog_topic, dict.fromkeys(partitions, 0)
    found = bounds(settings, topic, partitions)
    end = {p: stable if stable_only else written for p, (_, stable, written) in found.items()}
    positions: dict[int, Position] = {}
    sessions: dict[int, set[bytes]] = {p: set() for p in partitions}
    for messages in read_committed(settings, topic, start, end):
        for message in messages:
            p, key, value = message.partition(), message.key(), message.value()
            if key == POSITION_KEY:
                positions[p] = decode_position(value)
            elif value is None:
                sessions[p].discard(key)
            else:
                sessions[p].add(key)
    return positions, sessions
