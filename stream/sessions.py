"""The sessions of the owned partitions, in memory: states, positions and the expiry queues.

What Kafka's changelog holds, as a dict a partition, so that a lost partition is dropped at once.
Plain values: Faust's side of the table is in store.py.
"""

import heapq
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field

from stream.position import POSITION_KEY, Position, decode_position
from stream.session import check_format, last_click_ms


@dataclass(slots=True)
class PartitionSessions:
    """One partition: its sessions' bytes, and how far clicks and changelog have been applied."""

    states: dict[bytes, bytes] = field(default_factory=dict)
    position: Position | None = None
    changelog_offset: int = 0
    """The changelog's next offset: a restore of a partition that was kept reads on from here."""
    expiry: list[tuple[int, bytes]] = field(default_factory=list)
    """A heap with one entry a session: its last click's time when the entry was pushed."""

    def restore(self, key: bytes, value: bytes | None) -> None:
        """Take one record of the changelog. Raises StreamError on a newer format."""
        if key == POSITION_KEY:
            self.position = decode_position(value) if value is not None else None
        elif value is None:
            self.states.pop(key, None)
        else:
            check_format(value)
            self.states[key] = value

    def finish_restore(self) -> None:
        """Rebuild the expiry queue from the states."""
        self.expiry = [(last_click_ms(raw), key) for key, raw in self.states.items()]
        heapq.heapify(self.expiry)

    def apply(
        self,
        states: Mapping[bytes, bytes],
        tombstones: Iterable[bytes],
        position: Position,
        changelog_offset: int,
    ) -> None:
        """Take what a committed transaction has written."""
        for key, raw in states.items():
            if key not in self.states:
                heapq.heappush(self.expiry, (last_click_ms(raw), key))
            self.states[key] = raw
        for key in tombstones:
            del self.states[key]
        self.position = position
        self.changelog_offset = changelog_offset

    def collect(
        self, is_dead: Callable[[int], bool], keep: Collection[bytes], limit: int
    ) -> list[bytes]:
        """Return dead sessions to delete, looking at ``limit`` queue entries at the most.

        An entry that comes up too early is pushed back with the session's later time. The
        returned keys have left the queue: the caller must delete them, or die. ``keep``:
        sessions of the batch, whose states are about to change.
        """
        dead, later = [], []
        for _ in range(min(limit, len(self.expiry))):
            if not is_dead(self.expiry[0][0]):
                break
            _, key = heapq.heappop(self.expiry)
            last = last_click_ms(self.states[key])
            if key in keep or not is_dead(last):
                later.append((last, key))
            else:
                dead.append(key)
        for entry in later:
            heapq.heappush(self.expiry, entry)
        return dead


class Sessions:
    """The owned partitions. Read by the scoring thread only while the event loop awaits it."""

    def __init__(self) -> None:
        self.partitions: dict[int, PartitionSessions] = {}

    def own(self, partitions: Collection[int]) -> None:
        """Drop what is no longer ours, and begin what is new, empty."""
        self.partitions = {
            p: self.partitions.get(p) or PartitionSessions() for p in sorted(partitions)
        }

    def forget(self, partition: int) -> None:
        """Begin an owned partition anew: what was applied of it is not what the changelog says."""
        self.partitions[partition] = PartitionSessions()

    def get(self, partition: int, key: bytes) -> bytes | None:
        """Return a session's bytes."""
        return self.partitions[partition].states.get(key)

    def sizes(self) -> dict[int, int]:
        """Return the number of sessions by partition."""
        return {p: len(of_partition.states) for p, of_partition in self.partitions.items()}

    def __len__(self) -> int:
        return sum(len(p.states) for p in self.partitions.values())
