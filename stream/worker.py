"""The loop: a micro-batch goes through planner, models, sessions and transaction, in that order.

While a batch is encoded and committed, the next is planned and scored. It is planned on states that
are not committed yet, which is right since a transaction that is lost drops all of them.
"""

import asyncio
import logging
import os
import sys
import time
from collections.abc import Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import NamedTuple, NoReturn

import structlog

from stream.batch import Plan, Planner
from stream.errors import StreamError
from stream.metrics import Metrics
from stream.model.models import Model
from stream.model.scorer import Scores
from stream.position import BadClickLimitError, Position
from stream.session import PartitionSessions, Sessions
from stream.transport.protocol import Batch, Restored, TransactionLostError, Transport

log = structlog.get_logger(__name__)

EXIT_BUG = 1
EXIT_DEPLOYMENT = 2
EXIT_BAD_CLICKS = 3
COLLECT_PER_CLICK = 2
COLLECT_AT_LEAST = 64
"""Expiry looks at this many sessions a batch: enough to outrun any rate of new ones, and bounded,
so that a mass expiry does not hold up the clicks."""
INLINE_CLICKS = 32
"""Up to this many clicks are scored in the event loop, which has nothing else to do meanwhile: the
way to the scoring thread and back costs 1 to 2 ms where two cores are busy. More would hold up
the commit of the batch before."""


_ENDS = (
    (BadClickLimitError, "bad_click_limit", EXIT_BAD_CLICKS),
    (StreamError, "bad_deployment", EXIT_DEPLOYMENT),
)


class DroppedClickError(Exception):
    """The transport passed over a click that the topic holds."""


class _Scored(NamedTuple):
    batch: Batch
    plan: Plan
    scores: Mapping[Model, Scores]


class Worker:
    """Answers every click of the owned partitions once: the ``Processor`` of a transport."""

    def __init__(self, transport: Transport, planner: Planner, metrics: Metrics) -> None:
        self._transport = transport
        self._planner = planner
        self._metrics = metrics
        self._sessions = Sessions()
        self._scoring = ThreadPoolExecutor(1, thread_name_prefix="scoring")
        self._scored: asyncio.Queue[_Scored | None] = asyncio.Queue(1)
        self._batch_started: float | None = None

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
        """Plan and score a batch, and let the sessions go on to the next one."""
        sessions, planner, transport = self._sessions, self._planner, self._transport
        with self._stage("plan"):
            positions = {p: sessions.partitions[p].position for p in batch.records}
            plan = planner.plan(batch.records, positions, sessions.get)
        await self._check_holes(plan)
        with self._stage("score"):
            if sum(map(len, batch.records.values())) <= INLINE_CLICKS:
                scores = plan.score()
            else:
                loop = asyncio.get_running_loop()
                scores = await loop.run_in_executor(self._scoring, plan.score)
        if not transport.is_current(batch):
            transport.acknowledge(batch)
            return
        with self._stage("apply"):
            planner.advance(plan, scores)
            self._collect(plan)
            sessions.apply(plan.transaction)
        delivering = self._batch_started is not None
        await self._scored.put(_Scored(batch, plan, scores))
        if delivering:
            # Where transactions take longest, a batch that is fetched sooner only waits longer.
            await self._scored.join()

    async def _deliver(self) -> None:
        """Answer and commit batches in order."""
        transport = self._transport
        try:
            while (scored := await self._scored.get()) is not None:
                self._scored.task_done()  # as far as who waits for it is concerned
                self._batch_started = time.monotonic()
                if transport.is_current(scored.batch):
                    await self._commit(*scored)
                self._batch_started = None
                transport.acknowledge(scored.batch)
        except Exception as error:
            self.fail(error)

    async def _commit(self, batch: Batch, plan: Plan, scores: Mapping[Model, Scores]) -> None:
        with self._stage("finish"):
            self._planner.answer(plan, scores, _now_ms())
        try:
            with self._stage("deliver"):
                await self._transport.commit(batch, plan.transaction)
        except TransactionLostError as error:
            self._metrics.lost_transactions.inc()
            log.warning("transaction_lost", detail=str(error))
            return
        self._metrics.count_batch(plan.counts, scores.values(), _now_ms())

    def _collect(self, plan: Plan) -> None:
        """Let the batch's transaction also delete sessions that the watermark calls dead."""
        transaction, is_dead = plan.transaction, self._planner.rules.is_dead
        for partition, position in transaction.positions.items():
            touched = plan.touched[partition]
            dead = self._sessions.partitions[partition].collect(
                partial(is_dead, watermark_ms=position.watermark_ms),
                touched,
                max(COLLECT_AT_LEAST, COLLECT_PER_CLICK * len(touched)),
            )
            transaction.changelog[partition].update(dict.fromkeys(dead))
            plan.counts.expired += len(dead)

    async def _check_holes(self, plan: Plan) -> None:
        """Read again where offsets are missing. Raises DroppedClickError if a click is there.

        Transaction markers, aborted records and compaction leave holes; so would a bug that
        drops messages.
        """
        holes = plan.holes
        if not holes:
            return
        starts = {p: ranges[0][0] for p, ranges in holes.items()}
        ends = {p: ranges[-1][1] for p, ranges in holes.items()}
        for record in await self._transport.read(starts, ends):
            if any(a <= record.offset < b for a, b in holes[record.partition]):
                raise DroppedClickError(
                    f"{self._planner.topic}-{record.partition} holds a click at offset "
                    f"{record.offset} that was not delivered"
                )
        self._metrics.holes.inc(sum(b - a for ranges in holes.values() for a, b in ranges))

    @contextmanager
    def _stage(self, stage: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self._metrics.stage.labels(stage).observe(time.perf_counter() - started)

    # -- what the transport asks ----------------------------------------------------------------

    def new_partition(self) -> PartitionSessions:
        return PartitionSessions()

    def own(
        self, restored: Mapping[int, tuple[PartitionSessions, Position]], how: Restored
    ) -> None:
        for sessions, position in restored.values():
            sessions.position = position
        self._sessions.own({p: sessions for p, (sessions, _) in restored.items()})
        self._metrics.count_restore(self._sessions.sizes(), how)
        counts = {"records": how.n_records, "sessions": len(self._sessions)}
        log.info("restored", partitions=sorted(restored), **counts, seconds=round(how.seconds, 3))

    def drop(self, partitions: Collection[int]) -> None:
        self._sessions.drop(partitions)

    def fail(self, error: Exception) -> NoReturn:
        """Log and end the process at once; what was not committed is done again after a restart."""
        for kind, event, exit_code in _ENDS:
            if isinstance(error, kind):
                log.critical(event, detail=str(error))
                code = exit_code
                break
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
        """Set the gauges."""
        self._metrics.ready.set(self.ready)
        self._metrics.set_by_partition(self._sessions.sizes(), self._transport.lag())


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
