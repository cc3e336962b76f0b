"""A worker with a guard taken out, so that a fault test can show that the guard matters.

``python -m tests.integration.broken_worker GUARD [GUARD ...] -- worker``; the guards of the
second group are intact there: they only place the fault.
"""

import asyncio
import os
import signal
import sys
import uuid
from typing import Any

from faust.tables.recovery import Recovery
from faust.transport.consumer import Consumer

from stream import __main__ as command
from stream import worker
from stream.session import Sessions
from stream.transport import patches, restore
from stream.transport.topics import group_offsets
from stream.transport.transactions import Delivery


def no_position_record() -> None:
    """Go by the group's committed offsets, as a stock consumer does."""
    check = restore._check_positions

    async def check_positions(
        partitions: Any, progress: Any, reader: Any, settings: Any, topic_id: str
    ) -> int:
        committed = group_offsets(settings, partitions)
        for partition in partitions:
            position = progress[partition].position
            if position is not None:
                position.next_offset = committed.get(partition, 0)
        return await check(partitions, progress, reader, settings, topic_id)

    restore._check_positions = check_positions


def no_fencing() -> None:
    """Give every start its own transactional id, so that nobody fences anybody."""
    new_producer = Delivery._new_producer

    def unfenced(self: Any, partition: int) -> Any:
        settings = self._settings
        self._settings = settings.model_copy(
            update={"app_id": f"{settings.app_id}-{uuid.uuid4().hex[:8]}"}
        )
        producer = new_producer(self, partition)
        self._settings = settings
        return producer

    Delivery._new_producer = unfenced  # type: ignore[method-assign]


def no_abort() -> None:
    """Leave a transaction that hangs to whatever ends it."""

    async def abort_what_hangs(self: Any, partitions: Any) -> list[int]:
        return []

    Delivery._abort_what_hangs = abort_what_hangs  # type: ignore[method-assign]


def no_restore() -> None:
    """Take the positions from the changelog and leave the sessions there."""

    def positions_only(self: Any, partition: int, key: bytes, value: bytes | None) -> None:
        return None

    Sessions.restore = positions_only  # type: ignore[method-assign]


def no_stopped_flow() -> None:
    """Restore, but let Faust deliver clicks between its seek and its clearing of the queues."""

    def restore_before_resume() -> None:
        original = Recovery.on_recovery_completed

        async def on_recovery_completed(self: Any, generation_id: int = 0) -> None:
            await self.app.restore()
            await original(self, generation_id)

        Recovery.on_recovery_completed = on_recovery_completed  # type: ignore[method-assign]

    _replace_patch("restore_before_resume", restore_before_resume)


def slow_seek() -> None:
    """Take a second between the seek and the resume, as a busy broker may: no guard is out.

    Behind the patches, of which one seeks again: a wait before the last seek harms nobody, as
    what was delivered in it is fetched once more.
    """

    def perform_seek_slowly() -> None:
        seek = Consumer.perform_seek

        async def perform_seek(self: Any) -> None:
            await seek(self)
            await asyncio.sleep(1.0)

        Consumer.perform_seek = perform_seek  # type: ignore[method-assign]

    patches.PATCHES = (  # type: ignore[assignment]  # one longer
        *patches.PATCHES,
        perform_seek_slowly,
    )


def no_hole_check() -> None:
    """Trust that what Faust delivers is everything."""

    async def check_holes(self: Any, plan: Any) -> None:
        return None

    worker.Worker._check_holes = check_holes  # type: ignore[method-assign]


def without_patch(name: str) -> None:
    """Leave one of patches.PATCHES out."""
    _replace_patch(name, lambda: None)


def _replace_patch(name: str, replacement: Any) -> None:
    installed = patches.PATCHES
    assert name in {patch.__name__ for patch in installed}
    patches.PATCHES = tuple(  # type: ignore[assignment]  # of the same length
        replacement if patch.__name__ == name else patch for patch in installed
    )


def stop_before_commit() -> None:
    """SIGSTOP itself between two sends: after planning the tenth batch, before delivering it."""
    deliver = Delivery._commit
    transactions = 0

    async def commit(self: Any, *arguments: Any) -> int:
        nonlocal transactions
        transactions += 1
        if transactions == 40:
            os.kill(os.getpid(), signal.SIGSTOP)
        return await deliver(self, *arguments)

    Delivery._commit = commit  # type: ignore[method-assign,assignment]


GUARDS = {
    "no_position_record": no_position_record,
    "no_fencing": no_fencing,
    "no_abort": no_abort,
    "no_restore": no_restore,
    "no_stopped_flow": no_stopped_flow,
    "no_hole_check": no_hole_check,
    "slow_seek": slow_seek,
    "stop_before_commit": stop_before_commit,
}


def main() -> int:
    words = sys.argv[1:]
    split = words.index("--")
    for word in words[:split]:
        if word.startswith("without:"):
            without_patch(word.removeprefix("without:"))
        else:
            GUARDS[word]()
    return command.main(words[split + 1 :])


if __name__ == "__main__":
    sys.exit(main())
