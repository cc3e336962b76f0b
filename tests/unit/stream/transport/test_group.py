"""The polling thread without a broker: membership, lag, and who is told of what."""

import asyncio
import json
import struct
import time
from collections import deque
from collections.abc import Collection
from typing import Any

import pytest
from confluent_kafka import Consumer, KafkaError, TopicPartition

from stream.contract.records import Record
from stream.errors import StreamError
from stream.transport import group as module
from stream.transport.group import Group
from stream.transport.protocol import Membership
from stream.transport.unreadable import UNPARSABLE


class Fetched:
    """A message of librdkafka, or one of its errors."""

    def __init__(self, partition: int, offset: int, error: int | None = None) -> None:
        self._place, self._error = (partition, offset), error

    def partition(self) -> int:
        return self._place[0]

    def offset(self) -> int:
        return self._place[1]

    def error(self) -> KafkaError | None:
        return None if self._error is None else KafkaError(self._error, "said the broker")

    def timestamp(self) -> tuple[int, int]:
        return 2, 1000

    def key(self) -> bytes:
        return b"k"

    value = key

    def headers(self) -> list[tuple[str, bytes]] | None:
        return None


class FakeConsumer:
    """Hands out what ``coming`` holds, and notes what is asked."""

    def __init__(self, options: Any = None) -> None:
        self.coming: deque[Fetched] = deque()
        self.calls: list[tuple[str, list[int]]] = []
        self.ends: dict[int, int] = {}
        self.metadata = b"CGMDv2:" + struct.pack("=i", 3) + b"group\0member-1\0\1"

    def poll(self, timeout_s: float) -> Fetched | None:
        if self.coming:
            return self.coming.popleft()
        time.sleep(0.001)
        return None

    def subscribe(self, topics: list[str], **callbacks: Any) -> None: ...
    def close(self) -> None: ...

    def consume(self, limit: int, timeout_s: float) -> list[Fetched]:
        return [self.coming.popleft() for _ in range(min(limit, len(self.coming)))]

    def consumer_group_metadata(self) -> bytes:
        return self.metadata

    def get_watermark_offsets(self, tp: Any, *, cached: bool) -> tuple[int, int]:
        return 0, self.ends[tp.partition]

    def seek(self, tp: Any) -> None:
        self.calls.append((f"seek to {tp.offset}", [tp.partition]))

    def __getattr__(self, name: str) -> Any:
        return lambda tps: self.calls.append((name, [tp.partition for tp in tps]))


class Listener:
    def __init__(self) -> None:
        self.heard: list[tuple[Any, ...]] = []
        self.may_give_up = asyncio.Event()
        self.may_give_up.set()

    def on_assigned(self, partitions: Collection[int]) -> None:
        self.heard.append(("assigned", [*partitions]))

    async def on_revoked(self, partitions: Collection[int], *, lost: bool) -> None:
        await self.may_give_up.wait()
        self.heard.append(("lost" if lost else "revoked", [*partitions]))

    def on_offset_lost(self, partition: int) -> None:
        self.heard.append(("offset lost", partition))

    def fail(self, error: Exception) -> None:
        self.heard.append(("failed", str(error)))


BATCHES: dict[int, range] = {}
"""What another client finds at the offset where a partition is stuck."""


@pytest.fixture
async def group(monkeypatch: pytest.MonkeyPatch) -> Group:
    """A group whose thread is not started: the test turns it."""
    monkeypatch.setattr(module, "Consumer", FakeConsumer)
    BATCHES.clear()
    return Group({}, "clicks", Listener(), lambda partition, offset: BATCHES.get(partition))


def consumer_of(group: Group) -> FakeConsumer:
    fake: object = group._consumer
    assert isinstance(fake, FakeConsumer)
    return fake


def heard(group: Group) -> list[tuple[Any, ...]]:
    assert isinstance(group._listener, Listener)
    return group._listener.heard


def tps(*partitions: int) -> Any:
    return [TopicPartition("clicks", p) for p in partitions]


# -- membership -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tail", "expected"),
    [
        (struct.pack("=i", 7) + b"g\0nextclick-1-uuid\0\1", Membership(7, "nextclick-1-uuid")),
        (struct.pack("=i", -1) + b"g\0\0\1", Membership(-1, "")),
        (struct.pack("=i", 0) + b"g\0m\0\0instance\0", Membership(0, "m")),
    ],
)
async def test_generation_and_member_are_read_from_librdkafkas_metadata(
    group: Group, tail: bytes, expected: Membership
) -> None:
    consumer_of(group).metadata = b"CGMDv2:" + tail
    group._read_membership()
    assert group.membership == expected


async def test_metadata_of_another_layout_is_refused(group: Group) -> None:
    consumer_of(group).metadata = b"CGMDv3:" + bytes(20)
    with pytest.raises(StreamError, match="group metadata begins with b'CGMDv3:"):
        group._read_membership()


async def test_the_installed_librdkafka_has_this_layout(group: Group) -> None:
    options = {"bootstrap.servers": "127.0.0.1:1", "group.id": "a-group", "log_level": 0}
    consumer: Any = Consumer(options)
    group._consumer = consumer
    group._read_membership()
    consumer.close()
    assert group.membership == Membership(-1, ""), "of a consumer that has never joined"


# -- batches ----------------------------------------------------------------------------------


async def test_a_batch_is_what_has_come_up_to_the_limit_and_the_rest_waits(group: Group) -> None:
    consumer = consumer_of(group)
    consumer.coming += [Fetched(0, n) for n in range(5)]
    asked = group.ask(3, 0.0)
    group._turn()
    assert [r.offset for r in asked.result(0)] == [0, 1, 2]
    asked = group.ask(3, 0.0)
    group._turn()
    assert asked.result(0) == [Record(0, n, 1000, b"k", b"k") for n in (3, 4)]


async def test_errors_are_no_records_and_an_offset_that_is_gone_is_told(group: Group) -> None:
    consumer = consumer_of(group)
    consumer.coming += [
        Fetched(0, 0),
        Fetched(1, 5, KafkaError._PARTITION_EOF),
        Fetched(2, 9, KafkaError._AUTO_OFFSET_RESET),
        Fetched(0, 1, KafkaError._ALL_BROKERS_DOWN),
    ]
    asked = group.ask(10, 0.0)
    group._turn()
    assert [r.offset for r in asked.result(0)] == [0]
    await asyncio.sleep(0)
    assert heard(group) == [("offset lost", 2)]


async def taken(group: Group, n_records: int) -> list[tuple[int, int, str]]:
    """Partition, offset and trouble of the next records."""
    found: list[Record] = []
    asked = None
    async with asyncio.timeout(5):
        while len(found) < n_records:
            if asked is None:
                asked = group.ask(n_records - len(found), 0.0)
            group._turn()
            await asyncio.sleep(0)
            if asked.done():
                found += asked.result(0)
                asked = None
    return [(r.partition, r.offset, r.trouble) for r in found]


async def test_a_batch_that_cannot_be_decompressed_is_passed_over_as_a_whole(group: Group) -> None:
    bad = Fetched(0, 7, KafkaError._BAD_COMPRESSION)
    BATCHES[0] = range(7, 2_510)
    consumer = consumer_of(group)
    group.start_at({0: 6, 1: 3})
    group._turn()
    # What else comes of that partition comes again behind the seek.
    others = [Fetched(0, 9), *(Fetched(1, n) for n in range(4, 9))]
    consumer.coming += [Fetched(0, 6), Fetched(1, 3), bad, bad, *others]
    found = await taken(group, 7 + 2_503)
    said = "said the broker"
    assert [r for r in found if r[0] == 0] == [(0, 6, ""), *((0, n, said) for n in range(7, 2_510))]
    assert [r for r in found if r[0] == 1] == [(1, n, "") for n in range(3, 9)]
    assert consumer.calls[-1] == ("seek to 2510", [0])
    consumer.coming.append(Fetched(0, 2_510))
    assert await taken(group, 1) == [(0, 2_510, "")]


async def test_an_offset_that_is_gone_is_told_while_its_batch_is_looked_at(group: Group) -> None:
    consumer = consumer_of(group)
    group.start_at({0: 7})
    group._turn()
    consumer.coming += [
        Fetched(0, 7, KafkaError._BAD_COMPRESSION),
        Fetched(0, 7, KafkaError._AUTO_OFFSET_RESET),
    ]
    group._turn()
    group._turn()
    await asyncio.sleep(0)
    assert heard(group) == [("offset lost", 0)]


def still(group: Group, next_offset: int, stable: int = 20, fetch_state: str = "active") -> None:
    """Statistics of a second later, with another ten fetches."""
    seconds = group.__dict__["seconds"] = group.__dict__.get("seconds", 0) + 1
    partition = {
        "broker": 1,
        "fetch_state": fetch_state,
        "next_offset": next_offset,
        "ls_offset": stable,
    }
    told = {
        "ts": seconds * 1_000_000,
        "brokers": {
            "a:9092/1": {"nodeid": 1, "req": {"Fetch": 10 * seconds}},
            "GroupCoordinator": {"nodeid": 1, "req": {"Fetch": 0}},
        },
        "topics": {"clicks": {"partitions": {"0": partition, "-1": partition}}},
        "cgrp": {"state": "up"},
    }
    group._on_statistics(json.dumps(told))


async def rounds(group: Group, n_seconds: int, **told: Any) -> None:
    for _ in range(n_seconds):
        still(group, **told)
        group._turn()
        await asyncio.sleep(0.002)  # for the look, in its own thread
        group._turn()


async def test_a_batch_of_which_nothing_comes_in_two_rounds_is_passed_over(group: Group) -> None:
    BATCHES[0] = range(7, 9)
    group.start_at({0: 6})
    group._turn()
    consumer_of(group).coming.append(Fetched(0, 6))
    assert await taken(group, 1) == [(0, 6, "")]
    await rounds(group, 10, next_offset=7)
    assert not group._held
    await rounds(group, 1, next_offset=7)
    assert await taken(group, 2) == [(0, n, UNPARSABLE) for n in (7, 8)]
    assert consumer_of(group).calls[-1] == ("seek to 9", [0])


@pytest.mark.parametrize(
    ("told", "batch"),
    [
        ({"next_offset": 7, "stable": 7}, range(7, 9)),  # a transaction is open
        ({"next_offset": 7, "fetch_state": "offset-query"}, range(7, 9)),
        ({"next_offset": 7}, None),  # a marker, or no answer
    ],
    ids=["open transaction", "not fetched", "no batch"],
)
async def test_a_partition_that_stands_still_for_another_reason_is_left_alone(
    group: Group, told: dict[str, Any], batch: range | None
) -> None:
    if batch is not None:
        BATCHES[0] = batch
    group.start_at({0: 7})
    group._turn()
    await rounds(group, 30, **told)
    assert not group._held and not group._apart


async def test_a_paused_partition_stands_still_by_order(group: Group) -> None:
    BATCHES[0] = range(7, 9)
    group.start_at({0: 7})
    group._turn()
    await rounds(group, 10, next_offset=7)
    group.pause([0])
    await rounds(group, 30, next_offset=7)
    assert not group._held and not group._apart


async def test_what_comes_late_is_no_batch_that_cannot_be_read(group: Group) -> None:
    BATCHES[0] = range(7, 9)
    group.start_at({0: 7})
    group._turn()
    await rounds(group, 10, next_offset=7)
    consumer_of(group).coming += [Fetched(0, 7), Fetched(0, 8)]
    still(group, next_offset=7)  # with the call that brings them
    assert await taken(group, 2) == [(0, 7, ""), (0, 8, "")]
    await rounds(group, 30, next_offset=9, stable=9)
    assert not group._held and not group._apart


async def test_a_topic_that_we_may_not_read_ends_it(group: Group) -> None:
    consumer_of(group).coming.append(Fetched(0, 0, KafkaError.TOPIC_AUTHORIZATION_FAILED))
    with pytest.raises(StreamError, match="clicks cannot be read: said the broker"):
        group._turn()


async def test_partitions_start_where_the_restore_says_without_what_was_fetched_before(
    group: Group,
) -> None:
    consumer = consumer_of(group)
    consumer.coming.append(Fetched(0, 3))
    group._turn()  # nobody asks yet: the record is held
    consumer.coming.append(Fetched(1, 4))
    done = group.start_at({0: 8})
    asked = group.ask(10, 0.0)
    group._turn()
    group._turn()
    group._turn()
    assert done.done()
    assert consumer.calls == [("seek to 8", [0]), ("resume", [0])]
    assert [(r.partition, r.offset) for r in asked.result(0)] == [(1, 4)]


# -- lag --------------------------------------------------------------------------------------


async def test_lag_is_what_is_behind_the_committed_offset_and_markers_are_none(
    group: Group, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LOOK_EVERY_S", 0.0)
    consumer = consumer_of(group)
    consumer.ends[0] = 12  # ten records and two markers

    async def lag_becomes(expected: int, committed: int) -> None:
        async with asyncio.timeout(5):
            while group.lag(0, committed) != expected:  # noqa: ASYNC110  # of a thread
                await asyncio.sleep(0.001)

    group.start()
    group.start_at({0: 0})
    await lag_becomes(12, 0)
    asked = group.ask(20, 0.0)
    consumer.coming += [Fetched(0, n) for n in range(10)]
    await asyncio.wrap_future(asked)
    consumer.coming.append(Fetched(0, 12, KafkaError._PARTITION_EOF))
    await lag_becomes(0, 10)
    assert group.lag(0, 4) == 8, "fetched, but not committed"
    consumer.ends[0] = 15
    await lag_becomes(5, 10)
    group.close()
    assert not group.is_alive()


# -- rebalances -------------------------------------------------------------------------------


async def test_what_is_assigned_is_paused_and_told(group: Group) -> None:
    consumer = consumer_of(group)
    group._on_assign(consumer, tps(1, 3))  # type: ignore[arg-type]
    await asyncio.sleep(0)
    assert consumer.calls == [
        ("position", [1, 3]),
        ("pause", [1, 3]),
        ("incremental_assign", [1, 3]),
    ]
    assert heard(group) == [("assigned", [1, 3])]
    assert group.membership == Membership(3, "member-1")


async def test_a_member_without_partitions_is_told_so(group: Group) -> None:
    group._on_assign(consumer_of(group), [])  # type: ignore[arg-type]
    await asyncio.sleep(0)
    assert heard(group) == [("assigned", [])]


@pytest.mark.parametrize("lost", [False, True])
async def test_partitions_are_given_up_only_when_the_listener_is_done_with_them(
    group: Group, lost: bool
) -> None:
    consumer, listener = consumer_of(group), group._listener
    assert isinstance(listener, Listener)
    listener.may_give_up.clear()
    revoking = asyncio.create_task(
        asyncio.to_thread(group._on_revoke, consumer, tps(0), lost=lost)  # type: ignore[arg-type]
    )
    await asyncio.sleep(0.05)
    assert consumer.calls == []
    consumer.metadata = consumer.metadata.replace(struct.pack("=i", 3), struct.pack("=i", 4))
    await asyncio.sleep(0.05)
    assert group.membership.generation == 4, "which the batch under way may need"
    listener.may_give_up.set()
    await revoking
    assert heard(group) == [("lost" if lost else "revoked", [0])]
    assert consumer.calls == [("incremental_unassign", [0])]
