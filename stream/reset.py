"""Move the position of stopped workers (`python -m stream reset`)."""

import asyncio
from collections.abc import Collection

from confluent_kafka.admin import AdminClient

from stream.errors import StreamError
from stream.position import POSITION_KEY, Position, decode_position
from stream.settings import ResetSettings
from stream.transport.clients import confluent_options
from stream.transport.protocol import Transaction
from stream.transport.reader import CommittedReader
from stream.transport.topics import TIMEOUT_S, check_topics
from stream.transport.transactions import Delivery


def reset_positions(settings: ResetSettings) -> dict[int, int]:
    """Write the positions; returns the next offset by partition.

    Sessions stay: clicks that are read again advance them again, unless their event_id is still
    in the trail. Raises StreamError while a worker runs, or for an offset outside the log.
    """
    facts = check_topics(settings)
    _check_stopped(settings)
    partitions, only = range(facts.click_partitions), settings.partition
    if only is not None and only not in partitions:
        topic = f"{settings.clicks_topic} has {facts.click_partitions} partitions"
        raise StreamError(f"partition is {only}, {topic}")
    if only is not None:
        partitions = range(only, only + 1)
    delivery = Delivery(settings, facts)
    return asyncio.run(_write(settings, partitions, delivery, facts.clicks_topic_id))


def _check_stopped(settings: ResetSettings) -> None:
    admin = AdminClient(confluent_options(settings))
    future = admin.describe_consumer_groups([settings.app_id])[settings.app_id]
    if members := future.result(TIMEOUT_S).members:
        raise StreamError(
            f"group {settings.app_id} has {len(members)} members: stop the workers first "
            "(a worker that was killed counts until its session timeout)"
        )


async def _write(
    settings: ResetSettings, partitions: Collection[int], delivery: Delivery, topic_id: str
) -> dict[int, int]:
    reader = CommittedReader(settings)
    try:
        offsets = await _target_offsets(settings, partitions, reader)
        await delivery.own(partitions)
        old = await _old_positions(settings, partitions, reader)
        # The watermark stays with the sessions: they expire by it. A clean record of bad clicks,
        # since the operator has seen them.
        positions = {
            p: Position(offsets[p], topic_id, old[p].watermark_ms if p in old else -1)
            for p in partitions
        }
        await delivery.commit(Transaction(positions=positions))
    finally:
        await reader.close()
        await delivery.close()
    return offsets


async def _target_offsets(
    settings: ResetSettings, partitions: Collection[int], reader: CommittedReader
) -> dict[int, int]:
    bounds = await reader.bounds(settings.clicks_topic, partitions)
    if settings.to == "earliest":
        return {p: begin for p, (begin, _) in bounds.items()}
    if settings.to == "latest":
        return {p: end for p, (_, end) in bounds.items()}
    offset = int(settings.to)
    for partition, (begin, end) in bounds.items():
        if not begin <= offset <= end:
            raise StreamError(
                f"offset {offset} is outside {settings.clicks_topic}-{partition}, "
                f"which holds {begin} to {end}"
            )
    return dict.fromkeys(partitions, offset)


async def _old_positions(
    settings: ResetSettings, partitions: Collection[int], reader: CommittedReader
) -> dict[int, Position]:
    positions = {}
    async for record in reader.read(settings.changelog_topic, dict.fromkeys(partitions, 0)):
        if record.key == POSITION_KEY:
            positions[record.partition] = decode_position(record.value)
    return positions
