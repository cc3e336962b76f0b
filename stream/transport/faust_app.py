"""Today's ``Transport``: Faust assigns and delivers, aiokafka's producers and readers do the rest.

The consumer group, its assignment, the fetching and the web server are Faust's. The restore and
the transactions are ours (restore.py, transactions.py), as are the positions that records go on
from; patches.py makes Faust ask for them.
"""

import asyncio
import logging
import tempfile
import time
from collections.abc import AsyncIterator, Collection, Mapping
from pathlib import Path
from typing import Any

import faust
import uvloop
from faust.types import TP

from stream.contract.records import Record
from stream.position import Position
from stream.settings import WorkerSettings
from stream.transport.clients import faust_options
from stream.transport.patches import LeanMonitor
from stream.transport.protocol import Processor, Restored, Table, Transaction
from stream.transport.reader import CommittedReader
from stream.transport.restore import Progress, restore_partitions
from stream.transport.topics import TopicFacts
from stream.transport.transactions import Delivery

OBSERVE_EVERY_S = 2.0


class WorkerApp(faust.App):
    """The Faust app with what our patches ask of it (see patches.py)."""

    logger = logging.getLogger("faust.app")  # else Faust logs under our name
    owner: "FaustTransport"

    async def restore(self) -> None:
        """Fence, restore, check: called with the flow of records stopped."""
        await self.owner.processor.restore()

    def positions(self) -> Mapping[TP, int]:
        """Where the records go on."""
        return self.owner.next_offsets()


def build_app(settings: WorkerSettings) -> WorkerApp:
    """Return the Faust app without agents: every setting that matters, with its reason."""
    return WorkerApp(
        settings.app_id,
        **faust_options(settings),
        store="memory://",  # stays empty: the table is the processor's, and restore.py fills it
        # Faust makes a folder that nothing is ever written to; not in the current one.
        datadir=Path(tempfile.gettempdir()) / "nextclick-faust",
        # The topics are made by `topics create`: the principal of a worker needs no CREATE.
        topic_allow_declare=False,
        topic_disable_leader=True,
        table_standby_replicas=0,
        consumer_auto_offset_reset="earliest",
        # How soon partitions added to the clicks are noticed; restore.py checks them.
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


class FaustTransport:
    """The ``Transport`` of a worker process; ``patches.install_patches`` comes before it.

    What each method promises is written there.
    """

    def __init__(self, settings: WorkerSettings, facts: TopicFacts) -> None:
        self.app = build_app(settings)
        self.app.owner = self
        self.processor: Processor
        self._settings = settings
        self._topic = settings.clicks_topic
        self._input = self.app.topic(
            self._topic,
            key_type=bytes,
            value_type=bytes,
            # A decoding serializer here would stall the stream for good at the first bad record.
            key_serializer="raw",
            value_serializer="raw",
        )
        self.app.Table(
            "sessions", partitions=facts.click_partitions, key_type=bytes, value_type=bytes
        )
        self._delivery = Delivery(settings, facts)
        self._reader = CommittedReader(settings)
        self._progress: dict[int, Progress] = {}
        self._restored = False
        self._queue: asyncio.Queue[Any]
        self._events: list[Any] = []
        self._fetched_at = 0.0

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

        async def recommend(stream: Any) -> None:
            # The channel's queue is read directly. Faust's noack_take wakes a task for every
            # message and empties its buffer by a free-running timer, which adds half a window to
            # each click.
            self._queue = aiter(stream.channel).queue
            await processor.run()

        self.app.agent(self._input, name="recommend")(recommend)
        self.app.timer(OBSERVE_EVERY_S)(processor.observe)

    @property
    def ready(self) -> bool:
        return self._restored and not self.app.rebalancing and not self.app.in_recovery

    @property
    def partitions(self) -> Collection[int]:
        return self._progress.keys()

    def position(self, partition: int) -> Position:
        position = self._progress[partition].position
        assert position is not None, "restore gives every partition a position"
        return position

    def next_offsets(self) -> dict[TP, int]:
        """Where each restored partition goes on; empty until a restore is complete."""
        if not self._restored:
            return {}
        return {TP(self._topic, p): self.position(p).next_offset for p in self._progress}

    async def restore(self, table: Table) -> Restored:
        self._restored = False
        assigned = self.app.consumer.assignment()
        partitions = sorted(tp.partition for tp in assigned if tp.topic == self._topic)
        restored = await restore_partitions(
            partitions, self._progress, table, self._delivery, self._reader, self._settings
        )
        self._restored = True
        return restored

    async def fetch(self) -> dict[int, list[Record]] | None:
        """As ``Transport.fetch``: up to ``batch_clicks``, at least a window after the last batch.

        So a lone record does not wait, and one that queued during a batch waits no longer;
        without the pause, transactions run back to back and saturate two cores.
        """
        queue, events = self._queue, self._events
        try:
            events.append(await queue.get())
        except StopAsyncIteration:  # how Faust ends a channel when the worker stops
            return None
        pause_s = self._fetched_at + self._settings.batch_window_s - time.monotonic()
        if pause_s > 0:
            await asyncio.sleep(pause_s)
        self._fetched_at = time.monotonic()
        while len(events) < self._settings.batch_clicks and not queue.empty():
            events.append(queue.get_nowait())
        records: dict[int, list[Record]] = {}
        for event in events:
            m = event.message
            record = Record(m.partition, m.offset, round(m.timestamp * 1000), m.key, m.value)
            records.setdefault(m.partition, []).append(record)
        return records

    async def commit(self, transaction: Transaction) -> None:
        """As ``Transport.commit``, by one Kafka transaction per partition."""
        offsets = await self._delivery.commit(transaction)
        for partition, position in transaction.positions.items():
            self._progress[partition] = Progress(position, offsets[partition])

    def acknowledge(self) -> None:
        """As ``Transport.acknowledge``; Faust's periodic commit of the group's offsets follows."""
        for event in self._events:
            event.ack()
        self._events.clear()  # Faust counts a message as unacknowledged while it is referenced

    async def read(self, start: Mapping[int, int], end: Mapping[int, int]) -> AsyncIterator[Record]:
        async for r in self._reader.read(self._topic, start, end):
            yield Record(r.partition, r.offset, r.timestamp, r.key, r.value)

    async def lag(self) -> dict[int, int]:
        consumer, lag = self.app.consumer, {}
        next_offsets = self.next_offsets()
        end = await consumer.highwaters(*next_offsets)
        for tp, next_offset in next_offsets.items():
            behind = end[tp] - next_offset
            # After the last record there may be transaction markers, which are no lag.
            if behind > 0 and not self._events and not consumer.unacked:
                fetched = await consumer.position(tp)
                behind = 0 if fetched is not None and fetched >= end[tp] else behind
            lag[tp.partition] = max(0, behind)
        return lag
