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


def reset_positions(settings: ResetSettings) -> dict[int, int]:
    """Write the positions; returns the next offset by partition.

    Sessions stay: clicks that are read again advance them again, unless their event_id is still
    in the trail. Raises StreamError while a worker runs, or for an offset outside the log.
    """
    topic_id = check_topics(settings)
    _check_stopped(settings)
    partitions = chosen_partitions(settings, settings.partition)
    offsets = _target_offsets(settings, partitions)
    old = positions(settings, partitions, stable_only=True)
    for p, position in old.items():
        for name in former_ids(settings.wiring, p, position):
            _producer(settings, name)  # fences whoever has it
    old = positions(settings, partitions, stable_only=False)
    producer = _producer(settings, f"{settings.app_id}-reset")
    producer.begin_transaction()
    for p, offset in offsets.items():
        # The watermark stays with the sessions: they expire by it. A clean record of bad clicks,
        # since the operator has seen them.
        position = Position(offset, topic_id, old[p].watermark_ms if p in old else -1)
        value = encode_position(position)
        producer.produce(settings.changelog_topic, value, POSITION_KEY, partition=p)
    producer.commit_transaction(TIMEOUT_S)
    return offsets


def _check_stopped(settings: ResetSettings) -> None:
    admin = AdminClient(confluent_options(settings))
    future = admin.describe_consumer_groups([settings.app_id])[settings.app_id]
    if members := future.result(TIMEOUT_S).members:
        raise StreamError(
            f"group {settings.app_id} has {len(members)} members: stop the workers first "
            "(a worker that was killed counts until its session timeout)"
        )


def _producer(settings: ResetSettings, transactional_id: str) -> Producer:
    producer = Producer(confluent_options(settings) | {"transactional.id": transactional_id})
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


def positions(
    settings: KafkaSettings, partitions: Collection[int], *, stable_only: bool
) -> dict[int, Position]:
    """The last position of each partition, of what is stable or of all that is written."""
    topic, start = settings.changelog_topic, dict.fromkeys(partitions, 0)
    found = bounds(settings, topic, partitions)
    end = {p: stable if stable_only else written for p, (_, stable, written) in found.items()}
    return {
        message.partition(): decode_position(message.value())
        for messages in read_committed(settings, topic, start, end)
        for message in messages
        if message.key() == POSITION_KEY
    }
