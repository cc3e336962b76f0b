"""Make partitions ours: fence their last owner, read the changelog, check the positions.

Faust's own recovery hangs for ever behind a transaction's commit marker, so the restore is ours:
a read_committed reader that goes by positions, which pass over markers.
"""

import asyncio
from collections.abc import Collection

import structlog

from stream.errors import StreamError
from stream.position import Position
from stream.session import Sessions
from stream.settings import KafkaSettings
from stream.transport.reader import CommittedReader
from stream.transport.topics import check_topics, group_offsets
from stream.transport.transactions import Delivery

log = structlog.get_logger(__name__)

_HOW = "`python -m stream reset --to earliest|latest|OFFSET` decides where to go on"


async def restore_partitions(
    partitions: Collection[int],
    sessions: Sessions,
    delivery: Delivery,
    reader: CommittedReader,
    settings: KafkaSettings,
) -> tuple[int, int]:
    """Return the changelog's records read, and the clicks lost to retention.

    Reads on where a partition that was kept stands. Fencing comes first: an open transaction of
    the last owner hides what lies behind it. Raises StreamError where the topics have changed since
    the start, the clicks cannot be read on, or sessions are of an unknown format.
    """
    facts = await asyncio.to_thread(check_topics, settings)
    sessions.own(partitions)
    for partition in await delivery.own(partitions):
        sessions.forget(partition)
    if not partitions:  # more workers than partitions: this one waits for another to leave
        return 0, 0
    start = {p: sessions.partitions[p].changelog_offset for p in partitions}
    n_records = 0
    async for record in reader.read(settings.changelog_topic, start):
        of_partition = sessions.partitions[record.partition]
        of_partition.restore(record.key, record.value)
        of_partition.changelog_offset = record.offset + 1
        n_records += 1
    for partition in partitions:
        sessions.partitions[partition].finish_restore()
    n_lost = await _check_positions(partitions, sessions, reader, settings, facts.clicks_topic_id)
    return n_records, n_lost


async def _check_positions(
    partitions: Collection[int],
    sessions: Sessions,
    reader: CommittedReader,
    settings: KafkaSettings,
    topic_id: str,
) -> int:
    """Give every partition a position that the clicks can be read on from; returns lost clicks."""
    topic = settings.clicks_topic
    committed = await asyncio.to_thread(group_offsets, settings, partitions)
    n_lost = 0
    for partition, (begin, end) in (await reader.bounds(topic, partitions)).items():
        position = sessions.partitions[partition].position
        where = f"{topic}-{partition}"
        if position is None:
            if committed.get(partition, 0) > begin:
                raise StreamError(
                    f"{settings.changelog_topic} has no position for {where}, but the group "
                    f"{settings.app_id} has committed offset {committed[partition]}: "
                    f"the changelog was lost; {_HOW}"
                )
            sessions.partitions[partition].position = Position(begin, topic_id)
        elif position.topic_id != topic_id:
            raise StreamError(
                f"{topic} has topic id {topic_id}, the position of {where} is of "
                f"{position.topic_id}: the topic was deleted and made anew; {_HOW}"
            )
        elif position.next_offset > end:
            raise StreamError(
                f"the position of {where} is {position.next_offset}, past the topic's end at "
                f"{end}; {_HOW}"
            )
        elif position.next_offset < begin:
            n_lost += begin - position.next_offset
            log.error(
                "clicks_lost_to_retention",
                topic=topic,
                partition=partition,
                first=position.next_offset,
                last=begin - 1,
            )
            position.next_offset = begin
    return n_lost
