"""The ``Transport`` on Kafka: a Faust app whose own transport is librdkafka.

Faust's transports are plug-ins. Ours hands a whole micro-batch over as one message, so that Faust
does its work per message once a batch; app, agent, flow control, pages and shutdown are Faust's
own. Which partitions we have, what they are restored from and how a batch is committed is ours:
group.py, restore.py, transactions.py. To Faust it is one partition that never leaves.
"""

import asyncio
import logging
import socket
import tempfile
import time
import uuid
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, cast

import faust
import structlog
import uvloop
from aiokafka.errors import KafkaError
from confluent_kafka import KafkaException
from faust.sensors.monitor import Monitor
from faust.transport import base, consumer, producer
from faust.transport.drivers import TRANSPORTS
from faust.types import TP, ConsumerMessage
from yarl import URL

from stream.contract.records import Record
from stream.errors import StreamError
from stream.settings import ServiceSettings, Wiring
from stream.transport.clients import QUEUED_KIB, confluent_options
from stream.transport.fetched import record_of
from stream.transport.group import REFUSED, Group
from stream.transport.protocol import (
    Batch,
    Membership,
    Processor,
    Transaction,
    TransactionLostError,
)
from stream.transport.reader import (
    NO_ANSWER,
    batch_at,
    bounds,
    ends_of,
    promised_in,
    read_committed,
    vetted,
)
from stream.transport.restore import PartitionError, Restore
from stream.transport.topics import BrokerUnreachableError, TopicIds
from stream.transport.transactions import Delivery
from stream.transport.unreadable import DEADLY

log = structlog.get_logger(__name__)

OBSERVE_EVERY_S = 2.0
RETRY_S = 1.0
APART_RETRY_S = 5.0
"""For what waits for an operator."""
_UNREACHABLE = (
    KafkaException,
    KafkaError,
    BrokerUnreachableError,
    TransactionLostError,
    TimeoutError,
)

TRANSPORTS.aliases["batches"] = f"{__name__}:BatchTransport"


class LeanMonitor(Monitor):
    """Faust's monitor without its work for each message; ours is in metrics.py."""

    logger = logging.getLogger("faust.monitor")

    def on_message_in(self, tp: TP, offset: int, message: Any) -> None: ...
    def on_message_out(self, tp: TP, offset: int, message: Any) -> None: ...


class BatchConsumer(consumer.Consumer):
    """Faust's consumer, as far as Faust needs one."""

    logger = logging.getLogger("faust.consumer")

    @property
    def owner(self) -> "FaustTransport":
        return cast(WorkerApp, self.app).owner

    async def subscribe(self, topics: Iterable[str]) -> None:
        if self.owner.start(self):
            # Behind this call, whose end Faust waits for when partitions are assigned.
            self.add_future(self._assign())

    async def _assign(self) -> None:
        self.app.on_rebalance_start()
        self.app.consumer_generation_id += 1
        await self.on_partitions_assigned(self.assignment(), self.app.consumer_generation_id)

    async def _drain_messages(self, fetcher: Any) -> None:
        owner, n_batches = self.owner, 0
        while not (self._stopped.is_set() or fetcher._stopped.is_set()):
            batch = await owner.next_batch()
            n_batches += 1
            (tp,) = self.assignment()
            value: Any = batch
            message = ConsumerMessage(
                tp.topic, tp.partition, n_batches, time.time(), 1, [], None, value, None, 0, 0, tp,
                generation_id=self.app.consumer_generation_id,
            )  # fmt: skip
            await self.callback(message)

    def assignment(self) -> set[TP]:
        return {TP(self.owner.wiring.input, 0)}

    async def on_stop(self) -> None:
        await super().on_stop()
        await self.owner.close()

    async def _commit(self, offsets: Any) -> bool:
        return True  # offsets are in the transactions

    async def highwaters(self, *partitions: Any) -> dict[Any, int]:
        return {}  # of the changelog, which Faust has no part of

    earliest_offsets = highwaters

    # What an abstract consumer must have: the restore seeks, and nobody asks for the rest.
    async def perform_seek(self) -> None: ...
    async def seek_to_committed(self) -> Any: ...
    async def seek_wait(self, partitions: Any) -> None: ...
    async def _seek(self, partition: Any, offset: int) -> None: ...
    async def create_topic(self, *arguments: Any, **options: Any) -> None: ...
    async def position(self, partition: Any) -> Any: ...
    async def _getmany(self, *arguments: Any, **options: Any) -> Any: ...
    def highwater(self, partition: Any) -> Any: ...
    def topic_partitions(self, topic: str) -> Any: ...
    def key_partition(self, *arguments: Any, **options: Any) -> Any: ...
    def _to_message(self, partition: Any, record: Any) -> Any: ...
    def _new_topicpartition(self, topic: str, partition: int) -> Any: ...


class NoProducer(producer.Producer):
    """Faust sends nothing: transactions.py does."""

    logger = logging.getLogger("faust.producer")

    async def flush(self) -> None: ...


class BatchTransport(base.Transport):
    Consumer = BatchConsumer
    Producer = NoProducer
    default_port = 9092
    driver_version = "librdkafka"


class WorkerApp(faust.App):
    """A Faust app that knows whose it is."""

    logger = logging.getLogger("faust.app")  # else Faust logs under our name
    owner: "FaustTransport"


def build_app(settings: ServiceSettings, group_id: str) -> WorkerApp:
    """Return the Faust app without agents: every setting that matters, with its reason."""
    return WorkerApp(
        group_id,
        broker=[URL(f"batches://{settings.servers[0]}")],
        store="memory://",  # stays empty: the table is the processor's, and restore.py fills it
        # Faust makes a folder that nothing is ever written to; not in the current one.
        datadir=Path(tempfile.gettempdir()) / "nextclick-faust",
        # The topics are made by `topics create`: the principal of a worker needs no CREATE.
        topic_allow_declare=False,
        topic_disable_leader=True,
        table_standby_replicas=0,
        stream_wait_empty=True,
        recovery_consistency_check=False,
        agent_supervisor="mode.CrashingSupervisor",
        Monitor=LeanMonitor,
        worker_redirect_stdouts=False,
        web_enabled=True,
        web_bind=settings.web_host,
        web_port=settings.web_port,
        web_tables_enabled=False,
        web_router_enabled=False,
        web_metrics_enabled=False,
    )


class FaustTransport:
    """The ``Transport`` of a worker process. What each method promises is written there.

    ``check`` says what is wrong with the topics (StreamError), and returns the input topic's id.
    """

    def __init__(self, settings: ServiceSettings, wiring: Wiring, check: Callable[[], str]) -> None:
        self.app = build_app(settings, wiring.group_id)
        self.app.owner = self
        self.wiring = wiring
        self.processor: Processor
        self._settings, self._check = settings, check
        self._input = self.app.topic(
            wiring.input,
            key_type=bytes,
            value_type=bytes,
            key_serializer="raw",
            value_serializer="raw",
        )
        self.app.Table("sessions", key_type=bytes, value_type=bytes)
        self._owner = f"{wiring.group_id}-{uuid.uuid4().hex[:12]}"
        ends = partial(ends_of, settings)
        self._delivery = Delivery(settings, wiring, self._owner, self._membership, ends)
        self._group: Group | None = None
        self._topic_ids: TopicIds | None = None
        self._joined = False
        self._assigned: set[int] = set()
        self._apart: set[int] = set()
        self._more_assigned = asyncio.Event()
        self._restore: Restore | None = None
        self._restoring: asyncio.Task[None] | None = None
        self._looking: asyncio.Task[None] | None = None
        self._marking: asyncio.Task[None] | None = None
        self._closing = False
        # Whatever is fetched before a partition is started, or lost, carries a smaller epoch.
        self._epoch = self._lost_at = 0
        self._since: dict[int, int] = {}
        self._paused: set[int] = set()
        self._committed: dict[int, int] = {}
        self._in_flight: dict[int, tuple[Any, asyncio.Event]] = {}
        self._wanted = asyncio.Event()
        self._queue: asyncio.Queue[Any]
        self._running: asyncio.Task[None]
        self._asked_at, self._more = 0.0, False

    def run(self, processor: Processor) -> int:
        loop = uvloop.new_event_loop()
        asyncio.set_event_loop(loop)
        self.attach(processor)
        service = faust.Worker(
            self.app, loop=loop, quiet=True, override_logging=False, redirect_stdouts=False
        )
        service.spinner = None  # it sets the root logger to DEBUG: three log records a message
        try:
            service.execute_from_commandline()
        except SystemExit as ended:
            return int(ended.code or 0)

    def attach(self, processor: Processor) -> None:
        """Let the app drive the processor once it is started."""
        self.processor = processor

        async def process(stream: Any) -> None:
            self._queue = aiter(stream.channel).queue
            self._running = asyncio.create_task(processor.run())
            # A worker that stops cancels its agents, but a batch under way is carried through.
            await asyncio.shield(self._running)

        self.app.agent(self._input, name="process")(process)
        self.app.timer(OBSERVE_EVERY_S)(processor.observe)
        self.app.timer(OBSERVE_EVERY_S)(self._look_at_topics)
        self.app.timer(OBSERVE_EVERY_S)(self._look_for_markers)

    @property
    def ready(self) -> bool:
        connected = self._group is not None and self._group.connected
        return connected and self._joined and self._since.keys() == self._assigned

    def lag(self) -> dict[int, int]:
        if self._group is None:
            return {}
        return {p: self._group.lag(p, self._committed[p]) for p in self._since}

    async def promised(self, holes: Mapping[int, Sequence[tuple[int, int]]]) -> dict[int, range]:
        while True:
            try:
                return await promised_in(self._settings, self.wiring.input, holes)
            except NO_ANSWER as error:
                await self._read_again(error)

    async def read(self, start: Mapping[int, int], end: Mapping[int, int]) -> list[Record]:
        def read() -> list[Record]:
            topic = self.wiring.input
            found = read_committed(self._settings, topic, start, end, passed_over=[])
            return [record_of(message) for messages in found for message in messages]

        while True:
            try:
                return await asyncio.to_thread(read)
            except KafkaException as error:
                await self._read_again(error)

    async def _read_again(self, error: Exception) -> None:
        log.warning("read_repeated", topic=self.wiring.input, detail=str(error))
        await asyncio.sleep(RETRY_S)

    # -- batches ---------------------------------------------------------------------------

    async def next_batch(self) -> Batch:
        """As Faust's consumer asks for it: fetched once the processor wants one.

        Where more waits than a batch may have, the next one is fetched while this one is scored:
        to wait for it took a sixth of the time.
        """
        if not self._more:
            await self._wanted.wait()
        assert self._group is not None, "Faust fetches after it has subscribed"
        # One broker gathers for a window, but the fetches of several end at different times:
        # without a pause, transactions would run back to back and saturate two cores.
        not_before = self._asked_at + self._settings.batch_window_s / 2
        asked = self._group.ask(self._settings.batch_clicks, not_before)
        fetched = await asyncio.wrap_future(asked)
        self._asked_at = time.monotonic()
        self._wanted.clear()
        self._more = len(fetched) == self._settings.batch_clicks
        records: dict[int, list[Record]] = {}
        for record in fetched:
            records.setdefault(record.partition, []).append(record)
        return Batch(records, self._epoch)

    async def fetch(self) -> Batch | None:
        while True:
            self._wanted.set()
            try:
                event = await self._queue.get()
            except StopAsyncIteration:  # how Faust ends a channel when the worker stops
                return None
            fetched = event.value
            since = self._since
            records = {
                p: of_p
                for p, of_p in fetched.records.items()
                if since.get(p, fetched.epoch + 1) <= fetched.epoch and p not in self._paused
            }
            batch = Batch(records, fetched.epoch)
            if records:
                self._in_flight[id(batch)] = (event, asyncio.Event())
                return batch
            event.ack()

    def is_current(self, batch: Batch) -> bool:
        return batch.epoch >= self._lost_at

    async def commit(self, batch: Batch, transaction: Transaction) -> None:
        if not self.is_current(batch):
            raise TransactionLostError("an earlier transaction was lost")
        try:
            await self._delivery.commit(transaction)
        except TransactionLostError:
            self._lose()
            raise
        self._committed |= {p: x.next_offset for p, x in transaction.positions.items()}

    def acknowledge(self, batch: Batch) -> None:
        event, done = self._in_flight.pop(id(batch))
        event.ack()
        done.set()

    def pause(self, partition: int) -> None:
        assert self._group is not None, "the partition is ours"
        self._paused.add(partition)
        self._group.pause([partition])

    async def resume(self, partition: int, offset: int) -> None:
        if await self._begin_anew(partition):
            assert self._group is not None, "the partition is ours"
            self._paused.discard(partition)
            await asyncio.wrap_future(self._group.start_at({partition: offset}))

    async def pass_over(self, partition: int, batch: range, why: str) -> None:
        if await self._begin_anew(partition):
            assert self._group is not None, "the partition is ours"
            await asyncio.wrap_future(self._group.pass_over(partition, batch, why))

    async def _begin_anew(self, partition: int) -> bool:
        """Drop what was fetched of a partition; false where it is not ours any more."""
        assert self._group is not None, "the partition is ours"
        # Behind what was fetched before the pause, which the new epoch makes out of date.
        await asyncio.wrap_future(self._group.pause([partition]))
        if partition not in self._since:
            return False
        self._epoch += 1
        self._since[partition] = self._epoch
        return True

    async def _drained(self) -> None:
        """Wait for the batches that are under way now."""
        await asyncio.gather(*(done.wait() for _, done in [*self._in_flight.values()]))

    def _lose(self) -> None:
        """Nobody knows what was committed: drop everything, and restore it."""
        self._epoch += 1
        self._lost_at = self._epoch
        self._since.clear()
        self._cancel_restore()
        self.processor.drop(self._assigned)
        self._restore_missing()

    # -- the group's news --------------------------------------------------------------------

    def start(self, consumer: BatchConsumer) -> bool:
        """Join the group; false if that is done."""
        if self._group is not None:
            return False
        options = confluent_options(self._settings) | {
            "group.id": self.wiring.group_id,
            "client.id": self._owner,
            "partition.assignment.strategy": "cooperative-sticky",
            "session.timeout.ms": round(self._settings.session_timeout_s * 1000),
            "heartbeat.interval.ms": round(self._settings.session_timeout_s * 250),
            # How long a rebalance waits for a member that does not come. A coordinator that was
            # killed may load the members of before without their session timeouts (Kafka 4.4, two
            # in five kills under load): nobody was answered until 300 s had gone by. A revocation
            # needs less, though it waits for the batch under way: a transaction's timeout is 10 s.
            "max.poll.interval.ms": round(1000 * max(30, 3 * self._settings.session_timeout_s)),
            "enable.auto.commit": False,
            "enable.auto.offset.store": False,
            "enable.partition.eof": True,
            "auto.offset.reset": "error",
            "isolation.level": "read_committed",
            # The broker gathers a batch: a fetch for each click costs more than its answer.
            "fetch.wait.max.ms": max(5, round(1000 * self._settings.batch_window_s)),
            "fetch.min.bytes": 100_000,
            "queued.max.messages.kbytes": QUEUED_KIB,
        }
        self._topic_ids = TopicIds(self._settings, self.wiring)
        topic = self.wiring.input
        self._group = Group(options, topic, self, partial(batch_at, self._settings, topic))
        self._group.start()
        return True

    def on_assigned(self, partitions: Collection[int]) -> None:
        self._joined = True
        self._assigned |= set(partitions)
        self._more_assigned.set()
        self._restore_missing()

    async def on_revoked(self, partitions: Collection[int], *, lost: bool) -> None:
        gone = set(partitions)
        self._joined &= not lost
        self._assigned -= gone
        self._forget(gone)
        if self._restore is not None and not gone.isdisjoint(self._restore.partitions):
            self._cancel_restore()
        await self._drained()
        await self._delivery.settled()  # a claim that was under way
        self.processor.drop(gone)
        self._restore_missing()

    def on_offset_lost(self, partition: int) -> None:
        self._looking = asyncio.create_task(self._look_what_is_lost(partition))

    async def _look_what_is_lost(self, partition: int) -> None:
        """Has retention overrun us, the restore counts what is lost, and goes on behind it.

        Nothing is lost if a record said that it stands behind the log's end: the worker meets it.
        """
        while partition in self._since:
            try:
                found = await asyncio.to_thread(
                    bounds, self._settings, self.wiring.input, [partition]
                )
            except KafkaException as error:
                await self._read_again(error)
                continue
            begin, _, _ = found[partition]
            if self._committed[partition] < begin and self._since.pop(partition, None) is not None:
                self._lose()
            return

    def fail(self, error: Exception) -> None:
        self.processor.fail(error)

    async def _look_at_topics(self) -> None:
        if self._topic_ids is not None:
            try:
                await self._topic_ids.look()
            except StreamError as error:
                self.processor.fail(error)

    async def _look_for_markers(self) -> None:
        """So that an answer does not stay hidden until the next click comes."""

        async def look() -> None:
            try:
                await self._delivery.look()
            except TransactionLostError as error:
                log.warning("transaction_lost", detail=str(error))
                self._lose()

        # A look waits for brokers that are away, and a timer must not.
        if self._since and (self._marking is None or self._marking.done()):
            self._marking = asyncio.create_task(look())

    # -- restores: one at a time, so that no two claim the same partition ------------------------

    def _restore_missing(self) -> None:
        """See to it that what is assigned gets restored."""
        running = self._restoring is not None and not self._restoring.done()
        if self._assigned - self._since.keys() and not running and not self._closing:
            self._restoring = asyncio.create_task(self._restore_all())

    def _cancel_restore(self) -> None:
        if self._restore is not None:
            self._restore.stop.set()
            self._restore = None
        if self._restoring is not None:
            self._restoring.cancel()
            self._restoring = None

    async def _restore_all(self) -> None:
        """Restore, claim and start partitions until none is missing, or the brokers let us."""
        while missing := self._assigned - self._since.keys():
            # What waits for an operator comes last, and holds no other partition up.
            partitions = missing - self._apart or missing
            self._more_assigned.clear()
            began = time.monotonic()
            restore = Restore(self._settings, self.wiring, self._delivery, partitions)
            self._restore = restore
            try:
                await self._restore_once(restore)
            except PartitionError as error:
                self._forget(restore.partitions)
                self._apart = (self._apart - partitions) | error.partitions
                apart = sorted(error.partitions)
                log.error("restore_repeated", partitions=apart, detail=str(error))
                if partitions == error.partitions:
                    # A try may take long, and the other partitions' clicks go before.
                    pause = max(APART_RETRY_S, time.monotonic() - began)
                    with suppress(TimeoutError):
                        await asyncio.wait_for(self._more_assigned.wait(), pause)
            except _UNREACHABLE as error:
                self._forget(restore.partitions)
                if isinstance(error, KafkaException) and error.args[0].code() in REFUSED:
                    self.processor.fail(StreamError(f"the brokers rejected a restore: {error}"))
                log.warning("restore_repeated", partitions=restore.partitions, detail=str(error))
                await asyncio.sleep(RETRY_S)
            except asyncio.CancelledError:
                self._forget(restore.partitions)
                raise
            except Exception as error:
                self.processor.fail(error)
                raise
        self._restore = None

    async def _restore_once(self, restore: Restore) -> None:
        assert self._group is not None, "the group has assigned them"
        await asyncio.wrap_future(self._group.pause(restore.partitions))
        # Before the start, which asks for the partitions of topics that may be gone.
        topic_id = await asyncio.to_thread(self._check)
        await self._look_at_topics()
        await self._delivery.start()
        host, port = self._settings.web_host, self._settings.web_port
        address = f"{socket.gethostname() if host == '0.0.0.0' else host}:{port}"  # noqa: S104
        new = self.processor.new_partition
        restored, how = await restore.run(new, topic_id, self._owner, address)
        offsets = {p: position.next_offset for p, (_, position) in restored.items()}
        deadly = await vetted(self._settings, self.wiring.input, offsets, QUEUED_KIB << 10)
        self.processor.own(restored, how)
        self._committed |= offsets
        # They are paused: no record is under way that was fetched elsewhere.
        self._epoch += 1
        self._since |= dict.fromkeys(restore.partitions, self._epoch)
        self._paused.difference_update(restore.partitions)
        self._apart.difference_update(restore.partitions)
        for p, found in deadly.items():
            del offsets[p]
            for batch in found.deadly:
                self._group.tell_of(p, batch, DEADLY)
            await asyncio.wrap_future(self._group.deliver(p, found.records, found.stop))
        await asyncio.wrap_future(self._group.start_at(offsets))

    def _forget(self, partitions: Collection[int]) -> None:
        """Deliver nothing of partitions that are leaving, or whose start is in doubt."""
        for p in partitions:
            self._since.pop(p, None)

    def _membership(self) -> Membership:
        return self._group.membership if self._group else Membership(-1, "")

    async def close(self) -> None:
        """Leave the group, behind what was under way."""
        self._closing = True
        self._cancel_restore()
        self._since.clear()  # nothing more is fetched
        await self._drained()
        await self._delivery.settled()
        if self._group is not None:
            await asyncio.to_thread(self._group.close)
        await self._delivery.close()
