"""What a processor asks of Kafka, and nothing about what its records mean.

Records of the owned partitions come in, and every batch goes out as one ``Transaction``, which
readers see whole or not at all. ``stream/worker.py`` is the processor; ``faust_app.py`` is today's
implementation.
"""

from collections import defaultdict
from collections.abc import AsyncIterator, Collection, Mapping
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import NamedTuple, Protocol, runtime_checkable

from stream.contract.records import Message, Record
from stream.position import Position


class Target(Enum):
    """A topic that a processor writes to; the transport knows its name and its partitions.

    Within a transaction the targets are written in this order, and the changelog last.
    """

    RECOMMENDATIONS = auto()
    DEAD_LETTERS = auto()


@dataclass(slots=True)
class Transaction:
    """All that one batch writes, by the input partition that it comes from.

    messages: to produce, in this order. changelog: new values by key; None deletes the key.
    positions: how far each partition of the batch has now been applied.
    """

    messages: dict[Target, defaultdict[int, list[Message]]] = field(
        default_factory=lambda: {target: defaultdict(list) for target in Target}
    )
    changelog: defaultdict[int, dict[bytes, bytes | None]] = field(
        default_factory=lambda: defaultdict(dict)
    )
    positions: dict[int, Position] = field(default_factory=dict)


class TransactionLostError(Exception):
    """Fenced, or committed with an unknown outcome: exit at once, and let the restore decide."""


class Restored(NamedTuple):
    """A completed restore: changelog records read, and input records lost to retention."""

    n_records: int
    n_lost: int


@runtime_checkable
class Table(Protocol):
    """A processor's state as a restore fills it: values by partition and key."""

    def own(self, partitions: Collection[int]) -> None:
        """Drop the partitions that are not listed, keep the others, and begin new ones empty."""

    def forget(self, partition: int) -> None:
        """Empty an owned partition: what was applied there is not what the changelog holds."""

    def restore(self, partition: int, key: bytes, value: bytes | None) -> None:
        """Take one record of the changelog. Raises StreamError on an unknown format."""

    def finish_restore(self, partition: int) -> None:
        """The changelog of this partition has been read to its end."""


@runtime_checkable
class Processor(Protocol):
    """What a transport drives."""

    async def run(self) -> None:
        """Fetch, commit and acknowledge, until ``fetch`` returns None."""

    async def restore(self) -> None:
        """The assignment has changed and deliveries have stopped: restore between two batches."""

    async def observe(self) -> None:
        """Called every few seconds."""


@runtime_checkable
class Transport(Protocol):
    """Owns partitions of the input topic for one processor. Not thread-safe: one event loop."""

    def run(self, processor: Processor) -> int:
        """Serve until a signal; blocks, and returns the exit code."""

    @property
    def ready(self) -> bool:
        """Whether partitions are assigned, restored and delivered."""

    @property
    def partitions(self) -> Collection[int]:
        """The owned partitions, in order."""

    def position(self, partition: int) -> Position:
        """Return how far an owned partition has been applied; not to be changed."""

    async def restore(self, table: Table) -> Restored:
        """Make the assigned partitions ours: fence their last owners, fill the table.

        The caller is between two batches. Afterwards every owned partition has a position that
        its records go on from. Raises StreamError where an operator has to decide.
        """

    async def fetch(self) -> dict[int, list[Record]] | None:
        """Wait for records; return a batch by partition, in order of offset, or None at the end.

        A partition may have been lost since, and records below a position may come again.
        """

    async def commit(self, transaction: Transaction) -> None:
        """Make all of a batch visible, and advance the positions of its partitions.

        On any error the process must end without writing more: parts may have been committed.
        Raises TransactionLostError where another owner has taken over or the outcome is unknown.
        """

    def acknowledge(self) -> None:
        """The fetched batch is done: its records need not be delivered again."""

    def read(self, start: Mapping[int, int], end: Mapping[int, int]) -> AsyncIterator[Record]:
        """Read a range of offsets of the input topic again: committed records only."""

    async def lag(self) -> dict[int, int]:
        """Return, by owned partition, how many records are appended and not yet applied."""
