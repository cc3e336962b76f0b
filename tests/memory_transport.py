"""The transport's twin in memory: for unit tests of the loop, never for faults or delivery.

It passes the contract tests of the real one (``tests/integration/test_transport_contract.py``).
"""

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Collection, Mapping
from dataclasses import dataclass, field

from stream.contract.messages import Target
from stream.contract.records import Message, Record
from stream.position import Position
from stream.transport.protocol import Processor, Restored, Table, Transaction


@dataclass
class MemoryBroker:
    """Topics as lists: of the input by partition, and what was committed."""

    n_partitions: int
    end: dict[int, int] = field(default_factory=lambda: defaultdict(int))
    input: dict[int, list[Record]] = field(default_factory=lambda: defaultdict(list))
    messages: dict[Target, list[Message]] = field(default_factory=lambda: {t: [] for t in Target})
    changelog: dict[int, list[tuple[bytes, bytes | None]]] = field(
        default_factory=lambda: defaultdict(list)
    )
    positions: dict[int, Position] = field(default_factory=dict)

    def produce(self, partition: int, key: bytes, value: bytes) -> None:
        self.input[partition].append(Record(partition, self.end[partition], 1_000_000, key, value))
        self.end[partition] += 1

    def skip(self, partition: int) -> None:
        """Leave an offset without a record, as an aborted transaction does."""
        self.end[partition] += 1


class MemoryTransport:
    """Owns all partitions of a ``MemoryBroker``."""

    def __init__(self, broker: MemoryBroker) -> None:
        self.broker = broker
        self.stopped = asyncio.Event()
        self._positions: dict[int, Position] = {}
        self._fetched: dict[int, int] = {}

    def run(self, processor: Processor) -> int:
        asyncio.run(self.serve(processor))
        return 0

    async def serve(self, processor: Processor) -> None:
        """Restore, then let the processor run until ``stopped`` is set and nothing is left."""
        await processor.restore()
        await processor.run()

    @property
    def ready(self) -> bool:
        return bool(self._positions)

    @property
    def partitions(self) -> Collection[int]:
        return self._positions.keys()

    def position(self, partition: int) -> Position:
        return self._positions[partition]

    async def restore(self, table: Table) -> Restored:
        partitions = range(self.broker.n_partitions)
        table.own(partitions)
        n_records = 0
        for partition in partitions:
            table.forget(partition)
            for key, value in self.broker.changelog[partition]:
                table.restore(partition, key, value)
                n_records += 1
            table.finish_restore(partition)
            kept = self.broker.positions.get(partition)
            self._positions[partition] = kept.copy() if kept else Position(0, "memory")
            self._fetched[partition] = self._positions[partition].next_offset
        return Restored(n_records, 0)

    async def fetch(self) -> dict[int, list[Record]] | None:
        while True:
            new = {
                p: [r for r in self.broker.input[p] if r.offset >= begin]
                for p, begin in self._fetched.items()
            }
            if records := {p: of_p for p, of_p in new.items() if of_p}:
                self._fetched |= {p: of_p[-1].offset + 1 for p, of_p in records.items()}
                return records
            if self.stopped.is_set():
                return None
            await asyncio.sleep(0.001)

    async def commit(self, transaction: Transaction) -> None:
        for target, messages in transaction.messages.items():
            self.broker.messages[target] += [m for of_p in messages.values() for m in of_p]
        for partition, changes in transaction.changelog.items():
            self.broker.changelog[partition] += changes.items()
        for partition, position in transaction.positions.items():
            self.broker.positions[partition] = position.copy()
            self._positions[partition] = position

    def acknowledge(self) -> None:
        pass

    async def read(self, start: Mapping[int, int], end: Mapping[int, int]) -> AsyncIterator[Record]:
        for partition in start:
            for record in self.broker.input[partition]:
                if start[partition] <= record.offset < end[partition]:
                    yield record

    async def lag(self) -> dict[int, int]:
        return {p: self.broker.end[p] - of_p.next_offset for p, of_p in self._positions.items()}
