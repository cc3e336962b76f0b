"""Make partitions ours: read the changelog, settle what the last owner left, claim them.

The order makes it exact. The group has given us the partitions, so nobody else can begin a
transaction with their offsets; what a former owner had begun is settled first, committed or
aborted; then the changelog is read to its end, and whatever is written there later is ours.

Anybody with access may have written to the changelog. What cannot be read costs its own partition
and no other, and a tombstone or a good value of the same key behind it makes it harmless.
"""

import asyncio
import ctypes
import random
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import suppress
from typing import Any, NamedTuple

import structlog

from stream.errors import NewerFormatError, StreamError
from stream.position import POSITION_KEY, Position, decode_position
from stream.settings import KafkaSettings, Wiring
from stream.transport.protocol import PartitionTable, Restored, Transaction, TransactionLostError
from stream.transport.reader import Unreadable, bounds, ends_of, read_committed
from stream.transport.topics import group_offsets
from stream.transport.transactions import (
    MARKERS_S,
    TRANSACTION_TIMEOUT_S,
    Delivery,
    transactional_ids,
)

log = structlog.get_logger(__name__)

_TP = tuple[str, int]
_HANGS_S = 3.0
"""After the fence: a transaction without an end that no broker knows of."""
_KEY_CHARACTERS = 64


class PartitionError(Exception):
    """What holds up ``partitions``, and no others, is not ours to end: an operator has to."""

    def __init__(self, partitions: Collection[int], detail: str) -> None:
        super().__init__(detail)
        self.partitions = frozenset(partitions)


class _Bad(NamedTuple):
    offset: int
    why: str
    is_newer: bool


class Changelog:
    """Some partitions of the changelog, read into their tables. Blocks, so use it in a thread.

    positions: the last ones, where they can be read. passed_over: batches that could not be read.
    end: how far each partition has been read.
    """

    def __init__(
        self, settings: KafkaSettings, wiring: Wiring, tables: Mapping[int, PartitionTable]
    ) -> None:
        self.positions: dict[int, Position] = {}
        self.passed_over: list[Unreadable] = []
        self.end = dict.fromkeys(tables, 0)
        self.n_records = 0
        self._settings, self._topic, self._tables = settings, wiring.changelog, tables
        self._reset = wiring.reset
        self._bad: dict[tuple[int, bytes], _Bad] = {}

    def read_on(self, *, stable_only: bool, stop: threading.Event | None = None) -> None:
        """Read to the last stable offsets or to the ends, which waits for open transactions."""
        found = bounds(self._settings, self._topic, self._tables)
        start = self.end
        self.end = {p: stable if stable_only else end for p, (_, stable, end) in found.items()}
        tables, bad = self._tables, self._bad
        positions: dict[int, Any] = {}
        for messages in read_committed(
            self._settings, self._topic, start, self.end, stop, passed_over=self.passed_over
        ):
            for message in messages:
                partition, key = message.partition(), message.key()
                if key == POSITION_KEY:
                    positions[partition] = message
                    continue
                try:
                    tables[partition].restore(key, message.value())
                except StreamError as error:
                    self._note(message, error)
                else:
                    if bad:
                        bad.pop((partition, key), None)
            self.n_records += len(messages)
        for partition, message in positions.items():
            self.positions.pop(partition, None)
            bad.pop((partition, POSITION_KEY), None)
            try:
                if message.value() is None:
                    raise StreamError("the position record was deleted")
                self.positions[partition] = decode_position(message.value())
            except StreamError as error:
                self._note(message, error)

    def bad_keys(self, partition: int) -> set[bytes]:
        """The keys whose last value cannot be read, the position's among them."""
        return {key for of, key in self._bad if of == partition}

    def unread(self, partition: int) -> list[Unreadable]:
        """The batches that could not be read, and that no operator has given up yet."""
        position = self.positions.get(partition)
        until = position.given_up_until if position else 0
        return [
            found
            for found in self.passed_over
            if found.partition == partition and found.offsets.start >= until
        ]

    def faults(self) -> dict[int, str]:
        """Say by partition what keeps it from being used, and what to do about it.

        Raises NewerFormatError where a newer version has written: this one should not be here.
        """
        found: dict[int, list[str]] = defaultdict(list)
        for partition in self._tables:
            for _, offsets, why in self.unread(partition):
                places = f"(offsets {offsets.start} to {offsets.stop - 1})"
                found[partition].append(f"offset {offsets.start} {why} {places}")
        for (partition, key), (offset, why, is_newer) in self._bad.items():
            what = f"offset {offset}, key '{_shown(key)}': {why}"
            if is_newer:
                raise NewerFormatError(f"{self._topic}-{partition}, {what}")
            found[partition].append(what)
        return {
            partition: f"{self._topic}-{partition} holds what is not ours: {first}"
            f"{f', and {len(others)} more' if others else ''}; nobody but the workers and `stream "
            f"reset` should write to it; stop the workers and run `{self._reset} "
            f"--partition {partition} --to earliest|latest|OFFSET`, which gives it up"
            for partition, (first, *others) in found.items()
        }

    def _note(self, message: Any, error: StreamError) -> None:
        is_newer = isinstance(error, NewerFormatError)
        bad = _Bad(message.offset(), str(error), is_newer)
        self._bad[message.partition(), message.key()] = bad


def _shown(key: bytes) -> str:
    """A key as text of at most 64 characters, with escapes for all that is not printable ASCII."""
    return repr(key[:_KEY_CHARACTERS])[2:-1][:_KEY_CHARACTERS]


class Restore:
    """The restore of some partitions; ``stop`` from another thread ends it early."""

    def __init__(
        self,
        settings: KafkaSettings,
        wiring: Wiring,
        delivery: Delivery,
        partitions: Collection[int],
    ) -> None:
        self.stop = threading.Event()
        self._settings, self._wiring, self._delivery = settings, wiring, delivery
        self.partitions = sorted(partitions)
        self._positions: dict[int, Position] = {}

    async def run(
        self,
        new_table: Callable[[], PartitionTable],
        topic_id: str,
        owner: str,
        address: str,
    ) -> tuple[dict[int, tuple[PartitionTable, Position]], Restored]:
        """Return tables and positions by partition, once they are claimed for ``owner``.

        Raises StreamError where an operator has to decide or a newer version has written to the
        changelog; PartitionError where an operator has to end what holds some of them up;
        KafkaException, KafkaError and TransactionLostError where it is worth to try again.
        """
        started = time.perf_counter()
        tables = {p: new_table() for p in self.partitions}
        changelog = Changelog(self._settings, self._wiring, tables)
        self._positions = changelog.positions
        await asyncio.to_thread(changelog.read_on, stable_only=True, stop=self.stop)
        committed = await self._settle(owner)
        await asyncio.to_thread(changelog.read_on, stable_only=False, stop=self.stop)
        if faults := changelog.faults():
            raise PartitionError(faults, "; ".join(faults.values()))
        for table in tables.values():
            await asyncio.to_thread(table.finish_restore)
        self._warn_of_moved_offsets(committed)
        n_lost = await self._check_positions(topic_id, committed, changelog.end)
        for position in self._positions.values():
            position.owner, position.address = owner, address
        # Cut off, it would be left open; on_revoked waits for it.
        await asyncio.shield(self._delivery.commit(Transaction(positions=self._positions)))
        await asyncio.to_thread(_give_memory_back)
        restored = {p: (tables[p], self._positions[p]) for p in self.partitions}
        return restored, Restored(changelog.n_records, n_lost, time.perf_counter() - started)

    async def _settle(self, owner: str) -> dict[int, int]:
        """Wait until no former owner's transaction is open; returns the group's offsets.

        An owner's transaction shows in what it writes to, or as a pending offset if it has not
        written yet.
        """
        began = time.monotonic()
        ids = {p: former_ids(self._wiring, p, self._positions.get(p)) for p in self.partitions}
        names = {name for of_p in ids.values() for name in of_p}
        await self._delivery.note(names)
        # The workers of 0.2.0 send no offsets in their transactions, so the group does not fence
        # them: only their ids do.
        await self._delivery.fence([ids[p][0] for p in self.partitions if len(ids[p]) == 1])
        targets = {p: self._delivery.targets(p) for p in self.partitions}
        ends: dict[_TP, int] = {}  # as of the first look
        fenced = ended = False
        # Two restores that end what hangs of one id are to come one after the other.
        hangs_s = _HANGS_S * random.uniform(1.0, 1.33)  # noqa: S311
        while True:
            found = await self._ends({tp for of_p in targets.values() for tp in of_p})
            ends = ends or {tp: end for tp, (_, end) in found.items()}
            open_in = [tp for tp, (stable, _) in found.items() if stable < ends[tp]]
            committed = await asyncio.to_thread(
                group_offsets, self._settings, self._wiring, self.partitions, MARKERS_S
            )
            # Others write to the outputs, too: what is open there may be none of ours.
            mine = [tp for tp in open_in if tp[0] == self._wiring.changelog or not ended]
            if not mine and committed is not None:
                return committed
            waited = time.monotonic() - began
            # A new client may take a second to say that offsets are settled.
            patience = MARKERS_S if open_in else 3 * MARKERS_S
            if waited > patience and not fenced:
                # An owner that has given partitions up has ended its transactions: this one is dead
                # or asleep in one. Of an id that has none open, a start would make everybody forget
                # how its last one ended.
                others = await self._delivery.note(names) - set(transactional_ids(owner))
                if others:
                    log.info("former_owners_fenced", transactional_ids=sorted(others))
                    await self._delivery.fence(others)
                fenced = True
            elif waited > patience + hangs_s and not ended:
                stable = {tp: found[tp][0] for tp in open_in}
                # If only its offsets hang, nobody knows of which partition.
                shown = {p for p, of_p in targets.items() if not stable.keys().isdisjoint(of_p)}
                hanging = {p: ids[p] for p in shown or self.partitions}
                left = await self._end_hanging(hanging, stable, committed)
                self._tell_of_open({tp: n for tp, n in left.items() if n < ends[tp]})
                ended = True
            elif waited > 3 * TRANSACTION_TIMEOUT_S:
                places = [*(f"{topic}-{p}" for topic, p in open_in)]
                places.append(f"the offsets of group {self._wiring.group_id}")
                raise TransactionLostError(
                    f"a former owner's transaction is still open in {' or '.join(places)}"
                )
            await asyncio.sleep(0.05)

    async def _end_hanging(
        self,
        ids: Mapping[int, Iterable[str]],
        stable: Mapping[_TP, int],
        committed: Mapping[int, int] | None,
    ) -> Mapping[_TP, int]:
        """End what hangs of these ids, by partition; returns the last stable offsets then.

        ``stable``: those of before, of what is open. Told as ended is only what has moved one, or
        the group's offsets where nothing but them was pending: the brokers take the end of a
        transaction from any id, also from one that they have forgotten and now know as a new one.
        """
        pending = committed is None and not stable
        for name in sorted({name for of_p in ids.values() for name in of_p}):
            of_name = sorted(p for p in ids if name in ids[p])
            commit = self._has_committed(name, of_name, committed)
            await self._delivery.end_hanging(name, of_name, commit=commit)
            now = {tp: found for tp, (found, _) in (await self._ends(stable)).items()}
            ended_in = [tp for tp in now if now[tp] > stable[tp]]
            stable = now
            offsets = pending and None is not await asyncio.to_thread(
                group_offsets, self._settings, self._wiring, self.partitions, 3 * MARKERS_S
            )
            if ended_in or offsets:
                pending = False
                event = f"hanging_transaction_{'committed' if commit else 'aborted'}"
                log.warning(event, transactional_id=name, partitions=of_name, ended_in=ended_in)
        return stable

    def _tell_of_open(self, stable: Mapping[_TP, int]) -> None:
        """Say what no id of a former owner ends, and how it is ended.

        Raises PartitionError where that is in the changelog.
        """
        for (topic, partition), offset in stable.items():
            log.error(
                "transaction_left_open",
                topic=topic,
                partition=partition,
                offset=offset,
                detail=f"a transaction in {topic}-{partition} is open from offset {offset} on, and "
                "no transactional id of its former owners ends it: the brokers have forgotten "
                "the id, or another producer has it; see `kafka-transactions.sh find-hanging "
                f"--topic {topic} --partition {partition}`, and end what hangs with "
                f"`kafka-transactions.sh abort --topic {topic} --partition {partition} "
                f"--start-offset {offset}`",
            )
        if hanging := sorted(p for topic, p in stable if topic == self._wiring.changelog):
            raise PartitionError(
                hanging,
                f"a transaction hangs in partitions {hanging} of {self._wiring.changelog}, and "
                "waits for `kafka-transactions.sh abort` (see transaction_left_open)",
            )

    async def _ends(self, targets: Iterable[_TP]) -> dict[_TP, tuple[int, int]]:
        return await asyncio.to_thread(ends_of, self._settings, targets)

    def _has_committed(
        self, name: str, partitions: Iterable[int], committed: Mapping[int, int] | None
    ) -> bool:
        """Whether a transaction that hangs was committed, so that a part of it may have been seen.

        Where nobody knows, somebody has started the id since, which a restore does to none that
        has ended: it was aborted, unless its offsets can be seen, beyond the position.
        """
        if name in self._delivery.committed:
            return self._delivery.committed[name]
        offsets = committed or {}
        return any(offsets.get(p, 0) > self._positions[p].next_offset for p in partitions)

    def _warn_of_moved_offsets(self, committed: Mapping[int, int]) -> None:
        """Say that offsets which somebody has moved move nothing: the positions decide.

        A position without an owner is one of `reset`, which leaves the group's offsets alone.
        """
        for partition, offset in committed.items():
            position = self._positions.get(partition)
            if position is not None and position.owner and position.next_offset != offset:
                log.warning(
                    "group_offset_ignored",
                    group=self._wiring.group_id,
                    topic=self._wiring.input,
                    partition=partition,
                    group_offset=offset,
                    position=position.next_offset,
                    detail=f"the position decides; `{self._wiring.reset}` moves it",
                )

    async def _check_positions(
        self, topic_id: str, committed: Mapping[int, int], changelog_end: Mapping[int, int]
    ) -> int:
        """Give each partition a position that its records can be read on from; returns lost ones.

        Raises StreamError where an operator has to choose it, PartitionError where positions alone
        were deleted.
        """
        topic = self._wiring.input
        n_lost = 0
        deleted: dict[int, str] = {}
        found = await asyncio.to_thread(bounds, self._settings, topic, self.partitions)
        for partition, (begin, _, end) in found.items():
            position = self._positions.get(partition)
            where = f"{topic}-{partition}"
            if position is None:
                if committed.get(partition, 0) > begin:
                    is_empty = not changelog_end[partition]
                    lost_one = "changelog" if is_empty else "position"
                    what = (
                        f"{self._wiring.changelog} has no position for {where}, but the group "
                        f"{self._wiring.group_id} has committed offset {committed[partition]}: "
                        f"the {lost_one} was lost; {self._wiring.choose}"
                    )
                    if is_empty:
                        raise StreamError(what)
                    deleted[partition] = what
                self._positions[partition] = Position(begin, topic_id)
            elif position.topic_id != topic_id:
                raise StreamError(
                    f"{topic} has topic id {topic_id}, but the stored position of {where} belongs "
                    f"to topic id {position.topic_id}: the topic was deleted and recreated; "
                    f"{self._wiring.choose}"
                )
            elif position.next_offset > end:
                raise StreamError(
                    f"the stored position of {where} is {position.next_offset}, past the topic's "
                    f"end at {end}; {self._wiring.choose}"
                )
            elif position.next_offset < begin:
                n_lost += begin - position.next_offset
                lost = {"first": position.next_offset, "last": begin - 1}
                log.error("clicks_lost_to_retention", topic=topic, partition=partition, **lost)
                position.next_offset = begin
        if deleted:
            raise PartitionError(deleted, "; ".join(deleted.values()))
        return n_lost


def _give_memory_back() -> None:
    """Let the system have what the reading took: 90 bytes a session of a million."""
    with suppress(AttributeError, OSError):  # not the GNU C library
        ctypes.CDLL(None).malloc_trim(0)


def former_ids(wiring: Wiring, partition: int, position: Position | None) -> tuple[str, ...]:
    """The transactional ids of a partition's former owner; 0.2.0 had one for each partition."""
    if position is None:
        return ()
    if not position.owner:
        return (f"{wiring.group_id}-{partition}",)
    return transactional_ids(position.owner)
