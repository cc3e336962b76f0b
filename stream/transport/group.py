"""Our membership in the consumer group: one thread that polls librdkafka, and nothing else does.

Partitions that stay are neither revoked nor stopped by a rebalance (cooperative-sticky). New ones
are assigned at once, but paused until the restore says where they go on.
"""

import asyncio
import queue
import struct
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from concurrent.futures import Future, InvalidStateError, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any, Protocol, TypeVar

import structlog
from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition

from stream.contract.records import Record
from stream.errors import StreamError
from stream.transport.fetched import Fetched, record_of
from stream.transport.protocol import Membership
from stream.transport.unreadable import (
    BATCH_ERRORS,
    STATISTICS_MS,
    UNPARSABLE,
    Watch,
    decode_statistics,
    records_of,
)

log = structlog.get_logger(__name__)

T = TypeVar("T")

POLL_S = 0.1
LOOK_EVERY_S = 1.0
"""How often the ends of the partitions are noted, for the lag."""
APART_AT_ONCE = 1_000
"""Records that librdkafka does not read are made as they are taken: there may be millions."""
REFUSED = {
    KafkaError.TOPIC_AUTHORIZATION_FAILED,
    KafkaError.GROUP_AUTHORIZATION_FAILED,
    KafkaError.UNKNOWN_TOPIC_OR_PART,
    KafkaError.INCONSISTENT_GROUP_PROTOCOL,
    KafkaError.INVALID_SESSION_TIMEOUT,
}


class Listener(Protocol):
    """Who is told of the group's news, in the event loop."""

    def on_assigned(self, partitions: Collection[int]) -> None:
        """These are ours now, and paused."""

    async def on_revoked(self, partitions: Collection[int], *, lost: bool) -> None:
        """Somebody else gets these as soon as this returns; has got them if they are lost."""

    def on_offset_lost(self, partition: int) -> None:
        """The next offset is not in the log: lost to retention, or never there."""

    def fail(self, error: Exception) -> None: ...


@dataclass
class _Suspect:
    """A batch that librdkafka does not get past, or so it seems."""

    offset: int
    why: str = ""
    """librdkafka's error; "" where it only stands still, which a second round must confirm."""
    batch: range | None = None
    all_taken: bool = False
    """Whether everything before it has been handed over."""


class Group(threading.Thread):
    """Polls until it is closed. Its methods are for the event loop.

    batch_at: see there. It blocks, and is called in a thread of its own.
    """

    def __init__(
        self,
        options: Mapping[str, Any],
        topic: str,
        listener: Listener,
        batch_at: Callable[[int, int], range | None],
    ) -> None:
        super().__init__(name="group", daemon=True)
        self.membership = Membership(-1, "")
        self.connected = True
        """Whether the group's coordinator is, as of the last second."""
        told = {"statistics.interval.ms": STATISTICS_MS, "stats_cb": self._on_statistics}
        self._consumer = Consumer(dict(options) | told)
        self._topic = topic
        self._listener = listener
        self._loop = asyncio.get_running_loop()
        self._commands: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._held: list[Record] = []
        self._asked: tuple[Future[list[Record]], int, float] | None = None
        self._highs: dict[int, int] = {}  # the log's end, as of the last fetch
        self._read: dict[int, int] = {}  # next offset of what was fetched
        self._ends: dict[int, int] = {}  # offset of the end, where a fetch has met it
        self._reading: set[int] = set()  # started, and not paused
        self._watch = Watch(topic)
        self._stuck: dict[int, int] = {}  # what the watch has found since the last turn
        self._batch_at, self._looks = batch_at, ThreadPoolExecutor(1, "look")
        self._suspects: dict[int, _Suspect] = {}
        # What is to be handed over without librdkafka, and where it goes on.
        self._apart: dict[int, tuple[Iterator[Record], int]] = {}
        self._closing = False

    def ask(self, limit: int, not_before: float) -> "Future[list[Record]]":
        """Ask for a batch: of what is there at ``not_before`` (monotonic), or the next record."""
        asked: Future[list[Record]] = Future()

        def take() -> None:
            self._asked = (asked, limit, not_before)

        self._commands.put(take)
        return asked

    def start_at(self, offsets: Mapping[int, int]) -> "Future[None]":
        """Deliver partitions from these offsets on."""
        return self._call(lambda: self._start_at(offsets))

    def pause(self, partitions: Collection[int]) -> "Future[None]":
        """Deliver nothing of these."""

        def pause() -> None:
            self._consumer.pause(self._tps(partitions))
            self._stop_reading(partitions)

        return self._call(pause)

    def pass_over(self, partition: int, batch: range, why: str) -> "Future[None]":
        """Deliver these offsets as records that cannot be read; go on behind them."""
        self.tell_of(partition, batch, why)
        return self.deliver(partition, records_of(partition, batch, why), batch.stop)

    def deliver(self, partition: int, records: Iterator[Record], stop: int) -> "Future[None]":
        """Deliver records that librdkafka is not to read; it goes on at ``stop``."""

        def deliver() -> None:
            self._stop_reading([partition])
            self._apart[partition] = records, stop
            self._seek(partition, stop)  # first: fetched once more, they might be deadly
            self._reading.add(partition)
            self._consumer.resume(self._tps([partition]))

        return self._call(deliver)

    def lag(self, partition: int, next_offset: int) -> int:
        """Records behind an offset, by what the last fetches have told. Markers are no lag."""
        end = self._highs.get(partition, 0)
        all_read = next_offset >= self._read.get(partition, 0)
        if all_read and self._ends.get(partition, -1) >= end:
            return 0
        return max(0, end - next_offset)

    def close(self) -> None:
        """Leave the group; blocks."""
        self._closing = True
        self._commands.put(lambda: None)
        if self.ident is not None:
            self.join()

    def _call(self, command: Callable[[], T]) -> "Future[T]":
        done: Future[T] = Future()

        def run() -> None:
            if not done.set_running_or_notify_cancel():
                return
            try:
                done.set_result(command())
            except Exception as error:
                done.set_exception(error)

        self._commands.put(run)
        return done

    # -- the polling thread ------------------------------------------------------------------

    def run(self) -> None:
        consumer = self._consumer
        try:
            consumer.subscribe(
                [self._topic],
                on_assign=self._on_assign,
                on_revoke=self._on_revoke,
                on_lost=partial(self._on_revoke, lost=True),
            )
            looked_at = 0.0
            while not self._closing:
                self._turn()
                # Asked for in another thread, both wait for seconds behind a poll or a rebalance.
                self._read_membership()
                if time.monotonic() - looked_at > LOOK_EVERY_S:
                    looked_at = time.monotonic()
                    self._highs = {p: self._high(p) for p in self._read}
        except Exception as error:
            self._tell(self._listener.fail, error)
        finally:
            self._closing = True
            self._looks.shutdown(wait=False, cancel_futures=True)
            consumer.close()

    def _turn(self) -> None:
        """Fetch, or wait for somebody who asks; poll every so often for the group's sake."""
        for partition in [*self._apart]:
            if len(self._held) < APART_AT_ONCE:
                self._hold_apart(partition)
        if self._held and self._asked is None:
            try:
                self._commands.get(timeout=POLL_S)()
            except queue.Empty:
                self._poll(0)
        else:
            if not self._held:
                self._poll(POLL_S)
            while not self._commands.empty():
                self._commands.get()()
        if self._held and self._asked is not None:
            asked, limit, not_before = self._asked
            if (pause_s := not_before - time.monotonic()) > 0:
                time.sleep(pause_s)
            n_wanted = max(0, limit - len(self._held))
            more = self._consumer.consume(n_wanted, 0)
            if len(more) < n_wanted:
                self._note_all_taken()
            found = [*self._held, *self._records(more)]
            batch, self._held = found[:limit], found[limit:]
            if batch:
                self._asked = None
                with suppress(InvalidStateError):  # cancelled: the worker stops
                    asked.set_result(batch)
        while self._stuck:
            self._suspect(*self._stuck.popitem())

    def _high(self, partition: int) -> int:
        tp = TopicPartition(self._topic, partition)
        _, high = self._consumer.get_watermark_offsets(tp, cached=True) or (0, 0)
        return high

    def _poll(self, timeout_s: float) -> None:
        message = self._consumer.poll(timeout_s)
        if message is None:
            self._note_all_taken()
        else:
            self._held += self._records([message])

    def _records(self, messages: Iterable[Fetched]) -> Iterator[Record]:
        """What is a record of these messages; the others are news."""
        for message in messages:
            error, partition = message.error(), message.partition()
            is_of_log = error is None or error.code() in BATCH_ERRORS
            if is_of_log and self._is_unreadable(partition):
                continue  # comes again behind the seek
            if error is None:
                self._read[partition] = message.offset() + 1
                yield record_of(message)
            elif error.code() == KafkaError._PARTITION_EOF:
                self._ends[partition] = message.offset()
            elif error.code() == KafkaError._AUTO_OFFSET_RESET:
                self._tell(self._listener.on_offset_lost, partition)
            elif error.code() in BATCH_ERRORS:
                offset = max(message.offset(), self._read.get(partition, 0))
                self._look(partition, _Suspect(offset, error.str(), all_taken=True))
            elif error.code() in REFUSED:
                raise StreamError(f"{self._topic} cannot be read: {error.str()}")

    # -- batches that cannot be read ------------------------------------------------------------

    def _is_unreadable(self, partition: int) -> bool:
        suspect = self._suspects.get(partition)
        return partition in self._apart or (suspect is not None and suspect.why != "")

    def _note_all_taken(self) -> None:
        for suspect in self._suspects.values():
            suspect.all_taken = True

    def _suspect(self, partition: int, offset: int) -> None:
        """A partition has stood still for a round: the first time look, the second pass over."""
        if partition not in self._reading or self._is_unreadable(partition):
            return
        read = self._read[partition]
        suspect = self._suspects.get(partition)
        if suspect is None or suspect.offset != offset or suspect.batch is None:
            self._look(partition, _Suspect(offset))
        elif read == offset or (read < offset and suspect.all_taken):
            self._pass_over(partition, suspect.batch, UNPARSABLE)

    def _look(self, partition: int, suspect: _Suspect) -> None:
        self._suspects[partition] = suspect
        looking = self._looks.submit(self._batch_at, partition, suspect.offset)

        def found() -> None:
            if self._suspects.get(partition) is not suspect:
                return
            suspect.batch = looking.result()
            if suspect.why and suspect.batch is None:
                del self._suspects[partition]  # the error comes again
            elif suspect.why and suspect.batch is not None:
                self._pass_over(partition, suspect.batch, suspect.why)

        looking.add_done_callback(lambda _: self._commands.put(found))

    def _pass_over(self, partition: int, batch: range, why: str) -> None:
        self._suspects.pop(partition, None)
        self._apart[partition] = records_of(partition, batch, why), batch.stop
        self.tell_of(partition, batch, why)

    def tell_of(self, partition: int, batch: range, why: str) -> None:
        """Log that a batch cannot be read."""
        offsets = {"first": batch.start, "last": batch.stop - 1}
        log.error("unreadable_batch", topic=self._topic, partition=partition, **offsets, detail=why)

    def _hold_apart(self, partition: int) -> None:
        """Hold the next of a partition's records; behind the last one go on."""
        records, stop = self._apart[partition]
        before = len(self._held)
        self._held += islice(records, APART_AT_ONCE)
        if len(self._held) < before + APART_AT_ONCE:
            del self._apart[partition]
            self._seek(partition, stop)

    # -- what is ours ----------------------------------------------------------------------------

    def _stop_reading(self, partitions: Collection[int]) -> None:
        for partition in partitions:
            self._reading.discard(partition)
            self._suspects.pop(partition, None)
            self._apart.pop(partition, None)
        self._held = [record for record in self._held if record.partition not in partitions]

    def _start_at(self, offsets: Mapping[int, int]) -> None:
        self._stop_reading(offsets)
        for partition, offset in offsets.items():
            self._seek(partition, offset)
        self._reading |= offsets.keys()
        self._consumer.resume(self._tps(offsets))

    def _seek(self, partition: int, offset: int) -> None:
        tp = TopicPartition(self._topic, partition, offset)
        try:
            self._consumer.seek(tp)
        except KafkaException as error:
            if error.args[0].code() != KafkaError._STATE:
                raise
            # An offset that the log had lost has stopped the fetching: no seek starts it again.
            self._consumer.incremental_unassign([tp])
            self._consumer.incremental_assign([tp])
        self._read[partition] = offset

    def _on_assign(self, consumer: Consumer, assigned: list[TopicPartition]) -> None:
        partitions = [tp.partition for tp in assigned]
        if partitions:
            # Before they are assigned: a fetch that began in between might bring the batch that
            # aborts the process, before anybody has looked for it. librdkafka (2.16.1) pauses what
            # it knows, and knows a partition once it was asked for its position.
            tps = self._tps(partitions)
            consumer.position(tps)
            consumer.pause(tps)
            consumer.incremental_assign([TopicPartition(self._topic, p, 0) for p in partitions])
        self._read_membership()
        self._tell(self._listener.on_assigned, partitions)

    def _on_revoke(
        self, consumer: Consumer, revoked: list[TopicPartition], *, lost: bool = False
    ) -> None:
        """A barrier: the group gives the partitions on when this returns."""
        partitions = [tp.partition for tp in revoked]
        for partition in partitions:
            self._read.pop(partition, None)
        self._stop_reading(partitions)
        if not self._closing:
            given_up = asyncio.run_coroutine_threadsafe(
                self._listener.on_revoked(partitions, lost=lost), self._loop
            )
            while not given_up.done():
                self._read_membership()  # a batch under way may need the new generation
                time.sleep(0.002)
            given_up.result()
        consumer.incremental_unassign(revoked)

    def _on_statistics(self, text: str) -> None:
        statistics = decode_statistics(text)
        self.connected = statistics.cgrp is not None and statistics.cgrp.state == "up"
        # Judged at the end of the turn: what comes with this call is not handed over yet.
        self._stuck |= self._watch.stuck(statistics, self._reading)

    def _read_membership(self) -> None:
        raw = bytes(self._consumer.consumer_group_metadata())
        if not raw.startswith(_METADATA):
            raise StreamError(
                f"unsupported librdkafka version: its group metadata begins with {raw[:8]!r}, "
                f"expected {_METADATA!r}"
            )
        at = len(_METADATA)
        (generation,) = struct.unpack_from("=i", raw, at)
        _, member_id, *_ = raw[at + 4 :].split(b"\0")
        self.membership = Membership(generation, member_id.decode())

    def _tell(self, callback: Callable[[Any], None], value: object) -> None:
        self._loop.call_soon_threadsafe(callback, value)

    def _tps(self, partitions: Collection[int]) -> list[TopicPartition]:
        return [TopicPartition(self._topic, p) for p in partitions]


_METADATA = b"CGMDv2:"
"""What librdkafka's serialised group metadata begins with: generation, group, member follow."""
