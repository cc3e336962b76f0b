"""The transport's twin in memory: for unit tests of the loop, never for faults or delivery.

It passes the contract tests of the real one (``tests/integration/test_transport_contract.py``).
"""

import asyncio
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from stream.contract.records import Message, Record
from stream.position import Position
from stream.transport.protocol import Batch, Processor, Restored, Transaction

APPENDED_MS = 4_000_000_000_000
"""Every record's: in 2096, so that a click's own time may be any."""


@dataclass
class MemoryBroker:
    """Topics as lists: of the input by partition, and what was committed."""

    n_partitions: int
    end: dict[int, int] = field(default_factory=lambda: defaultdict(int))
    input: dict[int, list[Record]] = field(default_factory=lambda: defaultdict(list))
    messages: dict[str, list[Message]] = field(default_factory=lambda: defaultdict(list))
    changelog: dict[int, list[tuple[bytes, bytes | None]]] = field(
        default_factory=lambda: defaultdict(list)
    )
    positions: dict[int, Position] = field(default_factory=dict)

    def produce(self, partition: int, key: bytes, value: bytes) -> None:
        self.input[partition].append(
            Record(partition, self.end[partition], APPENDED_MS, key, value)
        )
        self.end[partition] += 1

    def skip(self, partition: int) -> None:
        """Leave an offset without a record, as an aborted transaction does."""
        self.end[partition] += 1


class MemoryTransport:
    """Owns all partitions of a ``MemoryBroker``."""

    def __init__(self, broker: MemoryBroker) -> None:
        self.broker = broker
        self.stopped = asyncio.Event()
        self._fetched: dict[int, int] = {}
        self._paused: set[int] = set()
        self._committed: dict[int, int] = {}

    def run(self, processor: Processor) -> int:
        asyncio.run(self.serve(processor))
        return 0

    async def serve(self, processor: Processor) -> None:
        """Restore, then let the processor run until ``stopped`` is set and nothing is left."""
        self.restore(processor)
        await processor.run()

    def restore(self, processor: Processor) -> None:
        """Let the processor own every partition as it was last committed."""
        restored, n_records = {}, 0
        for partition in range(self.broker.n_partitions):
            table = processor.new_partition()
            for key, value in self.broker.changelog[partition]:
                table.restore(key, value)
                n_records += 1
            table.finish_restore()
            kept = self.broker.positions.get(partition)
            position = kept.copy() if kept else Position(0, "memory")
            restored[partition] = table, position
            self._fetched[partition] = self._committed[partition] = position.next_offset
        processor.own(restored, Restored(n_records, 0, 0.0))

    @property
    def ready(self) -> bool:
        return bool(self._committed)

    async def fetch(self) -> Batch | None:
        while True:
            new = {
                p: [r for r in self.broker.input[p] if r.offset >= begin]
                for p, begin in self._fetched.items()
                if p not in self._paused
            }
            if records := {p: of_p for p, of_p in new.items() if of_p}:
                self._fetched |= {p: of_p[-1].offset + 1 for p, of_p in records.items()}
                return Batch(records, 0)
            if self.stopped.is_set():
                return None
            await asyncio.sleep(0.001)

    def is_current(self, batch: Batch) -> bool:
        return True

    async def commit(self, batch: Batch, transaction: Transaction) -> None:
        for name, messages in transaction.messages.items():
            self.broker.messages[name] += [m for of_p in messages.values() for m in of_p]
        for partition, changes in transaction.changelog.items():
            self.broker.changelog[partition] += changes.items()
        for partition, position in transaction.positions.items():
            self.broker.positions[partition] = position.copy()
            self._committed[partition] = position.next_offset

    def acknowledge(self, batch: Batch) -> None:
        pass

    def pause(self, partition: int) -> None:
        self._paused.add(partition)

    async def resume(self, partition: int, offset: int) -> None:
        self._paused.discard(partition)
        self._fetched[partition] = offset

    async def pass_over(self, partition: int, batch: range, why: str) -> None:
        found = self.broker.input[partition]
        kept = [record for record in found if record.offset not in batch]
        kept += [Record(partition, n, 0, None, None, trouble=why) for n in batch]
        found[:] = sorted(kept, key=lambda record: record.offset)
        self._fetched[partition] = batch.start

    async def promised(self, holes: Mapping[int, Sequence[tuple[int, int]]]) -> dict[int, range]:
        return {
            p: range(r.offset, r.offset + 1)
            for p, of_p in holes.items()
            for r in reversed(self.broker.input[p])
            if any(a <= r.offset < b for a, b in of_p)
        }

    async def read(self, start: Mapping[int, int], end: Mapping[int, int]) -> list[Record]:
        return [r for p in start for r in self.broker.input[p] if start[p] <= r.offset < end[p]]

    def lag(self) -> dict[int, int]:
        return {p: self.broker.end[p] - offset for p, offset in self._committed.items()}
