"""The states of the owned partitions in memory.

What the changelog holds is kept as a dict of bytes for each partition, so that a lost partition is
dropped at once.
"""

import heapq
from collections.abc import Callable, Collection, Mapping
from typing import Final

from stream.position import Position
from stream.transport.protocol import Transaction

BUCKET_MS: Final = 60_000


class PartitionStates:
    """One partition: its position, its states' bytes, and when to look at which for expiry.

    A state stands once in the queue, in the bucket of a minute that is not after its ``last_ms``: 8
    bytes a state, where a heap of pairs takes 100.

    as_of_today: a state's bytes as this version writes them; raises StreamError where they cannot
    be read, NewerFormatError where a newer version can. last_ms: by which time a state expires.
    """

    as_of_today: Callable[[bytes], bytes]
    last_ms: Callable[[bytes], int]

    def __init__(self) -> None:
        self.position: Position
        self.states: dict[bytes, bytes] = {}
        self._buckets: dict[int, list[bytes]] = {}
        self._minutes: list[int] = []  # a heap of the buckets' minutes

    def restore(self, key: bytes, value: bytes | None) -> None:
        """Take one record of the changelog. Raises as ``as_of_today``."""
        if value is None:
            self.states.pop(key, None)
        else:
            self.states[key] = self.as_of_today(value)

    def finish_restore(self) -> None:
        """Rebuild the expiry queue from the states."""
        for key, raw in self.states.items():
            self._enqueue(key, self.last_ms(raw))

    def apply(self, changes: Mapping[bytes, bytes | None], position: Position) -> None:
        """Take what a batch writes; None deletes."""
        self.position = position
        for key, raw in changes.items():
            if raw is None:
                del self.states[key]
                continue
            if key not in self.states:
                self._enqueue(key, self.last_ms(raw))
            self.states[key] = raw

    def collect(
        self, is_dead: Callable[[int], bool], keep: Collection[bytes], limit: int
    ) -> list[bytes]:
        """Return dead states to delete, looking at no more than ``limit`` queue entries.

        An entry that comes up too early goes to the bucket of the state's later time. The
        returned keys have left the queue: the caller must delete them, or end. ``keep``:
        states of the batch, which are about to change.
        """
        dead: list[bytes] = []
        later: list[tuple[bytes, int]] = []
        while self._minutes and len(dead) + len(later) < limit:
            minute = self._minutes[0]
            if not is_dead(minute * BUCKET_MS):  # nor is any that is later
                break
            keys = self._buckets[minute]
            while keys and len(dead) + len(later) < limit:
                key = keys.pop()
                at_ms = self.last_ms(self.states[key])
                if key in keep or not is_dead(at_ms):
                    later.append((key, at_ms))
                else:
                    dead.append(key)
            if not keys:
                del self._buckets[heapq.heappop(self._minutes)]
        for key, at_ms in later:
            self._enqueue(key, at_ms)
        return dead

    def _enqueue(self, key: bytes, at_ms: int) -> None:
        minute = at_ms // BUCKET_MS
        if minute not in self._buckets:
            self._buckets[minute] = []
            heapq.heappush(self._minutes, minute)
        self._buckets[minute].append(key)


class States:
    """The states of the owned partitions. For the event loop, which alone changes them."""

    def __init__(self) -> None:
        self.partitions: dict[int, PartitionStates] = {}

    def own(self, partitions: Mapping[int, PartitionStates]) -> None:
        self.partitions |= partitions

    def drop(self, partitions: Collection[int]) -> None:
        for partition in partitions:
            self.partitions.pop(partition, None)

    def apply(self, transaction: Transaction) -> None:
        """Take what a batch is about to commit: the next one is planned on it."""
        for partition, position in transaction.positions.items():
            self.partitions[partition].apply(transaction.changelog[partition], position)

    def get(self, partition: int, key: bytes) -> bytes | None:
        return self.partitions[partition].states.get(key)

    def sizes(self) -> dict[int, int]:
        return {p: len(of_partition.states) for p, of_partition in self.partitions.items()}

    def __len__(self) -> int:
        return sum(self.sizes().values())
