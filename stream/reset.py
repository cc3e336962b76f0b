"""Move the position of stopped workers, or item processors (`python -m stream reset`)."""

from collections.abc import Callable, Collection

from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient

from stream.contract.records import Target
from stream.errors import StreamError
from stream.items import PartitionItems
from stream.position import POSITION_KEY, Position, encode_position
from stream.session import in_todays_format
from stream.settings import ResetSettings, Wiring
from stream.transport.clients import confluent_options
from stream.transport.reader import bounds
from stream.transport.restore import Changelog, former_ids
from stream.transport.topics import (
    TIMEOUT_S,
    check_item_topics,
    check_topics,
    chosen_partitions,
    n_partitions,
)

TRANSACTION_S = 60
"""librdkafka's default. The tombstones of 400,000 sessions took 8 s on two busy cores."""


class _Keys:
    """The keys of a partition, without their states; ``as_of_today``: see ``PartitionStates``."""

    def __init__(self, as_of_today: Callable[[bytes], bytes]) -> None:
        self.keys: set[bytes] = set()
        self._as_of_today = as_of_today

    def restore(self, key: bytes, value: bytes | None) -> None:
        if value is None:
            self.keys.discard(key)
        else:
            self.keys.add(key)
            self._as_of_today(value)

    def finish_restore(self) -> None: ...


def reset_positions(settings: ResetSettings) -> list[str]:
    """Write the positions; returns lines that say what each partition does now.

    Where a partition goes back, its clicks have been applied to its sessions and its watermark
    already: both are dropped, and the answers become those of a log that begins there. Where it
    goes on, or in another topic, both stay. Items are dropped alike, and leave the view, too.
    What cannot be read is given up, whatever it was: of sessions whose state it is, of a position
    (it may have been behind any offset but the log's end), and of batches. Raises StreamError
    while a worker runs, or for an offset outside the log.
    """
    wiring, of_items = settings.chosen, settings.processor == "items"
    topic_id = (check_item_topics if of_items else check_topics)(settings)
    _check_stopped(settings, wiring)
    partitions = chosen_partitions(settings, wiring.input, settings.partition)
    offsets = _target_offsets(settings, wiring.input, partitions)
    as_of_today = PartitionItems.as_of_today if of_items else in_todays_format
    tables = {p: _Keys(as_of_today) for p in partitions}
    changelog = Changelog(settings, wiring, tables)
    changelog.read_on(stable_only=True)
    for p, position in changelog.positions.items():
        for name in former_ids(wiring, p, position):
            _producer(settings, name)  # fences whoever has it
    changelog.read_on(stable_only=False)
    producer = _producer(settings, f"{wiring.group_id}-reset")
    producer.begin_transaction()
    topic, lines = wiring.changelog, []
    view = wiring.outputs.get(Target.ITEM_VIEW)
    n_view = n_partitions(settings, [view])[view] if view else 0
    for p, offset in offsets.items():
        # A clean record of bad clicks, since the operator has seen them.
        position = Position(offset, topic_id, given_up_until=changelog.end[p])
        dropped = unreadable = changelog.bad_keys(p) - {POSITION_KEY}
        before = changelog.positions.get(p)
        goes_back = not before or (before.topic_id == topic_id and offset < before.next_offset)
        if goes_back and settings.to != "latest":
            dropped = tables[p].keys
        elif before:
            position.watermark_ms = before.watermark_ms
        for key in dropped:
            producer.produce(topic, None, key, partition=p)
            if view:
                producer.produce(view, None, key, partition=p % n_view)
        producer.produce(topic, encode_position(position), POSITION_KEY, partition=p)
        what = "items" if of_items else "sessions"
        n_dropped = f", {len(dropped)} {what} dropped" if dropped else ""
        n_unreadable = f" ({len(unreadable)} could not be read)" if unreadable else ""
        lines.append(f"partition {p}: continues at offset {offset}{n_dropped}{n_unreadable}")
        lines += [
            f"partition {p}: gives up what offsets {batch.start} to {batch.stop - 1} of "
            f"{topic}-{p} held of {what}: it {why}"
            for _, batch, why in changelog.unread(p)
        ]
    producer.commit_transaction(TRANSACTION_S)
    return lines


def _check_stopped(settings: ResetSettings, wiring: Wiring) -> None:
    admin = AdminClient(confluent_options(settings))
    future = admin.describe_consumer_groups([wiring.group_id])[wiring.group_id]
    if members := future.result(TIMEOUT_S).members:
        raise StreamError(
            f"group {wiring.group_id} still has members ({len(members)}): stop the workers first "
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


def _target_offsets(
    settings: ResetSettings, topic: str, partitions: Collection[int]
) -> dict[int, int]:
    found = bounds(settings, topic, partitions)
    if settings.to == "earliest":
        return {p: begin for p, (begin, _, _) in found.items()}
    if settings.to == "latest":
        return {p: end for p, (_, _, end) in found.items()}
    offset = int(settings.to)
    for partition, (begin, _, end) in found.items():
        if not begin <= offset <= end:
            raise StreamError(
                f"offset {offset} is outside {topic}-{partition}, which holds {begin} to {end}"
            )
    return dict.fromkeys(partitions, offset)
