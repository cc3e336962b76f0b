"""All that we change in Faust and aiokafka, and only in the versions it was written for.

Each patch names the defect. ``tests/integration`` also runs the faults with a patch left out, and
then sees the loss that it prevents. ``app`` is the ``WorkerApp`` of faust_app.py.
"""

import asyncio
import logging
from importlib.metadata import version
from typing import Any

import aiokafka.producer.sender
from aiokafka.errors import KafkaConnectionError, KafkaError
from aiokafka.producer.sender import Sender
from faust.sensors.monitor import Monitor
from faust.tables.recovery import Recovery
from faust.transport.consumer import Consumer
from faust.transport.drivers.aiokafka import AIOKafkaConsumerThread
from faust.types import TP

from stream.errors import StreamError

WRITTEN_FOR = {"faust-streaming": "0.15.3", "aiokafka": "0.14.0", "mode-streaming": "0.7.1"}


class LeanMonitor(Monitor):
    """Faust's monitor without its work per message (5 to 20 us a click); ours are in metrics.py."""

    logger = logging.getLogger("faust.monitor")

    def on_message_in(self, tp: TP, offset: int, message: Any) -> None: ...
    def on_message_out(self, tp: TP, offset: int, message: Any) -> None: ...
    def on_stream_event_in(self, tp: TP, offset: int, stream: Any, event: Any) -> None: ...
    def on_stream_event_out(
        self, tp: TP, offset: int, stream: Any, event: Any, state: Any = None
    ) -> None: ...
    def track_tp_end_offset(self, tp: TP, offset: int) -> None: ...


def commit_before_revoke() -> None:
    """Commit acked offsets before they are thrown away.

    Faust drops its record of acks when partitions are revoked, before the hook that commits
    (issue 502): every join or leave delivers hundreds of clicks again. The position record makes
    that harmless, but it would cost time.
    """
    original = Consumer.on_partitions_revoked

    async def on_partitions_revoked(self: Any, revoked: set[TP]) -> None:
        if revoked and not self.app.should_stop:
            self.stop_flow()
            self.app.flow_control.suspend()
            self.app.flow_control.clear()
            await self.wait_empty()
        await original(self, revoked)

    Consumer.on_partitions_revoked = on_partitions_revoked  # type: ignore[method-assign]  # a patch


def restore_before_resume() -> None:
    """Restore our way at the end of Faust's recovery, with the flow of clicks stopped.

    Faust resumes the clicks' partitions before it seeks and clears every queue afterwards:
    what was delivered in between is lost, and commits wedge behind the gap (issues 625, 559).
    """
    original = Recovery.on_recovery_completed

    async def on_recovery_completed(self: Any, generation_id: int = 0) -> None:
        self.app.consumer.stop_flow()
        self.app.flow_control.suspend()
        await self.app.restore()
        await original(self, generation_id)

    Recovery.on_recovery_completed = on_recovery_completed  # type: ignore[method-assign]  # a patch


def leave_the_changelog_alone() -> None:
    """Tell Faust that every changelog partition is restored.

    Its recovery waits for the last offset of the changelog, which is a commit marker and is
    never delivered.
    """

    async def build_highwaters(
        self: Any, consumer: Any, tps: set[TP], destination: dict[TP, int], title: str
    ) -> None:
        destination.clear()
        destination.update(dict.fromkeys(tps, -1))

    Recovery._build_highwaters = build_highwaters  # type: ignore[method-assign]  # a patch


def seek_to_positions() -> None:
    """Go on at the position records, not at the group's offsets, wherever Faust seeks."""
    original = Consumer.perform_seek

    async def perform_seek(self: Any) -> None:
        await original(self)
        assigned = self.assignment()
        positions = {tp: n for tp, n in self.app.positions().items() if tp in assigned}
        if positions:
            await self.seek_wait(positions)
            self._committed_offset.update(positions)

    Consumer.perform_seek = perform_seek  # type: ignore[method-assign]  # a patch


def fetch_committed_clicks_soon() -> None:
    """Read committed clicks only, and let the broker gather them for 5 ms, not for 1.5 s.

    Faust has no setting for either; without the first, clicks of an aborted transaction are
    answered. A fetch per click costs more than the answer: at 1,000 clicks/s the worker took 850 us
    of CPU per click with it, and 740 without.
    """
    original = AIOKafkaConsumerThread._create_worker_consumer

    def create_worker_consumer(self: Any, transport: Any) -> Any:
        consumer = original(self, transport)
        consumer._isolation_level = "read_committed"
        consumer._fetch_max_wait_ms = 5
        consumer._fetch_min_bytes = 100_000
        return consumer

    AIOKafkaConsumerThread._create_worker_consumer = create_worker_consumer  # type: ignore[method-assign]  # a patch


def retry_transactions_soon() -> None:
    """Sleep 1 ms, not 20, while the broker finishes the previous transaction."""
    aiokafka.producer.sender.BACKOFF_OVERRIDE = 0.001


def look_for_the_coordinator_again() -> None:
    """Ask again if a broker closes the connection before it answers.

    aiokafka asks again after a timeout and after a failed connection, but here it gives the
    producer up for good: one in ten restarts of a broker ended a worker.
    """
    original = Sender._find_coordinator

    async def find_coordinator(self: Any, kind: Any, key: str) -> Any:
        while True:
            try:
                return await original(self, kind, key)
            except KafkaError as error:
                if not isinstance(error.__cause__, KafkaConnectionError):
                    raise
                await asyncio.sleep(self._retry_backoff)

    Sender._find_coordinator = find_coordinator  # a patch


PATCHES = (
    commit_before_revoke,
    restore_before_resume,
    leave_the_changelog_alone,
    seek_to_positions,
    fetch_committed_clicks_soon,
    retry_transactions_soon,
    look_for_the_coordinator_again,
)


def install_patches() -> None:
    """Apply every patch, once a process. Raises StreamError on another version."""
    for package, expected in WRITTEN_FOR.items():
        found = version(package)
        if found != expected:
            raise StreamError(
                f"{package} {found} is installed; the patches in stream/transport/patches.py are "
                f"written for {expected}"
            )
    for patch in PATCHES:
        patch()
