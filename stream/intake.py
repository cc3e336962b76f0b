"""Which records of a batch are taken: each once, in order, and the bad ones to the dead letters."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from stream.contract.decoders import BadClick, Reason
from stream.contract.messages import Target, dead_letter
from stream.contract.records import Record
from stream.counts import BatchCounts
from stream.position import BadClickLimit, Position
from stream.transport.protocol import Transaction

T = TypeVar("T")
Lookup = Callable[[int, bytes], bytes | None]
"""(partition, key) -> the state's bytes, or None."""

_UNPROCESSABLE = BadClick(
    Reason.UNPROCESSABLE,
    "the worker failed to process this record, and an operator chose to skip it",
)


@dataclass(slots=True)
class Taken:
    """What is known of a batch so far.

    holes: ranges of offsets, by partition, that no record was delivered for. touched: the keys of
    the batch, whose states are about to change.
    """

    lookup: Lookup
    transaction: Transaction = field(default_factory=Transaction)
    counts: BatchCounts = field(default_factory=BatchCounts)
    holes: dict[int, list[tuple[int, int]]] = field(default_factory=dict)
    touched: dict[int, set[bytes]] = field(default_factory=dict)


class Intake(Generic[T]):
    """Takes the records of one topic.

    passed_over: records, by partition and offset, that an operator sends to the dead letters.
    """

    def __init__(
        self, topic: str, parse: Callable[[Record], T | BadClick], limit: BadClickLimit
    ) -> None:
        self.topic = topic
        self.passed_over: set[tuple[int, int]] = set()
        self._parse, self._limit = parse, limit

    def take(
        self,
        taken: Taken,
        records: Mapping[int, Sequence[Record]],
        positions: Mapping[int, Position],
    ) -> Iterator[tuple[Record, T, Position]]:
        """Yield the good records as they were parsed, with their partition's position behind them.

        records: by partition, in order of offset. positions: of each of these partitions; they are
        copied, not changed. Raises BadClickLimitError; nothing has been done then.
        """
        limit, parse, passed_over = self._limit, self._parse, self.passed_over
        for partition, of_partition in records.items():
            position = taken.transaction.positions[partition] = positions[partition].copy()
            taken.touched[partition] = set()
            for record in of_partition:
                if record.offset < position.next_offset:
                    taken.counts.skipped += 1
                    continue
                if record.offset > position.next_offset:
                    hole = (position.next_offset, record.offset)
                    taken.holes.setdefault(partition, []).append(hole)
                position.next_offset = record.offset + 1
                if passed_over and (partition, record.offset) in passed_over:
                    parsed: T | BadClick = self._pass_over(record)
                else:
                    parsed = parse(record)
                if isinstance(parsed, BadClick):
                    limit.count_bad(position, self.topic, partition, record.offset)
                    taken.counts.rejected.append((record, parsed.reason))
                    taken.transaction.messages[Target.DEAD_LETTERS][partition].append(
                        dead_letter(self.topic, record, parsed)
                    )
                else:
                    limit.count_good(position)
                    yield record, parsed, position

    def _pass_over(self, record: Record) -> BadClick:
        """What is wrong with a record that an operator passes over: its own reason, or our bug."""
        with suppress(Exception):  # which it may meet right here
            if isinstance(parsed := self._parse(record), BadClick):
                return parsed
        return _UNPROCESSABLE
