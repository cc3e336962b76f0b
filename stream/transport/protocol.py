"""What a processor and its transport ask of each other, and nothing about what records mean.

Records of the owned partitions come in, and every batch goes out as one ``Transaction``, which
readers see whole or not at all. ``stream/worker.py`` is a processor; ``faust_app.py`` is the
transport on Kafka.
"""

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol, runtime_checkable

from stream.contract.records import Message, Record
from stream.position import Position


@dataclass(slots=True)
class Transaction:
    """All that one batch writes, by the input partition that it comes from.

    messages: to produce, by output. changelog: new values by key; None deletes the key.
    positions: how far each partition of the batch is applied with it.
    """

    messages: defaultdict[str, defaultdict[int, list[Message]]] = field(
        default_factory=lambda: defaultdict(lambda: defaultdict(list))
    )
    changelog: defaultdict[int, dict[bytes, bytes | None]] = field(
        default_factory=lambda: defaultdict(dict)
    )
    positions: dict[int, Position] = field(default_factory=dict)


class Membership(NamedTuple):
    """Who we are in the consumer group; generation -1: not a member."""

    generation: int
    member_id: str


class TransactionLostError(Exception):
    """Fenced, expelled, or of an unknown outcome: only a restore says what was committed."""


class Restored(NamedTuple):
    """A completed restore: changelog records read, input records lost to retention, and time."""

    n_records: int
    n_lost: int
    seconds: float


@runtime_checkable
class PartitionTable(Protocol):
    """The state of one partition while it is restored, in a thread: nobody else has it yet."""

    def restore(self, key: bytes, value: bytes | None) -> None:
        """Take one record of the changelog.

        Raises StreamError where the value cannot be read, NewerFormatError where a newer version
        can; that counts unless the key's next record is good.
        """

    def finish_restore(self) -> None:
        """The changelog has been read to its end."""


@runtime_checkable
class Processor(Protocol):
    """What a transport drives, all in its event loop."""

    async def run(self) -> None:
        """Fetch, commit and acknowledge, until ``fetch`` returns None."""

    def new_partition(self) -> PartitionTable:
        """Return an empty table, for a restore to fill."""

    def own(self, restored: Mapping[int, tuple[Any, Position]], how: Restored) -> None:
        """Take partitions over, with the tables that ``new_partition`` made and the restore filled.

        Their records come next, from the positions on.
        """

    def drop(self, partitions: Collection[int]) -> None:
        """Forget partitions: another worker has them, or they are restored anew."""

    async def observe(self) -> None:
        """Called every few seconds."""

    def fail(self, error: Exception) -> None:
        """End the process: the transport cannot go on."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Fetched records by partition, in order of offset. ``epoch``: see ``Transport.is_current``."""

    records: dict[int, list[Record]]
    epoch: int


@runtime_checkable
class Transport(Protocol):
    """Owns partitions of the input topic for one processor. Not thread-safe: one event loop."""

    def run(self, processor: Processor) -> int:
        """Serve until a signal; blocks, and returns the exit code."""

    @property
    def ready(self) -> bool:
        """Whether the worker is a member of its group, and what it owns is restored."""

    async def fetch(self) -> Batch | None:
        """Wait for records; return a batch, or None at the end. Ends while others are in flight.

        Records below a position may come again.
        """

    def is_current(self, batch: Batch) -> bool:
        """Whether nothing was lost since the batch was fetched; else drop what came of it."""

    async def commit(self, batch: Batch, transaction: Transaction) -> None:
        """Make all of a batch visible, in the order of the batches.

        Raises TransactionLostError where that has failed; every partition is then dropped and
        restored, and later batches that build on this one are no longer current.
        """

    def acknowledge(self, batch: Batch) -> None:
        """Nothing more comes of a fetched batch: it was committed or dropped."""

    def pause(self, partition: int) -> None:
        """Deliver nothing more of a partition, until ``resume`` or until it is owned anew."""

    async def resume(self, partition: int, offset: int) -> None:
        """Deliver a partition again, from this offset on."""

    async def pass_over(self, partition: int, batch: range, why: str) -> None:
        """Deliver these offsets as records that cannot be read, and go on behind them."""

    async def promised(self, holes: Mapping[int, Sequence[tuple[int, int]]]) -> dict[int, range]:
        """Return, by partition, the first offsets in these ranges that hold a committed record.

        As the log's own bookkeeping has it, which the client that delivers is not asked for.
        """

    async def read(self, start: Mapping[int, int], end: Mapping[int, int]) -> list[Record]:
        """Read a range of offsets of the input topic again: committed records only."""

    def lag(self) -> dict[int, int]:
        """Return, by owned partition, how many records are appended and not yet committed."""
