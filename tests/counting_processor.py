"""A second processor: it counts records by item, and shows that the transport knows no sessions.

A state is a number by item. Each record publishes its item's new count.
"""

from collections.abc import Callable, Collection, Mapping
from typing import NamedTuple

from stream.contract.records import Message, Record
from stream.position import Position
from stream.settings import Wiring
from stream.transport.protocol import (
    Batch,
    PartitionTable,
    Restored,
    Transaction,
    TransactionLostError,
    Transport,
)

COUNTS = "counts"


class Table:
    """Values by key, of one partition."""

    def __init__(self) -> None:
        self.values: dict[bytes, bytes] = {}
        self.position: Position

    def restore(self, key: bytes, value: bytes | None) -> None:
        self.set(key, value)

    def finish_restore(self) -> None: ...

    def set(self, key: bytes, value: bytes | None) -> None:
        if value is None:
            self.values.pop(key, None)
        else:
            self.values[key] = value


class Step(NamedTuple):
    """What one record does: its key's next value, and what is published where."""

    value: bytes | None
    output: str
    published: bytes | None


class KeyedProcessor:
    """A ``Processor`` with a value for each key, of which each record makes the next one."""

    def __init__(self, transport: Transport) -> None:
        self.transport = transport
        self.tables: dict[int, Table] = {}
        self.new_partition: Callable[[], PartitionTable] = Table
        self.restored: list[Restored] = []
        self.n_lost_transactions = 0
        self.errors: list[Exception] = []

    def step(self, value: bytes | None, record: Record) -> Step:
        raise NotImplementedError

    async def run(self) -> None:
        while (batch := await self.transport.fetch()) is not None:
            await self.answer(batch)
            self.transport.acknowledge(batch)

    async def answer(self, batch: Batch) -> None:
        transaction = Transaction()
        for partition, records in batch.records.items():
            table, changes = self.tables[partition], transaction.changelog[partition]
            position = table.position = table.position.copy()
            for record in records:
                if record.offset < position.next_offset:
                    continue
                position.next_offset = record.offset + 1
                key = record.key or b""
                value, output, published = self.step(table.values.get(key), record)
                table.set(key, value)
                changes[key] = value
                transaction.messages[output][partition].append(Message(record.key, published))
            transaction.positions[partition] = position
        try:
            await self.transport.commit(batch, transaction)
        except TransactionLostError:
            self.n_lost_transactions += 1

    def own(self, restored: Mapping[int, tuple[Table, Position]], how: Restored) -> None:
        for partition, (table, position) in restored.items():
            table.position = position
            self.tables[partition] = table
        self.restored.append(how)

    def drop(self, partitions: Collection[int]) -> None:
        for partition in partitions:
            self.tables.pop(partition, None)

    async def observe(self) -> None: ...

    def fail(self, error: Exception) -> None:
        self.errors.append(error)


class CountingProcessor(KeyedProcessor):
    def step(self, value: bytes | None, record: Record) -> Step:
        count = b"%d" % (int(value or 0) + 1)
        return Step(count, COUNTS, count)


def counting_wiring(app_id: str) -> Wiring:
    """Topics of its own beside those of ``app_id``, and a group of its own."""
    return Wiring(
        f"{app_id}-counting",
        f"{app_id}-items",
        f"{app_id}-counts-changelog",
        {COUNTS: f"{app_id}-counts"},
    )
