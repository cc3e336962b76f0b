"""The loop: a micro-batch goes through planner, models, states and transaction, in that order.

While a batch is committed, the next is planned, scored and answered. It is planned on states that
are not committed yet, which is right since a transaction that is lost drops all of them.
"""

import asyncio
import logging
import os
import sys
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import Any, Generic, NamedTuple, NoReturn, Protocol, TypeVar

import structlog

from stream.contract.records import Record
from stream.errors import StreamError
from stream.intake import Intake, Lookup, Taken
from stream.metrics import EngineMetrics
from stream.position import BadClickLimitError, Position
from stream.table import PartitionStates, States
from stream.transport.protocol import Batch, Restored, TransactionLostError, Transport

log = structlog.get_logger(__name__)

EXIT_BUG = 1
EXIT_DEPLOYMENT = 2
COLLECT_PER_CLICK = 2
COLLECT_AT_LEAST = 64
"""Expiry looks at this many sessions a batch: enough to outrun any rate of new ones, and bounded,
so that a mass expiry does not hold up the clicks."""
INLINE_CLICKS = 32
"""Up to this many clicks are scored in the event loop, which has nothing else to do meanwhile: the
way to the scoring thread and back costs 1 to 2 ms where two cores are busy. More would hold up
the commit of the batch before."""


MISNUMBERED = "is in a batch whose records have other offsets than its header"


class DroppedClickError(Exception):
    """The transport passed over a click that the topic holds."""


class MisnumberedError(Exception):
    """A batch whose records do not stand at the offsets that are theirs."""

    def __init__(self, partition: int, batch: range) -> None:
        super().__init__(f"partition {partition}, offsets {batch.start} to {batch.stop - 1}")
        self.partition, self.batch = partition, batch


P = TypeVar("P", bound=Taken)


class Planner(Protocol[P]):
    """What a worker does with its records: pure, and blind to Kafka.

    ``stream/batch.py`` answers clicks, ``stream/items.py`` counts what follows what.
    """

    intake: Intake[Any]

    def new_partition(self) -> PartitionStates:
        """Return an empty table."""
        ...

    def refresh(self) -> None:
        """Take what has come from elsewhere; between two batches."""
        ...

    def plan(
        self,
        records: Mapping[int, Sequence[Record]],
        positions: Mapping[int, Position],
        lookup: Lookup,
    ) -> P:
        """Return the plan of one micro-batch. Arguments and errors as in ``Intake.take``."""
        ...

    def score(self, plan: P) -> None:
        """Do what takes long and needs nothing but the plan; may be called in a thread."""
        ...

    def advance(self, plan: P) -> None:
        """Complete the plan's changelog."""
        ...

    def answer(self, plan: P, published_ms: int) -> None:
        """Complete the plan's messages and counts."""
        ...

    def is_dead(self, last_ms: int, watermark_ms: int) -> bool:
        """Whether a state of that time has expired."""
        ...

    def expire(self, plan: P, partition: int, keys: Sequence[bytes]) -> None:
        """Let the batch's transaction delete expired states."""
        ...


class _Scored(NamedTuple):
    """A batch and the plans that it took: one, unless a record failed."""

    batch: Batch
    plans: list[Any]


class Worker(Generic[P]):
    """Takes every record of the owned partitions once: the ``Processor`` of a transport."""

    def __init__(self, transport: Transport, planner: Planner[P], metrics: EngineMetrics) -> None:
        self._transport = transport
        self._planner = planner
        self._metrics = metrics
        self._states = States()
        self._scoring = ThreadPoolExecutor(1, thread_name_prefix="scoring")
        self._scored: asyncio.Queue[_Scored | None] = asyncio.Queue(1)
        self._batch_started: float | None = None
        self._is_stepping = False
        self._paused: dict[int, int] = {}  # the offset that a paused partition waits before

    # -- the loop -------------------------------------------------------------------------

    async def run(self) -> None:
        delivering = asyncio.create_task(self._deliver())
        try:
            while (batch := await self._transport.fetch()) is not None:
                await self._advance(batch)
            await self._scored.put(None)
        except Exception as error:
            self.fail(error)
        await delivering

    async def _advance(self, batch: Batch) -> None:
        """Plan, score and answer a batch, and let the states go on to the next one.

        Where that fails, each partition and then each record is a step of its own, until the one
        is found that fails: its partition is paused before it, and the others go on.
        """
        plans: list[P] = []
        parts: list[Mapping[int, Sequence[Record]]] = [batch.records]
        self._is_stepping = True
        while parts and self._transport.is_current(batch):
            records = parts.pop(0)
            try:
                plan = await self._step(records)
            except StreamError:
                raise
            except MisnumberedError as error:
                parts = _before(error, [records, *parts])
                await self._transport.pass_over(error.partition, error.batch, MISNUMBERED)
                continue
            except Exception as error:
                if smaller := _smaller(records):
                    parts[:0] = smaller
                    continue
                ((partition, (record,)),) = records.items()
                self._pause(record, error)
                parts = [part for part in parts if partition not in part]
                continue
            if self._transport.is_current(batch):
                holes = plan.holes.values()
                self._metrics.holes.inc(sum(b - a for ranges in holes for a, b in ranges))
                with self._stage("apply"):
                    self._collect(plan)
                    self._states.apply(plan.transaction)
                plans.append(plan)
        self._is_stepping = False
        if not self._transport.is_current(batch):
            self._transport.acknowledge(batch)
            return
        delivering = self._batch_started is not None
        await self._scored.put(_Scored(batch, plans))
        if delivering:
            # Where transactions take longest, a batch that is fetched sooner only waits longer.
            await self._scored.join()

    async def _step(self, records: Mapping[int, Sequence[Record]]) -> P:
        """Plan, score and answer records; the states stay as they are."""
        states, planner = self._states, self._planner
        with self._stage("plan"):
            planner.refresh()
            positions = {p: states.partitions[p].position for p in records}
            plan = planner.plan(records, positions, states.get)
        await self._check_holes(plan)
        with self._stage("score"):
            if sum(map(len, records.values())) <= INLINE_CLICKS:
                planner.score(plan)
            else:
                loop = asyncio.get_running_loop()
                await loop.run_in_executor(self._scoring, planner.score, plan)
            planner.advance(plan)
        with self._stage("finish"):  # ahead of the states: where it fails, nothing is built on it
            planner.answer(plan, _now_ms())
        return plan

    def _pause(self, record: Record, error: Exception) -> None:
        """Leave a partition alone from this record on, until an operator says how to go on."""
        self._paused[record.partition] = record.offset
        self._transport.pause(record.partition)
        is_limit = isinstance(error, BadClickLimitError)
        log.critical(
            "partition_paused",
            topic=self._planner.intake.topic,
            partition=record.partition,
            offset=record.offset,
            detail=str(error) if is_limit else "the worker failed at this record",
            exc_info=None if is_limit else error,
        )

    async def resume(self, partition: int, excused_until: int, *, pass_over: bool) -> int | None:
        """Go on with a paused partition; returns the offset, or None if it is not paused here.

        excused_until: bad clicks below this offset count for no limit. pass_over: the record at
        the offset becomes a dead letter.
        """
        offset = self._paused.pop(partition, None)
        if offset is None:
            return None
        if pass_over:
            self._planner.intake.passed_over.add((partition, offset))
        states = self._states.partitions[partition]
        states.position = states.position.excuse(excused_until)
        log.warning("partition_resumed", partition=partition, offset=offset, pass_over=pass_over)
        await self._transport.resume(partition, states.position.next_offset)
        return offset

    async def _deliver(self) -> None:
        """Commit batches in order."""
        transport = self._transport
        try:
            while (scored := await self._scored.get()) is not None:
                self._scored.task_done()  # as far as who waits for it is concerned
                self._batch_started = time.monotonic()
                for plan in scored.plans:
                    if transport.is_current(scored.batch):
                        await self._commit(scored.batch, plan)
                self._batch_started = None
                transport.acknowledge(scored.batch)
        except Exception as error:
            self.fail(error)

    async def _commit(self, batch: Batch, plan: P) -> None:
        try:
            with self._stage("deliver"):
                await self._transport.commit(batch, plan.transaction)
        except TransactionLostError as error:
            self._metrics.lost_transactions.inc()
            log.warning("transaction_lost", detail=str(error))
            return
        self._metrics.count_batch(plan.counts, _now_ms())

    def _collect(self, plan: P) -> None:
        """Let the batch's transaction also delete states that the watermark calls dead."""
        planner = self._planner
        for partition, position in plan.transaction.positions.items():
            touched = plan.touched[partition]
            dead = self._states.partitions[partition].collect(
                partial(planner.is_dead, watermark_ms=position.watermark_ms),
                touched,
                max(COLLECT_AT_LEAST, COLLECT_PER_CLICK * len(touched)),
            )
            if dead:
                planner.expire(plan, partition, dead)

    async def _check_holes(self, plan: P) -> None:
        """Look into the log where offsets are missing.

        Transaction markers, aborted records and compaction leave holes. Raises DroppedClickError
        where the records of a batch are there, which a bug has dropped, and MisnumberedError where
        they say that they are elsewhere.
        """
        if not plan.holes:
            return
        for partition, batch in (await self._transport.promised(plan.holes)).items():
            start, end = {partition: batch.start}, {partition: batch.stop}
            found = [record.offset for record in await self._transport.read(start, end)]
            if found == [*batch]:
                raise DroppedClickError(
                    f"{self._planner.intake.topic}-{partition} holds a record at offset "
                    f"{batch.start} that was not delivered"
                )
            raise MisnumberedError(partition, batch)

    @contextmanager
    def _stage(self, stage: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self._metrics.stage.labels(stage).observe(time.perf_counter() - started)

    # -- what the transport asks ----------------------------------------------------------------

    def new_partition(self) -> PartitionStates:
        return self._planner.new_partition()

    def own(self, restored: Mapping[int, tuple[PartitionStates, Position]], how: Restored) -> None:
        for states, position in restored.values():
            states.position = position
        self._states.own({p: states for p, (states, _) in restored.items()})
        self._metrics.count_restore(self._states.sizes(), how)
        counts = {"records": how.n_records, self._metrics.states_name: len(self._states)}
        log.info("restored", partitions=sorted(restored), **counts, seconds=round(how.seconds, 3))

    def drop(self, partitions: Collection[int]) -> None:
        self._states.drop(partitions)
        for partition in partitions:
            self._paused.pop(partition, None)  # owned anew, it is tried anew

    def fail(self, error: Exception) -> NoReturn:
        """Log and end the process at once; what was not committed is done again after a restart."""
        if isinstance(error, StreamError):
            log.critical("bad_deployment", detail=str(error))
            code = EXIT_DEPLOYMENT
        else:
            log.critical("worker_failed", exc_info=error)
            code = EXIT_BUG
        logging.shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)

    # -- what operators see -----------------------------------------------------------------

    @property
    def ready(self) -> bool:
        """Whether the worker is a member of its group, and what it owns is restored."""
        return self._transport.ready

    @property
    def stuck_s(self) -> float:
        """Seconds that the current batch has taken; 0 between batches."""
        return 0.0 if self._batch_started is None else time.monotonic() - self._batch_started

    async def observe(self) -> None:
        """Set the gauges, and take what has come from elsewhere while there were no records."""
        if not self._is_stepping:
            self._planner.refresh()
        self._metrics.ready.set(self.ready)
        self._metrics.look()
        sizes = self._states.sizes()
        self._metrics.set_by_partition(sizes, self._transport.lag(), self._paused)


def _smaller(records: Mapping[int, Sequence[Record]]) -> list[dict[int, list[Record]]]:
    """Partitions one by one, or the records of the only one; none if there is but one record."""
    if len(records) > 1:
        return [{partition: list(of_partition)} for partition, of_partition in records.items()]
    ((partition, of_partition),) = records.items()
    return [{partition: [record]} for record in of_partition] if len(of_partition) > 1 else []


def _before(
    error: MisnumberedError, parts: Iterable[Mapping[int, Sequence[Record]]]
) -> list[Mapping[int, Sequence[Record]]]:
    """The parts of a batch without what its partition has of that batch and behind it."""
    first = {error.partition: error.batch.start}
    left = [
        {p: [r for r in of_p if p not in first or r.offset < first[p]] for p, of_p in part.items()}
        for part in parts
    ]
    return [found for part in left if (found := {p: of_p for p, of_p in part.items() if of_p})]


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
