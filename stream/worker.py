"""The loop: a micro-batch goes through planner, models, transaction and sessions, in that order."""

import asyncio
import logging
import os
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import NoReturn

import structlog

from stream.batch import Plan, Planner
from stream.contract.records import Record
from stream.errors import StreamError
from stream.metrics import Metrics
from stream.position import BadClickLimitError
from stream.session import Sessions
from stream.transport.protocol import Target, TransactionLostError, Transport

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
the fetching of the next batch."""


_ENDS = (
    (BadClickLimitError, "bad_click_limit", EXIT_BAD_CLICKS),
    (StreamError, "bad_deployment", EXIT_DEPLOYMENT),
    (TransactionLostError, "transaction_lost", EXIT_BUG),
)


class DroppedClickError(Exception):
    """The transport passed over a click that the topic holds."""


class Worker:
    """Answers every click of the owned partitions exactly once: the ``Processor`` of a transport.

    A batch and a restore never overlap.
    """

    def __init__(self, transport: Transport, planner: Planner, metrics: Metrics) -> None:
        self._transport = transport
        self._planner = planner
        self._metrics = metrics
        self._sessions = Sessions()
        self._scoring = ThreadPoolExecutor(1, thread_name_prefix="scoring")
        self._between_batches = asyncio.Lock()
        self._last_ready = time.monotonic()
        self._batch_started: float | None = None

    # -- the loop -------------------------------------------------------------------------

    async def run(self) -> None:
        try:
            while (records := await self._transport.fetch()) is not None:
                async with self._between_batches:
                    self._batch_started = time.monotonic()
                    await self._process(records)
                    self._batch_started = None
        except Exception as error:
            self._on_error(error)

    async def _process(self, fetched: dict[int, list[Record]]) -> None:
        transport, planner = self._transport, self._planner
        records = {p: fetched[p] for p in fetched.keys() & self._sessions.partitions.keys()}
        with self._stage("plan"):
            positions = {p: transport.position(p) for p in records}
            plan = planner.plan(records, positions, self._sessions.get)
        await self._check_holes(plan)
        with self._stage("score"):
            if sum(map(len, records.values())) <= INLINE_CLICKS:
                scores = plan.score()
            else:
                loop = asyncio.get_running_loop()
                scores = await loop.run_in_executor(self._scoring, plan.score)
        with self._stage("finish"):
            planner.finish(plan, scores, _now_ms())
            self._collect(plan)
        with self._stage("deliver"):
            await transport.commit(plan.transaction)
        with self._stage("apply"):
            self._sessions.apply(plan.transaction.changelog)
            self._metrics.count_batch(plan.counts, scores.values(), _now_ms())
            transport.acknowledge()

    def _collect(self, plan: Plan) -> None:
        """Let the batch's transaction also delete sessions that the watermark calls dead."""
        transaction, is_dead = plan.transaction, self._planner.rules.is_dead
        answers = transaction.messages[Target.RECOMMENDATIONS]
        for partition, position in transaction.positions.items():
            dead = self._sessions.partitions[partition].collect(
                partial(is_dead, watermark_ms=position.watermark_ms),
                plan.touched[partition],
                max(COLLECT_AT_LEAST, COLLECT_PER_CLICK * len(answers[partition])),
            )
            transaction.changelog[partition].update(dict.fromkeys(dead))
            plan.counts.expired += len(dead)

    async def _check_holes(self, plan: Plan) -> None:
        """Read again where offsets are missing. Raises DroppedClickError if a click is there.

        Transaction markers, aborted records and compaction leave holes; so did every bug that
        made Faust drop messages.
        """
        holes = plan.holes
        if not holes:
            return
        starts = {p: ranges[0][0] for p, ranges in holes.items()}
        ends = {p: ranges[-1][1] for p, ranges in holes.items()}
        async for record in self._transport.read(starts, ends):
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

    async def restore(self) -> None:
        started = time.perf_counter()
        try:
            async with self._between_batches:
                restored = await self._transport.restore(self._sessions)
        except Exception as error:
            self._on_error(error)
        seconds = time.perf_counter() - started
        self._metrics.count_restore(self._sessions.sizes(), restored, seconds)
        partitions, n_sessions = list(self._transport.partitions), len(self._sessions)
        counts = {"records": restored.n_records, "sessions": n_sessions}
        log.info("restored", partitions=partitions, **counts, seconds=round(seconds, 3))

    # -- what operators see -----------------------------------------------------------------

    @property
    def ready(self) -> bool:
        """Whether partitions are assigned, restored and served."""
        return self._transport.ready

    @property
    def stuck_s(self) -> float:
        """Seconds that the current batch has taken; 0 between batches."""
        return 0.0 if self._batch_started is None else time.monotonic() - self._batch_started

    @property
    def not_ready_s(self) -> float:
        """Seconds since partitions were last assigned and restored, or since the start."""
        return 0.0 if self.ready else time.monotonic() - self._last_ready

    async def observe(self) -> None:
        """Set the gauges."""
        self._metrics.ready.set(self.ready)
        if not self.ready:
            return
        self._last_ready = time.monotonic()
        self._metrics.set_sessions(self._sessions.sizes())
        for partition, n_clicks in (await self._transport.lag()).items():
            self._metrics.lag.labels(partition).set(n_clicks)

    def _on_error(self, error: Exception) -> NoReturn:
        """Log and end the process at once; what was not committed is done again after a restart.

        No graceful stop: other partitions of the batch may have committed and are not applied
        here, so nothing may be written any more.
        """
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


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
