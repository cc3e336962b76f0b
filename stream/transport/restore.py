"""Make partitions ours: fence their last owner, read the changelog, check the positions.

Faust's own recovery waits forever for a transaction's commit marker, so the restore is ours: a
read_committed reader that goes by positions, which pass over markers.
"""

import asyncio
from collections.abc import Collection
from dataclasses import dataclass

import structlog

from stream.errors import StreamError
from stream.position import POSITION_KEY, Position, decode_position
from stream.settings import KafkaSettings
from stream.transport.protocol import Restored, Table
from stream.transport.reader import CommittedReader
from stream.transport.topics import check_topics, group_offsets
from stream.transport.transactions import Delivery

log = structlog.get_logger(__name__)

_HOW = "choose where to continue, with `python -m stream reset --to earliest|latest|OFFSET`"


@dataclass(slots=True)
class Progress:
    """How far an owned partition has been applied; no position before its first restore.

    ``changelog_offset``: the changelog's next offset, where a later restore reads on.
    """

    position: Position | None = None
    changelog_offset: int = 0


async def restore_partitions(
    partitions: Collection[int],
    progress: dict[int, Progress],
    table: Table,
    delivery: Delivery,
    reader: CommittedReader,
    settings: KafkaSettings,
) -> Restored:
    """Make partitions ours; ``progress`` and ``table`` are then theirs alone.

    A partition that was kept is read on from where it stands. Fencing comes first: an open
    transaction of the last owner hides what follows it. Raises StreamError where the topics have
    changed since the start, the clicks cannot be read on, or the changelog's format is unknown.
    """
    facts = await asyncio.to_thread(check_topics, settings)
    for partition in progress.keys() - set(partitions):
        del progress[partition]
    table.own(partitions)
    for partition in await delivery.own(partitions):
        progress.pop(partition, None)
        table.forget(partition)
    if not partitions:  # more workers than partitions: this one waits for another to leave
        return Restored(0, 0)
    for partition in partitions:
        progress.setdefault(partition, Progress())
    n_records = 0
    start = {p: progress[p].changelog_offset for p in partitions}
    async for record in reader.read(settings.changelog_topic, start):
        of_partition = progress[record.partition]
        if record.key != POSITION_KEY:
            table.restore(record.partition, record.key, record.value)
        else:
            value = record.value
            of_partition.position = None if value is None else decode_position(value)
        of_partition.changelog_offset = record.offset + 1
        n_records += 1
    for partition in partitions:
        table.finish_restore(partition)
    n_lost = await _check_positions(partitions, progress, reader, settings, facts.clicks_topic_id)
    return Restored(n_records, n_lost)


async def _check_positions(
    partitions: Collection[int],
    progress: dict[int, Progress],
    reader: CommittedReader,
    settings: KafkaSettings,
    topic_id: str,
) -> int:
    """Give every partition a position that the clicks can be read on from; returns lost clicks."""
    topic = settings.clicks_topic
    committed = await asyncio.to_thread(group_offsets, settings, partitions)
    n_lost = 0
    for partition, (begin, end) in (await reader.bounds(topic, partitions)).items():
        position = progress[partition].position
        where = f"{topic}-{partition}"
        if position is None:
            if committed.get(partition, 0) > begin:
                raise StreamError(
                    f"{settings.changelog_topic} has no position for {where}, but the group "
                    f"{settings.app_id} has committed offset {committed[partition]}: "
                    f"the changelog was lost; {_HOW}"
                )
            progress[partition].position = Position(begin, topic_id)
        elif position.topic_id != topic_id:
            raise StreamError(
                f"{topic} has topic id {topic_id}, but the position of {where} is of "
                f"{position.topic_id}: the topic was deleted and created again; {_HOW}"
            )
        elif position.next_offset > end:
            raise StreamError(
                f"the position of {where} is {position.next_offset}, past the topic's end at "
                f"{end}; {_HOW}"
            )
        elif position.next_offset < begin:
            n_lost += begin - position.next_offset
            lost = {"first": position.next_offset, "last": begin - 1}
            log.error("clicks_lost_to_retention", topic=topic, partition=partition, **lost)
            position.next_offset = begin
    return n_lost
