"""The Faust app, and the loop that carries a micro-batch through the six steps of a click."""

import asyncio
import logging
import os
import sys
import tempfile
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import faust
import structlog
from faust.types import TP

from stream.batch import Plan, Rules, finish_batch, plan_batch
from stream.contract.click import Record
from stream.errors import StreamError
from stream.metrics import Metrics
from stream.model.bundle import Bundle
from stream.model.scorer import Scorer
from stream.position import BadClickLimit, BadClickLimitError, Position
from stream.settings import WorkerSettings
from stream.transport.clients import faust_options
from stream.transport.patches import LeanMonitor
from stream.transport.reader import CommittedReader
from stream.transport.restore import restore_partitions
from stream.transport.store import STORE_URL, SessionStore
from stream.transport.topics import TopicFacts
from stream.transport.transactions import Delivery, TransactionLostError

if TYPE_CHECKING:
    from collections.abc import Iterator

log = structlog.get_logger(__name__)

EXIT_BUG = 1
EXIT_DEPLOYMENT = 2
EXIT_BAD_CLICKS = 3
COLLECT_PER_CLICK = 2
COLLECT_AT_LEAST = 64
"""Expiry looks at this many sessions a batch: enough to outrun any rate of new ones, and bounded,
so that a mass expiry does not hold up the clicks."""
INLINE_CLICKS = 32
"""Up to so many clicks are scored in the event loop, which has nothing else to do meanwhile: the
way to the scoring thread and back costs 1 to 2 ms where two cores are busy. More would hold up
the fetching of the next batch."""
LAG_EVERY_S = 2.0


class DroppedClickError(Exception):
    """Faust passed over a click that the topic holds."""


class WorkerApp(faust.App):
    """The Faust app with what our patches ask of it (see transport/patches.py)."""

    logger = logging.getLogger("faust.app")  # else Faust narrates under our name
    worker: "Worker"

    async def restore(self) -> None:
        """Fence, restore, check: called with the flow of clicks stopped."""
        await self.worker.restore()

    def positions(self) -> Mapping[TP, int]:
        """Where the clicks go on."""
        return self.worker.positions()


def build_app(settings: WorkerSettings) -> WorkerApp:
    """Return the Faust app without agents: every setting that matters, with its reason."""
    return WorkerApp(
        settings.app_id,
        **faust_options(settings),
        store=STORE_URL,
        # Faust makes a folder that nothing is ever written to; not in the current one.
        datadir=Path(tempfile.gettempdir()) / "nextclick-faust",
        # The topics are made by `topics create`: the principal of a worker needs no CREATE.
        topic_allow_declare=False,
        topic_disable_leader=True,
        table_standby_replicas=0,
        consumer_auto_offset_reset="earliest",
        # Partitions added to the clicks are noticed so soon, and restore.py checks them.
        consumer_metadata_max_age_ms=10_000,
        broker_session_timeout=settings.session_timeout_s,
        broker_heartbeat_interval=settings.session_timeout_s / 4,
        broker_rebalance_timeout=60.0,
        broker_request_timeout=max(40.0, settings.session_timeout_s + 10),
        # A restore does not poll: a million sessions must fit in.
        broker_max_poll_interval=300.0,
        broker_commit_interval=1.0,
        stream_wait_empty=True,
        stream_buffer_maxsize=8192,
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


class Worker:
    """Owns partitions of the clicks topic and answers every click in them exactly once."""

    def __init__(
        self,
        settings: WorkerSettings,
        bundle: Bundle,
        scorer: Scorer,
        facts: TopicFacts,
        metrics: Metrics,
    ) -> None:
        self.app = build_app(settings)
        self.app.worker = self
        self._settings = settings
        self._bundle = bundle
        self._scorer = scorer
        self._facts = facts
        self._metrics = metrics
        idle_timeout_s = bundle.manifest.idle_timeout_s
        self._rules = Rules(
            None if idle_timeout_s is None else idle_timeout_s * 1000,
            settings.allowed_lateness_s * 1000,
            BadClickLimit(settings.bad_click_run_limit, settings.bad_click_share_limit),
        )
        self._clicks = self.app.topic(
            settings.clicks_topic,
            key_type=bytes,
            value_type=bytes,
            # A decoding serializer here would stall the stream for good at the first bad click.
            key_serializer="raw",
            value_serializer="raw",
        )
        self._table = self.app.Table(
            "sessions", partitions=facts.click_partitions, key_type=bytes, value_type=bytes
        )
        store = self._table.data
        assert isinstance(store, SessionStore)
        self._sessions = store.sessions
        self._delivery = Delivery(settings, facts)
        self._reader = CommittedReader(settings)
        self._scoring = ThreadPoolExecutor(1, thread_name_prefix="scoring")
        self._between_batches = asyncio.Lock()
        self._restored = False
        self._took_at = 0.0
        self._last_ready = time.monotonic()
        self._batch_started: float | None = None
        self.app.agent(self._clicks, name="recommend")(self._recommend)
        self.app.timer(LAG_EVERY_S)(self._watch_lag)

    # -- the loop -------------------------------------------------------------------------

    async def _recommend(self, stream: Any) -> None:
        # The channel's queue is read directly. Faust's noack_take wakes a task for every message
        # and empties its buffer by a free-running timer, which adds half a window to each click.
        queue = aiter(stream.channel).queue
        while True:
            try:
                events = await self._take(queue)
                async with self._between_batches:
                    self._batch_started = time.monotonic()
                    await self._process(events)
                    self._batch_started = None
            except StopAsyncIteration:  # how Faust ends a channel when the worker stops
                return
            except Exception as error:
                self._on_error(error)
            del events  # Faust counts a message as unacknowledged while it is referenced

    async def _take(self, queue: Any) -> list[Any]:
        """Return up to ``batch_clicks`` events; batches begin at least one window apart.

        So a lone click does not wait, and one that queued up behind a batch waits no longer;
        without the pause, transactions run back to back and saturate two cores.
        """
        events = [await queue.get()]
        pause_s = self._took_at + self._settings.batch_window_s - time.monotonic()
        if pause_s > 0:
            await asyncio.sleep(pause_s)
        self._took_at = time.monotonic()
        while len(events) < self._settings.batch_clicks and not queue.empty():
            events.append(queue.get_nowait())
        return events

    async def _process(self, events: list[Any]) -> None:
        records: dict[int, list[Record]] = {}
        for event in events:
            message = event.message
            if message.partition in self._sessions.partitions:
                records.setdefault(message.partition, []).append(
                    Record(
                        message.partition,
                        message.offset,
                        round(message.timestamp * 1000),
                        message.key,
                        message.value,
                    )
                )
        topic, metrics = self._settings.clicks_topic, self._metrics
        with self._stage("plan"):
            plan = plan_batch(
                records,
                {p: self._position(p) for p in records},
                self._sessions.get,
                self._bundle,
                self._rules,
                topic,
            )
        await self._check_holes(plan)
        with self._stage("score"):
            if sum(map(len, records.values())) <= INLINE_CLICKS:
                scores = plan.waves.score(self._scorer)
            else:
                scores = await asyncio.get_running_loop().run_in_executor(
                    self._scoring, plan.waves.score, self._scorer
                )
        with self._stage("finish"):
            outputs = finish_batch(plan, scores, self._bundle, topic, _now_ms())
            tombstones = {p: self._collect(p, plan) for p in outputs}
        with self._stage("deliver"):
            changelog_offsets = await asyncio.gather(
                *(self._delivery.commit(p, o, tombstones[p]) for p, o in outputs.items())
            )
        with self._stage("apply"):
            for (p, output), offset in zip(outputs.items(), changelog_offsets, strict=True):
                self._sessions.partitions[p].apply(
                    output.states, tombstones[p], output.position, offset
                )
            metrics.count_batch(
                outputs, tombstones, scores, self._bundle.manifest.bundle_id, _now_ms()
            )
            for event in events:
                event.ack()

    def _position(self, partition: int) -> Position:
        position = self._sessions.partitions[partition].position
        assert position is not None, "restore gives every partition a position"
        return position

    def _collect(self, partition: int, plan: Plan) -> list[bytes]:
        """Return the sessions to delete in this partition's transaction."""
        output = plan.outputs[partition]
        watermark_ms = output.position.watermark_ms
        return self._sessions.partitions[partition].collect(
            lambda last_click_ms: self._rules.is_dead(last_click_ms, watermark_ms),
            output.touched,
            max(COLLECT_AT_LEAST, COLLECT_PER_CLICK * len(output.answered)),
        )

    async def _check_holes(self, plan: Plan) -> None:
        """Read again where offsets are missing. Raises DroppedClickError if a click is there.

        Transaction markers, aborted records and compaction leave holes; so did every bug that
        made Faust drop messages.
        """
        holes = {p: output.holes for p, output in plan.outputs.items() if output.holes}
        if not holes:
            return
        async for record in self._reader.read(
            self._settings.clicks_topic,
            {p: ranges[0][0] for p, ranges in holes.items()},
            {p: ranges[-1][1] for p, ranges in holes.items()},
        ):
            if any(a <= record.offset < b for a, b in holes[record.partition]):
                raise DroppedClickError(
                    f"{record.topic}-{record.partition} holds a click at offset {record.offset} "
                    "that was not delivered"
                )
        self._metrics.holes.inc(sum(b - a for ranges in holes.values() for a, b in ranges))

    @contextmanager
    def _stage(self, stage: str) -> "Iterator[None]":
        started = time.perf_counter()
        yield
        self._metrics.stage.labels(stage).observe(time.perf_counter() - started)

    # -- restore --------------------------------------------------------------------------

    async def restore(self) -> None:
        """Make the assigned partitions ours, between two batches."""
        started = time.perf_counter()
        topic = self._settings.clicks_topic
        partitions = sorted(
            tp.partition for tp in self.app.consumer.assignment() if tp.topic == topic
        )
        try:
            async with self._between_batches:
                self._restored = False
                n_records, n_lost = await restore_partitions(
                    partitions, self._sessions, self._delivery, self._reader, self._settings
                )
                self._restored = True
        except Exception as error:
            self._on_error(error)
        seconds = time.perf_counter() - started
        self._metrics.count_restore(self._sessions.sizes(), n_records, n_lost, seconds)
        log.info(
            "restored",
            partitions=partitions,
            records=n_records,
            sessions=len(self._sessions),
            seconds=round(seconds, 3),
        )

    def positions(self) -> dict[TP, int]:
        """Where each restored partition goes on; empty until a restore is complete."""
        if not self._restored:
            return {}
        return {
            TP(self._settings.clicks_topic, p): self._position(p).next_offset
            for p in self._sessions.partitions
        }

    # -- what operators see -----------------------------------------------------------------

    @property
    def ready(self) -> bool:
        """Whether partitions are assigned, restored and served."""
        return self._restored and not self.app.rebalancing and not self.app.in_recovery

    @property
    def stuck_s(self) -> float:
        """Seconds that the current batch has taken; 0 between batches."""
        return 0.0 if self._batch_started is None else time.monotonic() - self._batch_started

    @property
    def not_ready_s(self) -> float:
        """Seconds since partitions were last assigned and restored, or since the start."""
        return 0.0 if self.ready else time.monotonic() - self._last_ready

    async def _watch_lag(self) -> None:
        self._metrics.ready.set(self.ready)
        if not self.ready:
            return
        self._last_ready = time.monotonic()
        self._metrics.set_sessions(self._sessions.sizes())
        positions = self.positions()
        end = await self.app.consumer.highwaters(*positions)
        for tp, next_offset in positions.items():
            lag = end[tp] - next_offset
            # Behind the last click there may be transaction markers, which are no lag.
            if lag > 0 and not self._pending():
                fetched = await self.app.consumer.position(tp)
                lag = 0 if fetched is not None and fetched >= end[tp] else lag
            self._metrics.lag.labels(tp.partition).set(max(0, lag))

    def _pending(self) -> bool:
        return self._batch_started is not None or bool(self.app.consumer.unacked)

    def _on_error(self, error: Exception) -> NoReturn:
        """Log and end the process at once; what was not committed is done again after a restart.

        No graceful stop: other partitions of the batch may have committed and are not applied
        here, so nothing may be written any more.
        """
        if isinstance(error, BadClickLimitError):
            log.critical("bad_click_limit", detail=str(error))
            code = EXIT_BAD_CLICKS
        elif isinstance(error, StreamError):
            log.critical("bad_deployment", detail=str(error))
            code = EXIT_DEPLOYMENT
        elif isinstance(error, TransactionLostError):
            log.critical("transaction_lost", detail=str(error))
            code = EXIT_BUG
        else:
            log.critical("worker_failed", exc_info=error)
            code = EXIT_BUG
        logging.shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
