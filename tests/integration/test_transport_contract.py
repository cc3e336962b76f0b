"""What a transport promises, held against the real one on a real Kafka and its twin in memory."""

import asyncio
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Protocol

import pytest
from stream.transport.patches import install_patches

from bench.faults.traffic import produce, read_topic
from deploy.broker import free_port
from stream.contract.messages import Target
from stream.contract.records import Message, Record
from stream.settings import TopicsSettings, WorkerSettings
from stream.transport.faust_app import FaustTransport
from stream.transport.protocol import Restored, Transaction, Transport
from stream.transport.topics import check_topics, create_topics
from tests.memory_transport import MemoryBroker, MemoryTransport
from tests.unit.stream.transport.test_patches import PATCHED

N_PARTITIONS = 2


class DictTable:
    """Values by partition and key."""

    def __init__(self) -> None:
        self.values: dict[int, dict[bytes, bytes]] = {}
        self.finished: set[int] = set()

    def own(self, partitions: Collection[int]) -> None:
        self.values = {p: self.values.get(p, {}) for p in partitions}

    def forget(self, partition: int) -> None:
        self.values[partition] = {}

    def restore(self, partition: int, key: bytes, value: bytes | None) -> None:
        if value is None:
            self.values[partition].pop(key, None)
        else:
            self.values[partition][key] = value

    def finish_restore(self, partition: int) -> None:
        self.finished.add(partition)


class Driver:
    """A processor that keeps the last value of each key and answers every record with it."""

    def __init__(self, transport: Transport, *, commits: bool = True) -> None:
        self.transport = transport
        self.table = DictTable()
        self.restored: Restored | None = None
        self.fetched: list[Record] = []
        self._commits = commits

    async def restore(self) -> None:
        self.restored = await self.transport.restore(self.table)

    async def run(self) -> None:
        while (records := await self.transport.fetch()) is not None:
            self.fetched += [record for of_p in records.values() for record in of_p]
            if self._commits:
                await self.transport.commit(self._transaction(records))
                self.transport.acknowledge()

    async def observe(self) -> None:
        pass

    def _transaction(self, records: dict[int, list[Record]]) -> Transaction:
        transaction = Transaction()
        for partition, of_p in records.items():
            position = self.transport.position(partition).copy()
            for record in of_p:
                assert record.offset >= position.next_offset
                assert record.key is not None
                position.next_offset = record.offset + 1
                deletes = record.value == b"delete"
                transaction.changelog[partition][record.key] = None if deletes else record.value
                target = Target.DEAD_LETTERS if deletes else Target.RECOMMENDATIONS
                transaction.messages[target][partition].append(Message(record.key, record.value))
            transaction.positions[partition] = position
        return transaction


class World(Protocol):
    """One deployment of topics, on which transports are started one after the other."""

    def produce(self, partition: int, *pairs: tuple[bytes, bytes]) -> None: ...
    def messages(self, target: Target) -> list[tuple[bytes | None, bytes | None]]: ...
    def started(self, *, commits: bool = True) -> AbstractAsyncContextManager[Driver]: ...


class MemoryWorld:
    def __init__(self) -> None:
        self.broker = MemoryBroker(N_PARTITIONS)

    def produce(self, partition: int, *pairs: tuple[bytes, bytes]) -> None:
        for key, value in pairs:
            self.broker.produce(partition, key, value)

    def messages(self, target: Target) -> list[tuple[bytes | None, bytes | None]]:
        return [(message.key, message.value) for message in self.broker.messages[target]]

    @asynccontextmanager
    async def started(self, *, commits: bool = True) -> AsyncIterator[Driver]:
        transport = MemoryTransport(self.broker)
        driver = Driver(transport, commits=commits)
        serving = asyncio.create_task(transport.serve(driver))
        yield driver
        transport.stopped.set()
        await serving


class KafkaWorld:
    def __init__(self, bootstrap_servers: str, app_id: str) -> None:
        names = {
            "bootstrap_servers": bootstrap_servers,
            "app_id": app_id,
            "clicks_topic": f"{app_id}-clicks",
            "recommendations_topic": f"{app_id}-recommendations",
            "dead_letter_topic": f"{app_id}-dead-letter",
        }
        create_topics(TopicsSettings(partitions=N_PARTITIONS, **names))  # type: ignore[arg-type]
        self._settings = WorkerSettings.model_validate(
            {**names, "bundle": "none", "session_timeout_s": 6, "web_port": free_port()}
        )

    def produce(self, partition: int, *pairs: tuple[bytes, bytes]) -> None:
        settings = self._settings
        produce(settings.bootstrap_servers, settings.clicks_topic, pairs, partition=partition)

    def messages(self, target: Target) -> list[tuple[bytes | None, bytes | None]]:
        settings = self._settings
        topic = {
            Target.RECOMMENDATIONS: settings.recommendations_topic,
            Target.DEAD_LETTERS: settings.dead_letter_topic,
        }[target]
        records = read_topic(settings.bootstrap_servers, topic)
        return [(record.key, record.value) for record in records]

    @asynccontextmanager
    async def started(self, *, commits: bool = True) -> AsyncIterator[Driver]:
        transport = FaustTransport(self._settings, check_topics(self._settings))
        driver = Driver(transport, commits=commits)
        transport.attach(driver)
        await transport.app.start()
        yield driver
        await transport.app.stop()
        await transport._delivery.close()  # in a worker the process ends instead
        await transport._reader.close()


@pytest.fixture
def faust_patched(monkeypatch: pytest.MonkeyPatch) -> None:
    """Faust and aiokafka patched as in a worker; monkeypatch undoes it."""
    for owner, name in PATCHED:
        monkeypatch.setattr(owner, name, getattr(owner, name))
    install_patches()


@pytest.fixture(params=["memory", "kafka"])
def world(request: pytest.FixtureRequest) -> World:
    if request.param == "memory":
        return MemoryWorld()
    request.getfixturevalue("faust_patched")
    fresh_name: Callable[[str], str] = request.getfixturevalue("fresh_name")
    return KafkaWorld(request.getfixturevalue("kafka"), fresh_name("contract"))


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not condition():  # noqa: ASYNC110  # conditions of a broker, which sets no event
            await asyncio.sleep(0.02)


async def test_records_are_answered_once_and_a_restart_goes_on_behind_them(world: World) -> None:
    world.produce(0, (b"a", b"1"), (b"b", b"2"))
    world.produce(1, (b"c", b"3"))
    async with world.started() as first:
        await until(lambda: len(first.fetched) == 3)
        await until(lambda: len(world.messages(Target.RECOMMENDATIONS)) == 3)
        assert first.restored == Restored(0, 0)
        assert first.table.finished == {0, 1}
        world.produce(0, (b"a", b"4"), (b"b", b"delete"))
        await until(lambda: len(world.messages(Target.DEAD_LETTERS)) == 1)
    async with world.started() as second:
        await until(lambda: second.restored is not None)
        assert second.table.values == {0: {b"a": b"4"}, 1: {b"c": b"3"}}
        assert [second.transport.position(p).next_offset for p in (0, 1)] == [4, 1]
        world.produce(1, (b"c", b"5"))
        await until(lambda: len(world.messages(Target.RECOMMENDATIONS)) == 5)
        assert [(r.partition, r.offset, r.value) for r in second.fetched] == [(1, 1, b"5")]
    assert sorted(world.messages(Target.RECOMMENDATIONS)) == [
        (b"a", b"1"),
        (b"a", b"4"),
        (b"b", b"2"),
        (b"c", b"3"),
        (b"c", b"5"),
    ]


async def test_what_was_not_committed_comes_again_in_order(world: World) -> None:
    pairs = [(b"k%d" % n, b"%d" % n) for n in range(20)]
    world.produce(1, *pairs)
    async with world.started(commits=False) as first:
        await until(lambda: len(first.fetched) > 0)
        assert first.transport.position(1).next_offset == 0
    async with world.started() as second:
        await until(lambda: len(world.messages(Target.RECOMMENDATIONS)) == 20)
        assert [(r.offset, r.key, r.value) for r in second.fetched] == [
            (n, *pair) for n, pair in enumerate(pairs)
        ]
    assert world.messages(Target.RECOMMENDATIONS) == pairs


async def test_a_range_is_read_again_and_lag_is_what_is_not_applied(world: World) -> None:
    world.produce(0, *((b"k", b"%d" % n) for n in range(10)))
    async with world.started() as driver:
        await until(lambda: len(world.messages(Target.RECOMMENDATIONS)) == 10)
        read = [r async for r in driver.transport.read({0: 3, 1: 0}, {0: 6, 1: 0})]
        assert [(r.partition, r.offset, r.key, r.value) for r in read] == [
            (0, n, b"k", b"%d" % n) for n in (3, 4, 5)
        ]
        assert driver.transport.ready
        assert sorted(driver.transport.partitions) == [0, 1]
        assert await driver.transport.lag() == {0: 0, 1: 0}
