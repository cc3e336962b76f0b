"""What a transport promises, held against the real one on a real Kafka and its twin in memory.

Two processors are held to it at once, on the same broker: one keeps the last value of each key, the
other counts (``tests/counting_processor.py``).
"""

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from functools import partial
from typing import Any, Protocol

import pytest
from confluent_kafka import OFFSET_INVALID, Consumer, Producer
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic

from bench.faults.traffic import produce, read_topic
from deploy.broker import free_port
from stream.contract.messages import Target
from stream.contract.records import Record
from stream.position import POSITION_KEY, decode_position
from stream.settings import TopicsSettings, WorkerSettings
from stream.transport import group
from stream.transport.clients import confluent_options
from stream.transport.faust_app import FaustTransport
from stream.transport.protocol import Batch, Transport
from stream.transport.topics import check_topics, create_topics, topic_id
from tests.counting_processor import (
    COUNTS,
    CountingProcessor,
    KeyedProcessor,
    Step,
    Table,
    counting_wiring,
)
from tests.memory_transport import MemoryBroker, MemoryTransport

N_PARTITIONS = 2
Pair = tuple[bytes | None, bytes | None]


class LastValue(KeyedProcessor):
    """Keeps the last value of each key and answers every record with it."""

    def step(self, value: bytes | None, record: Record) -> Step:
        if record.value == b"delete":
            return Step(None, Target.DEAD_LETTERS, record.value)
        return Step(record.value, Target.RECOMMENDATIONS, record.value)


class Driver:
    """A processor on a transport, which notes what was fetched, and waits where a test says so."""

    def __init__(self, processor: KeyedProcessor, *, commits: bool = True) -> None:
        self.processor = processor
        self.transport = processor.transport
        self.fetched: list[Record] = []
        self.n_answered = 0
        self.go_on = asyncio.Event()
        self.go_on.set()
        answer = processor.answer

        async def watched(batch: Batch) -> None:
            for partition, records in batch.records.items():
                assert records[0].offset >= processor.tables[partition].position.next_offset
                self.fetched += records
            await self.go_on.wait()
            if commits:
                await answer(batch)
                self.n_answered += sum(map(len, batch.records.values()))

        processor.answer = watched  # type: ignore[method-assign]

    @property
    def values(self) -> dict[int, dict[bytes, bytes]]:
        return {p: table.values for p, table in self.processor.tables.items()}

    @property
    def positions(self) -> dict[int, int]:
        return {p: t.position.next_offset for p, t in self.processor.tables.items()}

    async def until(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 60
        while not condition():
            assert not self.processor.errors
            assert time.monotonic() < deadline, (
                f"ready: {self.transport.ready}, lag: {self.transport.lag()}, "
                f"positions: {self.positions}, {len(self.fetched)} fetched"
            )
            await asyncio.sleep(0.02)


class World(Protocol):
    """The topics of one processor, on which transports are started."""

    kind: type[KeyedProcessor]

    def produce(self, partition: int, *pairs: tuple[bytes, bytes]) -> None: ...
    async def messages(self, output: str) -> list[Pair]: ...
    def started(self, *, commits: bool = True) -> AbstractAsyncContextManager[Driver]: ...


class MemoryWorld:
    def __init__(self, kind: type[KeyedProcessor]) -> None:
        self.kind = kind
        self.broker = MemoryBroker(N_PARTITIONS)

    def produce(self, partition: int, *pairs: tuple[bytes, bytes]) -> None:
        for key, value in pairs:
            self.broker.produce(partition, key, value)

    async def messages(self, output: str) -> list[Pair]:
        return [(message.key, message.value) for message in self.broker.messages[output]]

    @asynccontextmanager
    async def started(self, *, commits: bool = True) -> AsyncIterator[Driver]:
        transport = MemoryTransport(self.broker)
        driver = Driver(self.kind(transport), commits=commits)
        serving = asyncio.create_task(transport.serve(driver.processor))
        yield driver
        driver.go_on.set()
        transport.stopped.set()
        await serving


class KafkaWorld:
    def __init__(
        self,
        bootstrap_servers: str,
        app_id: str,
        kind: type[KeyedProcessor],
        n_partitions: int = N_PARTITIONS,
    ) -> None:
        names = {
            "bootstrap_servers": bootstrap_servers,
            "app_id": app_id,
            "clicks_topic": f"{app_id}-clicks",
            "recommendations_topic": f"{app_id}-recommendations",
            "dead_letter_topic": f"{app_id}-dead-letter",
        }
        self.kind = kind
        self.settings = WorkerSettings.model_validate(
            {**names, "bundle": "none", "session_timeout_s": 6}
        )
        self.servers = bootstrap_servers
        admin = AdminClient(confluent_options(self.settings))
        if kind is CountingProcessor:
            self.wiring = counting_wiring(app_id)
            self.check: Callable[[], str] = partial(topic_id, admin, self.wiring.input)
            topics = [
                NewTopic(topic, n_partitions, 1)
                for topic in (self.wiring.input, *self.wiring.outputs.values())
            ]
            compact = {"cleanup.policy": "compact"}
            topics.append(NewTopic(self.wiring.changelog, n_partitions, 1, config=compact))
            for future in admin.create_topics(topics, operation_timeout=20).values():
                future.result(20)
        else:
            self.wiring = self.settings.wiring
            self.check = partial(check_topics, self.settings)
            create_topics(TopicsSettings.model_validate({**names, "partitions": n_partitions}))

    def produce(self, partition: int, *pairs: tuple[bytes, bytes]) -> None:
        produce(self.servers, self.wiring.input, pairs, partition=partition)

    async def messages(self, output: str) -> list[Pair]:
        topic = self.wiring.outputs[output]
        records = await asyncio.to_thread(read_topic, self.servers, topic)
        return [(record.key, record.value) for record in records]

    async def addresses(self) -> dict[int, str]:
        """By partition, where the pages of its owner are."""
        records = await asyncio.to_thread(read_topic, self.servers, self.wiring.changelog)
        return {
            record.partition: decode_position(record.value or b"").address
            for record in records
            if record.key == POSITION_KEY
        }

    async def n_members(self) -> int:
        group = self.wiring.group_id
        admin = AdminClient(confluent_options(self.settings))
        described = admin.describe_consumer_groups([group])[group]
        return len((await asyncio.to_thread(described.result, 20)).members)

    def driver(self, *, commits: bool = True) -> Driver:
        """A processor on a transport with a port of its own, not started."""
        settings = self.settings.model_copy(update={"web_port": free_port()})
        transport = FaustTransport(settings, self.wiring, self.check)
        driver = Driver(self.kind(transport), commits=commits)
        transport.attach(driver.processor)
        return driver

    @asynccontextmanager
    async def started(
        self, driver: Driver | None = None, *, commits: bool = True
    ) -> AsyncIterator[Driver]:
        driver = driver or self.driver(commits=commits)
        app = transport_of(driver).app
        await app.start()
        try:
            yield driver
        finally:
            driver.go_on.set()
            async with asyncio.timeout(30):
                await app.stop()
        assert not driver.processor.errors


def transport_of(driver: Driver) -> FaustTransport:
    transport: Transport = driver.transport
    assert isinstance(transport, FaustTransport)
    return transport


def address_of(driver: Driver) -> str:
    settings = transport_of(driver)._settings
    return f"{settings.web_host}:{settings.web_port}"


# -- what both keep ---------------------------------------------------------------------------


async def records_are_answered_once_and_a_restart_goes_on_behind_them(world: World) -> None:
    counts = world.kind is CountingProcessor
    world.produce(0, (b"a", b"1"), (b"b", b"2"))
    world.produce(1, (b"c", b"3"))
    async with world.started() as first:
        await first.until(lambda: first.n_answered == 3)
        assert sum(how.n_records for how in first.processor.restored) == 0
        assert sum(how.n_lost for how in first.processor.restored) == 0
        world.produce(0, (b"a", b"4"), (b"b", b"delete"))
        await first.until(lambda: first.n_answered == 5)
    async with world.started() as second:
        await second.until(lambda: second.transport.ready)
        assert (
            second.values
            == {
                LastValue: {0: {b"a": b"4"}, 1: {b"c": b"3"}},
                CountingProcessor: {0: {b"a": b"2", b"b": b"2"}, 1: {b"c": b"1"}},
            }[world.kind]
        )
        assert second.positions == {0: 4, 1: 1}
        world.produce(1, (b"c", b"5"))
        await second.until(lambda: second.n_answered == 1)
        assert [(r.partition, r.offset, r.value) for r in second.fetched] == [(1, 1, b"5")]
    if counts:
        assert sorted(await world.messages(COUNTS)) == [
            (name, count) for name in (b"a", b"b", b"c") for count in (b"1", b"2")
        ]
        return
    assert await world.messages(Target.DEAD_LETTERS) == [(b"b", b"delete")]
    assert sorted(await world.messages(Target.RECOMMENDATIONS)) == [
        (b"a", b"1"),
        (b"a", b"4"),
        (b"b", b"2"),
        (b"c", b"3"),
        (b"c", b"5"),
    ]


async def what_was_not_committed_comes_again_in_order(world: World) -> None:
    counts = world.kind is CountingProcessor
    pairs = [(b"k%d" % n, b"%d" % n) for n in range(20)]
    world.produce(1, *pairs)
    async with world.started(commits=False) as first:
        await first.until(lambda: len(first.fetched) > 0)
        assert first.positions[1] == 0
    async with world.started() as second:
        await second.until(lambda: second.n_answered == 20)
        assert [(r.offset, r.key, r.value) for r in second.fetched] == [
            (n, *pair) for n, pair in enumerate(pairs)
        ]
    assert await world.messages(COUNTS if counts else Target.RECOMMENDATIONS) == [
        (key, b"1" if counts else value) for key, value in pairs
    ]


async def a_range_is_read_again_and_lag_is_what_is_not_applied(world: World) -> None:
    world.produce(0, *((b"k", b"%d" % n) for n in range(10)))
    async with world.started() as driver:
        await driver.until(lambda: driver.n_answered == 10)
        read = await driver.transport.read({0: 3, 1: 0}, {0: 6, 1: 0})
        assert [(r.partition, r.offset, r.key, r.value) for r in read] == [
            (0, n, b"k", b"%d" % n) for n in (3, 4, 5)
        ]
        assert driver.transport.ready
        assert sorted(driver.values) == [0, 1]
        await driver.until(lambda: driver.transport.lag() == {0: 0, 1: 0})
        driver.go_on.clear()
        world.produce(0, *((b"k", b"%d" % n) for n in range(7)))
        await driver.until(lambda: driver.transport.lag() == {0: 7, 1: 0})


async def a_paused_partition_waits_alone_and_goes_on_where_it_is_told(world: World) -> None:
    world.produce(0, (b"a", b"1"))
    world.produce(1, (b"b", b"1"))
    async with world.started() as driver:
        await driver.until(lambda: driver.n_answered == 2)
        driver.transport.pause(0)
        world.produce(0, (b"a", b"2"), (b"a", b"3"))
        world.produce(1, (b"b", b"2"))
        await driver.until(lambda: driver.positions[1] >= 2)
        world.produce(1, (b"b", b"3"))
        await driver.until(lambda: driver.positions[1] >= 3)
        assert [r.partition for r in driver.fetched if r.offset > 0] == [1, 1]
        await driver.transport.resume(0, driver.positions[0])
        await driver.until(lambda: driver.n_answered == 6)
    assert [r.value for r in driver.fetched if r.partition == 0] == [b"1", b"2", b"3"]


@pytest.mark.parametrize(
    "promise",
    [
        records_are_answered_once_and_a_restart_goes_on_behind_them,
        what_was_not_committed_comes_again_in_order,
        a_range_is_read_again_and_lag_is_what_is_not_applied,
        a_paused_partition_waits_alone_and_goes_on_where_it_is_told,
    ],
    ids=lambda promise: promise.__name__,
)
@pytest.mark.parametrize("where", ["memory", "kafka"])
async def test_two_processors_side_by_side_are_promised(
    promise: Callable[[World], Awaitable[None]], where: str, request: pytest.FixtureRequest
) -> None:
    kinds = (LastValue, CountingProcessor)
    worlds: Sequence[World]
    if where == "memory":
        worlds = [MemoryWorld(kind) for kind in kinds]
    else:
        app_id = request.getfixturevalue("fresh_name")("contract")
        worlds = [KafkaWorld(request.getfixturevalue("kafka"), app_id, kind) for kind in kinds]
    async with asyncio.TaskGroup() as together:
        for world in worlds:
            together.create_task(promise(world))  # type: ignore[arg-type]


# -- what only a group of workers can show ----------------------------------------------------

Make = Callable[..., KafkaWorld]


@pytest.fixture
def make(kafka: str, fresh_name: Callable[[str], str]) -> Make:
    return partial(KafkaWorld, kafka, fresh_name("group"), LastValue)


async def answers(world: KafkaWorld) -> list[Pair]:
    return sorted(await world.messages(Target.RECOMMENDATIONS))


class HeldTable(Table):
    """A table whose restore ends when it may."""

    may_end: threading.Event

    def finish_restore(self) -> None:
        assert self.may_end.wait(60)


async def test_a_join_during_a_restore_hands_partitions_on_before_they_are_restored(
    make: Make,
) -> None:
    world, held = make(), threading.Event()
    world.produce(0, (b"a", b"1"))
    world.produce(1, (b"b", b"2"))
    first, second = world.driver(), world.driver()

    class Held(HeldTable):
        may_end = held

    first.processor.new_partition = Held
    async with AsyncExitStack() as stack:
        stack.callback(held.set)
        await stack.enter_async_context(world.started(first))
        await first.until(lambda: len(transport_of(first)._assigned) == N_PARTITIONS)
        assert not first.transport.ready
        await stack.enter_async_context(world.started(second))
        await second.until(lambda: len(second.values) == 1 and second.transport.ready)
        await second.until(lambda: second.n_answered == 1)
        assert (first.values, first.transport.ready) == ({}, False), "its restore is held"
        held.set()
        await first.until(lambda: first.transport.ready)
        await first.until(lambda: first.n_answered == 1)
        assert sorted([*first.values, *second.values]) == [0, 1], "each has one"
        assert await world.addresses() == {
            **dict.fromkeys(first.values, address_of(first)),
            **dict.fromkeys(second.values, address_of(second)),
        }
    assert await answers(world) == [(b"a", b"1"), (b"b", b"2")]


class SlowlyAssigned(Consumer):
    """On a starved machine, what follows an assignment may come late."""

    def incremental_assign(self, *args: Any, **kwargs: Any) -> None:
        super().incremental_assign(*args, **kwargs)
        time.sleep(1.0)


async def test_nothing_is_fetched_of_a_partition_before_its_restore_says_where(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A batch that aborts the process might be in it, and nobody has looked yet."""
    monkeypatch.setattr(group, "Consumer", SlowlyAssigned)
    world, held = make(1), threading.Event()
    world.produce(0, (b"a", b"1"))
    driver = world.driver()

    class Held(HeldTable):
        may_end = held

    async def high() -> int:
        of = transport_of(driver)._group
        assert of is not None
        return await asyncio.wrap_future(of._call(lambda: of._high(0)))

    driver.processor.new_partition = Held
    async with world.started(driver):
        await driver.until(lambda: transport_of(driver)._assigned == {0})
        while_held = await high()
        held.set()
        await driver.until(lambda: driver.n_answered == 1)
        assert await high() == 1, "a fetch would have told of it"
    assert while_held == OFFSET_INVALID


async def test_a_revocation_waits_for_the_batch_under_way(make: Make) -> None:
    world = make()
    first, second = world.driver(), world.driver()
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(world.started(first))
        await first.until(lambda: first.transport.ready and len(first.values) == N_PARTITIONS)
        first.go_on.clear()
        for p in range(N_PARTITIONS):
            world.produce(p, (b"k%d" % p, b"1"))
        await first.until(lambda: bool(first.fetched))
        await stack.enter_async_context(world.started(second))
        await first.until(lambda: len(transport_of(first)._assigned) == 1)
        await asyncio.sleep(1.0)
        assert second.values == {}, "given on while their batch is under way"
        assert await answers(world) == []
        first.go_on.set()
        await second.until(lambda: len(second.values) == 1)
        await first.until(lambda: first.n_answered + second.n_answered == N_PARTITIONS)
        for p in range(N_PARTITIONS):
            world.produce(p, (b"k%d" % p, b"2"))
        await first.until(lambda: first.n_answered + second.n_answered == 2 * N_PARTITIONS)
        assert first.processor.n_lost_transactions == 0
        both = first.positions | second.positions
        assert both == dict.fromkeys(range(N_PARTITIONS), 2)
    assert await answers(world) == [(b"k%d" % p, value) for p in range(2) for value in (b"1", b"2")]


async def test_a_worker_without_partitions_stays_is_ready_and_takes_over(make: Make) -> None:
    world = make(1)
    first, second = world.driver(), world.driver()
    async with AsyncExitStack() as stack:
        async with world.started(first):
            await first.until(lambda: first.transport.ready and len(first.values) == 1)
            await stack.enter_async_context(world.started(second))
            await second.until(lambda: second.transport.ready)
            world.produce(0, (b"k", b"1"))
            await first.until(lambda: first.n_answered == 1)
            assert second.values == {}
            # Longer than the session's timeout, and the poll's at any rate of its heartbeats.
            await asyncio.sleep(world.settings.session_timeout_s + 1)
            assert await world.n_members() == 2
            assert second.transport.ready
            assert await world.addresses() == {0: address_of(first)}
        await second.until(lambda: second.values == {0: {b"k": b"1"}} and second.transport.ready)
        assert await world.addresses() == {0: address_of(second)}
        world.produce(0, (b"k", b"2"))
        await second.until(lambda: second.n_answered == 1)
        assert [r.value for r in second.fetched] == [b"2"]


async def test_every_codec_is_read_from_the_input_and_from_the_changelog(make: Make) -> None:
    world, codecs = make(), ("none", "gzip", "snappy", "lz4", "zstd")
    for n, codec in enumerate(codecs):
        producer = Producer({"bootstrap.servers": world.servers, "compression.type": codec})
        value = codec.encode() * 100  # so that it is smaller compressed, or it is sent as it is
        for topic in (world.wiring.input, world.wiring.changelog):
            producer.produce(topic, value, b"%s of %s" % (codec.encode(), topic.encode()), n % 2)
        assert producer.flush(20) == 0
    async with world.started() as driver:
        await driver.until(lambda: driver.transport.ready and len(driver.values) == N_PARTITIONS)
        restored = {key: value for of_p in driver.values.values() for key, value in of_p.items()}
        of = b" of " + world.wiring.changelog.encode()
        expected = {codec.encode() + of: codec.encode() * 100 for codec in codecs}
        assert restored.items() >= expected.items()
        await driver.until(lambda: driver.n_answered == len(codecs))
    of = b" of " + world.wiring.input.encode()
    assert await answers(world) == sorted((c.encode() + of, c.encode() * 100) for c in codecs)
